"""The little world nano lives in: pictures of a few shapes, and questions about them.

A scene is a 64x64 picture, a 4x4 grid of 16-pixel cells; two to four cells hold an object. The objects of a scene
differ in shape, so that a shape names an object. nano's patches are 8 pixels wide: an object covers exactly 2x2 image
tokens. The six question types follow GQA's categories, as the Cross-modal Information Flow paper uses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLORS = {
    "red": (225, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 220, 50),
    "purple": (150, 50, 190),
    "orange": (245, 140, 30),
    "cyan": (60, 210, 220),
    "black": (25, 25, 25),
}
SIZE, CELL, PATCH = 64, 16, 8
GRID = SIZE // CELL
BACKGROUND = 205
SCENE_TYPES = ("QueryAttr", "ChooseAttr", "ChooseRel", "CompareAttr", "LogicalObj", "ChooseCat")

_ROWS, _COLUMNS = np.mgrid[0:CELL, 0:CELL] + 0.5


@dataclass(frozen=True)
class Object:
    """One thing in a scene: its shape, its colour, and the cell (row, column) that it lies in."""

    shape: str
    color: str
    row: int
    column: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The cell's pixels as (x, y, width, height), the form of the GQA question files."""
        return self.column * CELL, self.row * CELL, CELL, CELL

    @property
    def side(self) -> str:
        """Which half of the picture it lies in: left or right."""
        return "left" if self.column < GRID // 2 else "right"


@dataclass(frozen=True)
class Question:
    """A question and its answer; `options` are (true, false) where it offers two; `objects` those it asks about."""

    kind: str
    text: str
    answer: str
    options: tuple[str, str] | None = None
    objects: tuple[Object, ...] = ()


