"""Activations changed at the positions of a span, inside traces and generations. Ships to servers by value.

A pattern says what shall stand at a place (`change_at`); here the places are found in what a forward holds. The span's
positions come together, as they stand in the prompt. Each new token comes by itself: however many a forward holds, and
whether it is computed once or anew in each step, the pattern is given the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._errors import NoEffectError
from nnsight_mmflow.inside.forwards import Held, held_whole
from nnsight_mmflow.inside.places import Place, Places
from nnsight_mmflow.inside.sites import SITES, read_site, write_site
from nnsight_mmflow.spans.edges import resolve

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float

    from nnsight_mmflow.inside.changing import Changing
    from nnsight_mmflow.inside.passage import Passage
    from nnsight_mmflow.inside.roles import Roles
    from nnsight_mmflow.inside.sites import Site
    from nnsight_mmflow.spans.row_spans import Spans


def site_of(pattern: Changing) -> str:
    """The name of its site: single heads' results are one of their own."""
    return "heads" if pattern.heads is not None else pattern.site


def places_of(pattern: Changing, graph: Roles, rows: tuple[Spans, ...]) -> Places:
    """Where a pattern changes values."""
    layers = [0] if pattern.layers is None else pattern.layer_list(graph)
    assert pattern.at is not None  # checked
    positions = [list(span) for span in resolve(pattern.at, rows, "at")]
    columns = None
    if pattern.heads is not None:
        each = graph.head_width
        columns = [head * each + i for head in dict.fromkeys(pattern.heads) for i in range(each)]
    return Places(layers, positions, columns, rows[0]["all"].row[1])


def changed(
    pattern: Changing,
    before: Float[torch.Tensor, "rows queries width"],
    places: Places,
    number: int,
    held: Held,
) -> tuple[Float[torch.Tensor, "rows queries width"], int]:
    """(what stands at a site once the pattern has acted, how many numbers changed).

    Args:
        pattern: what is done.
        before: what stands there now.
        places: where.
        number: which of the layers.
        held: what the forward holds: of which prompt each row is, and which positions.
    """
    count, after = 0, before.clone()
    for row, (prompt, at) in enumerate(held.by_row(list(enumerate(places.positions)))):
        own = sum(position < places.length for position in at)  # behind them: tokens of an answer that stands there
        there = [i for i in range(own) if held.has(at[i])] if pattern.when != "decode" else []
        parts = [([at[i] - held.first for i in there], there, False)] if there else []
        parts += [([position - held.first], [own - 1], True) for position in at[own:]]
        if pattern.when != "prefill":
            parts += [([query], [len(at) - 1], True) for query in held.generated()]
        for queries, numbers, new in parts:
            old = before[row, queries]
            place = Place(places.layers[number], number, prompt, numbers, places.columns, new)
            new_values = pattern.change_at(old, place)
            count += int((new_values != old).sum())
            after[row, queries] = new_values
    return after, count


def acts_in(pattern: Changing, places: Places, held: Held) -> bool:
    """Whether a forward holds anything that the pattern changes."""
    return (pattern.when != "decode" and any(held.local(at) for at in places.positions)) or (
        pattern.when != "prefill" and bool(held.generated())
    )


def change_all(pattern: Changing, sites: list[Site], places: Places, held: Held | None = None) -> int:
    """Inside a trace: changes the values in the forward that runs now, and returns how many numbers changed.

    Args:
        pattern: what is done.
        sites: one per layer, in order.
        places: where.
        held: what the forward holds; None: the whole prompt, as its shape must show.
    """
    count = 0
    for number, site in enumerate(sites):
        before = read_site(site)
        here = held_whole(before.shape, len(places.positions), places.length) if held is None else held
        after, more = changed(pattern, before, places, number, here)
        count += more
        write_site(site, after)
    return count


def change_here(pattern: Changing, graph: Roles, rows: tuple[Spans, ...]) -> int:
    """Inside a trace: the same in a forward that holds the whole prompt.

    Raises:
        NoEffectError: nothing changed.
    """
    places = places_of(pattern, graph, rows)
    count = change_all(pattern, sites_of(pattern, graph, places), places)
    check_done(pattern, 1, count)
    return count


def change_each(pattern: Changing, graph: Roles, rows: tuple[Spans, ...], passage: Passage) -> None:
    """Inside a generation: the same in each forward that holds what the pattern acts on."""
    places, done = places_of(pattern, graph, rows), {"forwards": 0, "changed": 0}
    sites = sites_of(pattern, graph, places)

    def act(held: Held) -> bool:
        if acts_in(pattern, places, held):
            done["forwards"] += 1
            done["changed"] += change_all(pattern, sites, places, held)
        if pattern.when != "prefill":
            return False
        if held.end >= places.length:
            check_done(pattern, done["forwards"], done["changed"])
        return held.past_prompt

    passage.each(act)
    check_done(pattern, done["forwards"], done["changed"])


def sites_of(pattern: Changing, graph: Roles, places: Places) -> list[Site]:
    """The site of each layer."""
    return [SITES[site_of(pattern)](graph, layer) for layer in places.layers]


def check_done(pattern: Changing, forwards: int, count: int) -> None:
    """Refuses a pattern that has changed nothing.

    Raises:
        NoEffectError: it has not.
    """
    if not forwards:
        raise NoEffectError(
            f"{pattern} would change nothing: the generation ended before a step came that it acts on."
            " Raise max_new_tokens."
        )
    if not count:
        raise NoEffectError(f"{pattern} would change nothing: {pattern.unchanged}")
