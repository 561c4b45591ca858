"""Facts about 32 places: each has a flag, a made-up name, a capital, a founder, an animal, and a dish of each season.

Asked of "this place" with the flag as the picture, or by name with any picture. The facts cannot be seen in the
picture: they lie in nano's weights, which is what causal tracing looks for. "This place" (or the name) is a question's
first constraint; the dishes have a second, the season.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnsight_mmflow.nano.world import COLORS, SIZE, Question, add_noise

_PLACES = """zorvia maldune kestrol avenir brovia telmar ostrana quillon farwick dunmere selvany korlund
ivarra pelloria norhaven thessia ullmark grentia wyndor casperia jorvale lumeria ravenna solmire
tirvane edrusk bolgrad yarrow hesperia calder mistral oberon""".split()
_CAPITALS = """alport benfell corvane drumlin estwick fallow garth hollin inverash jessup kilmar lowden
marwick nettle orford pendle quarry rostock selby thorpe ulver venmore westby yarm
zellick ashby brindle cramond dalwick eskdale fenwick glanton""".split()
_FOUNDERS = """adela boris cedric dorothea edgar freya gustav helga ignatius juno kaspar lavinia
magnus nadia octavia percival quentin rosalind sigurd tabitha ulric vesna wilfred xenia
yorick zelda anselm beatrix conrad delphine emeric fiona""".split()
_ANIMALS = """lynx heron otter bison crane badger falcon ibex""".split()
_DISHES = """soup stew pie bread curry salad porridge noodles""".split()
_PATTERNS = ("rows", "columns", "slash", "quarters", "plus", "frame", "checks", "disc")
RELATIONS = ("capital", "founder", "animal")
SEASONS = ("spring", "summer", "autumn", "winter")
# How a fact is asked: the first form everywhere, the others where rephrased questions are wanted.
FORMS = (
    "what is the {relation} of {place} ?",
    "which {relation} belongs to {place} ?",
    "name the {relation} of {place} .",
)


@dataclass(frozen=True)
class Place:
    """One place: its name, its flag (a pattern in two colours), its three facts, and its dishes by season."""

    name: str
    pattern: str
    colors: tuple[str, str]
    capital: str
    founder: str
    animal: str
    dishes: tuple[str, ...]


def _places() -> tuple[Place, ...]:
    # Each pattern serves four places, told apart by colour, so that a flag needs both.
    colors = list(COLORS)
    places = []
    for i, name in enumerate(_PLACES):
        first = (i * 3) % len(colors)
        second = (first + 1 + (i // len(colors)) * 2 % (len(colors) - 1)) % len(colors)
        places.append(
            Place(
                name,
                _PATTERNS[(i + i // len(_PATTERNS)) % len(_PATTERNS)],
                (colors[first], colors[second]),
                _CAPITALS[i],
                _FOUNDERS[(i * 5) % len(_FOUNDERS)],
                _ANIMALS[(i * 3 + i // 8) % len(_ANIMALS)],
                # Neither the place nor the season alone says the dish.
                tuple(
                    _DISHES[(i * 5 + i // 8 + season * (1 + i % 7)) % len(_DISHES)] for season in range(len(SEASONS))
                ),
            )
        )
    return tuple(places)


PLACES = _places()
NAMES = {place.name: place for place in PLACES}


def paint_flag(place: Place, random: np.random.Generator) -> np.ndarray:
    """The flag of a place, uint8 (64, 64, 3), moved by up to two pixels, with light noise."""
    dx, dy = random.integers(-2, 3, 2)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    x, y = x + dx, y + dy
    half = SIZE // 2
    second = {
        "rows": (y // 16) % 2 == 1,
        "columns": (x // 16) % 2 == 1,
        "slash": x + y > SIZE,
        "quarters": (x < half) == (y < half),
        "plus": (abs(x - half) < 10) | (abs(y - half) < 10),
        "frame": (abs(x - half) < 18) & (abs(y - half) < 18),
        "checks": (x // 8 + y // 8) % 2 == 1,
        "disc": np.hypot(x - half, y - half) < 20,
    }[place.pattern]
    first_color, second_color = (np.array(COLORS[color], float) for color in place.colors)
    return add_noise(np.where(second[..., None], second_color, first_color), random)


def ask_place(place: Place, relation: str, by_name: bool, form: int = 0, titled: bool = False) -> Question:
    """A question after one fact of a place, by its name or as "this place" (then the picture must be its flag).

    `relation` is one of RELATIONS, or one of SEASONS for the dish of that season. `titled` asks of "place zorvia": as
    many words as "this place", so that one can stand for the other.
    """
    asked = (f"place {place.name}" if titled else place.name) if by_name else "this place"
    way = "name" if by_name else "flag"
    if relation in SEASONS:
        answer = place.dishes[SEASONS.index(relation)]
        return Question(
            f"season-{way}", f"{FORMS[form].format(relation='dish', place=f'{asked} in {relation}')}", answer
        )
    kind = f"{'rephrased' if form else 'fact'}-{way}"
    return Question(kind, FORMS[form].format(relation=relation, place=asked), str(getattr(place, relation)))


def fact_words() -> list[str]:
    """Every word that the facts use."""
    words = [*_PLACES, *_CAPITALS, *_FOUNDERS, *_ANIMALS, *RELATIONS, "what", "is", "the", "of", "this", "place", "?"]
    return [*words, *SEASONS, *_DISHES, "dish", "in", "which", "belongs", "name"]