def draw_scene(random: np.random.Generator) -> tuple[Object, ...]:
    """Two to four objects of different shapes in different cells; in six of ten scenes two share a colour."""
    count = int(random.integers(2, 5))
    shapes = random.permutation(SHAPES)[:count]
    colors = [str(color) for color in random.permutation(list(COLORS))[:count]]
    if random.random() < 0.6:
        colors[1] = colors[0]
    cells = random.permutation(GRID * GRID)[:count]
    return tuple(
        Object(str(shape), color, int(cell) // GRID, int(cell) % GRID)
        for shape, color, cell in zip(shapes, colors, cells, strict=True)
    )


def _coverage(shape: str, dx: float, dy: float) -> np.ndarray:
    """How much of each pixel of a cell the shape covers, 0 to 1, its centre moved by (dx, dy) pixels."""
    x, y = _COLUMNS - CELL / 2 - dx, _ROWS - CELL / 2 - dy
    if shape == "circle":
        distance = np.hypot(x, y) - 6.5
    elif shape == "square":
        distance = np.maximum(abs(x), abs(y)) - 5.7
    elif shape == "triangle":
        distance = np.maximum(abs(x) * 0.9 - (y + 7) * 0.45, y - 6)
    elif shape == "diamond":
        distance = (abs(x) + abs(y) - 7.5) * 0.7
    elif shape == "cross":
        distance = np.maximum(np.minimum(abs(x), abs(y)) - 1.8, np.maximum(abs(x), abs(y)) - 6.7)
    else:
        distance = abs(np.hypot(x, y) - 5.2) - 1.5
    return np.clip(0.5 - distance, 0, 1)


def paint_scene(objects: tuple[Object, ...], random: np.random.Generator) -> np.ndarray:
    """The picture of a scene, uint8 (64, 64, 3): half-pixel jitter of each object, light noise everywhere."""
    picture = np.full((SIZE, SIZE, 3), float(BACKGROUND))
    for thing in objects:
        cover = _coverage(thing.shape, *random.uniform(-0.5, 0.5, 2))[..., None]
        cell = picture[thing.row * CELL : (thing.row + 1) * CELL, thing.column * CELL : (thing.column + 1) * CELL]
        cell += cover * (np.array(COLORS[thing.color]) - cell)
    return add_noise(picture, random)


def add_noise(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The picture with light noise (6 grey levels), as uint8."""
    return np.clip(picture + random.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)


def _pick(random: np.random.Generator, things: Sequence[T]) -> T:
    return things[int(random.integers(len(things)))]


def _either(random: np.random.Generator, true: str, false: str) -> tuple[str, str]:
    return (true, false) if random.random() < 0.5 else (false, true)


def ask(kind: str, objects: tuple[Object, ...], random: np.random.Generator, tempting: float = 0.7) -> Question | None:
    """A question of that type about the scene; None where the scene allows none. Balanced between the answers.

    `tempting` is how often ChooseCat's false option is a shape that the scene holds.
    """
    asked, compared = (objects[i] for i in random.permutation(len(objects))[:2])
    if kind == "QueryAttr":
        return Question(kind, f"what color is the {asked.shape} ?", asked.color, objects=(asked,))
    if kind == "ChooseAttr":
        seen = {thing.color for thing in objects} - {asked.color}
        seen_too = seen and random.random() < 0.5
        false = _pick(random, sorted(seen if seen_too else set(COLORS) - {asked.color}))
        first, second = _either(random, asked.color, false)
        return Question(
            kind, f"is the {asked.shape} {first} or {second} ?", asked.color, (asked.color, false), (asked,)
        )
    if kind == "Side":
        return Question(kind, f"is the {asked.shape} on the left or right ?", asked.side, ("left", "right"), (asked,))
    if kind == "ChooseRel":
        pairs = [(a, b) for a in objects for b in objects if a.column != b.column]
        if not pairs:
            return None
        asked, compared = _pick(random, pairs)
        true, false = ("left", "right") if asked.column < compared.column else ("right", "left")
        first, second = _either(random, "left", "right")
        text = f"is the {asked.shape} to the {first} or to the {second} of the {compared.shape} ?"
        return Question(kind, text, true, (true, false), (asked, compared))
    if kind == "CompareAttr":
        pairs = [(a, b) for a in objects for b in objects if a != b]
        same = [pair for pair in pairs if pair[0].color == pair[1].color]
        other = [pair for pair in pairs if pair[0].color != pair[1].color]
        chosen = same if same and (not other or random.random() < 0.8) else other
        asked, compared = _pick(random, chosen)
        text = f"do the {asked.shape} and the {compared.shape} have the same color ?"
        return Question(kind, text, "yes" if asked.color == compared.color else "no", objects=(asked, compared))
    if kind == "LogicalObj":
        absent = [shape for shape in SHAPES if shape not in {thing.shape for thing in objects}]
        gone, gone_too = (str(name) for name in random.permutation(absent)[:2])
        yes = random.random() < 0.5
        true = asked.shape if yes else gone_too
        if yes and random.random() < 0.2:
            gone = compared.shape
        first, second = _either(random, true, gone)
        named = tuple(thing for thing in objects if thing.shape in (first, second))
        return Question(kind, f"is there a {first} or a {second} ?", "yes" if yes else "no", objects=named)
    if kind in ("QueryCat", "ChooseCat"):
        colors = [thing.color for thing in objects]
        single = [thing for thing in objects if colors.count(thing.color) == 1]
        if not single:
            return None
        asked = _pick(random, single)
        if kind == "QueryCat":
            return Question(kind, f"what is the {asked.color} thing ?", asked.shape, objects=(asked,))
        present = [thing.shape for thing in objects if thing != asked]
        seen_too = random.random() < tempting
        false = str(_pick(random, present if seen_too else [shape for shape in SHAPES if shape != asked.shape]))
        first, second = _either(random, asked.shape, false)
        text = f"is the {asked.color} thing a {first} or a {second} ?"
        return Question(kind, text, asked.shape, (asked.shape, false), (asked,))
    raise ValueError(f"no question type {kind!r}; there are {(*SCENE_TYPES, 'Side', 'QueryCat')}")


def caption(
    objects: tuple[Object, ...], random: np.random.Generator, by_color: float = 0.0
) -> tuple[list[str], list[bool]]:
    """A caption's words, and which of them the picture decides (these train binding of shape, colour and place).

    An object is named by its shape ("the circle red left ..."); that share `by_color` of those whose colour is theirs
    alone, by that ("the red circle left ..."). Either way the next word can be read off the picture in one hop.
    """
    words: list[str] = []
    decided: list[bool] = []
    colors = [thing.color for thing in objects]
    for i in random.permutation(len(objects)):
        thing = objects[i]
        if by_color and colors.count(thing.color) == 1 and random.random() < by_color:
            words += ["the", thing.color, thing.shape, thing.side]
            decided += [False, False, True, True]
        else:
            words += ["the", thing.shape, thing.color, thing.side]
            decided += [False, False, True, True]
        others = [other for other in objects if other.column != thing.column]
        if others:
            other = _pick(random, others)
            words += ["of", other.shape, "left" if thing.column < other.column else "right"]
            decided += [False, False, True]
        words.append(",")
        decided.append(False)
    return words, decided
