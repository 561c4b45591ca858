"""Pruning in the forwards of a generation or a trace: what each layer is handed. Ships to servers by value."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.heads import QueryKeyReader
from nnsight_mmflow.inside.prune_choice import (
    Pruned,
    choose,
    cut_hidden,
    everything,
    longer,
    looks_of,
    stages_by_layer,
    with_contents,
)
from nnsight_mmflow.inside.prune_masks import Table, closed_mask, cut_mask, cut_table, gone, moved
from nnsight_mmflow.inside.pruning import Kept, Row, Stage, Way

if TYPE_CHECKING:
    from nnsight_mmflow.inside.forwards import Held
    from nnsight_mmflow.inside.passage import Layer, Passage
    from nnsight_mmflow.inside.roles import Roles
    from nnsight_mmflow.inside.tower import TowerSeen


def prune_prefill(
    passage: Passage,
    held: Held,
    graph: Roles,
    stages: Sequence[Sequence[Stage]],
    rows: Sequence[Row],
    way: Way,
    towers: Sequence[TowerSeen | None],
    before: Pruned | None = None,
) -> Pruned:
    """Inside a forward of the prompt: prunes, and returns what each layer keeps.

    Stages, rows and towers are those of the prompts; what is chosen for a prompt holds for each row that stands for it.

    Args:
        passage: of the forward.
        held: what it holds.
        graph: the model.
        stages: of each prompt, before the same layers.
        rows: the prompts.
        way: how.
        towers: what the vision tower made of each prompt's pictures, where the method reads it.
        before: what was chosen when the prompt was first run, where it is run again with tokens behind it (no cache).
    """
    by_layer, found = stages_by_layer(stages), Pruned()
    ahead = any(stage[0].reads == "next" for stage in by_layer.values())
    tables: dict[Hashable, Table] = {}  # as layers were handed them, by their kind
    masks: dict[Hashable, torch.Tensor | None] = {}  # as layers get them
    turned: dict[Hashable, Table] = {}
    seen: tuple | None = None
    for number in range(graph.n_layers):
        layer, now, following = passage.layer(number, held), by_layer.get(number), by_layer.get(number + 1)
        if not number:
            entered = hidden = layer.hidden(changing=now is not None)
            present = everything(hidden, rows)
        elif now is not None or layer.at_hand:
            hidden = layer.hidden()
        if now is not None:
            if before is not None:
                hidden = with_contents(hidden, present, before.contents.get(number))
                chosen = longer(before.kept[number], entered.shape[1], rows, way)
            else:
                if now[0].reads == "next":
                    old = found.kept[-1] if found.kept else None
                    seen = look_ahead(QueryKeyReader(graph), layer, number, hidden, entered, old, tables, way)
                chosen, hidden, contents = choose(now, rows, present, hidden, entered, seen, way, towers)
                if contents is not None:
                    found.contents[number] = contents
            if way.drop:
                hidden = cut_hidden(hidden, present, chosen)
            present = chosen
            masks.clear()
            turned.clear()
            layer.enter(hidden)
        kept = present if number >= min(by_layer) else None
        found.kept.append(kept)
        moves = kept is not None and (way.drop or way.renumber)
        if moves or (ahead and not layer.at_hand):
            tables[layer.kind] = layer.table()
        if kept is not None and moves:
            if layer.kind not in turned:
                turned[layer.kind] = cut_table(tables[layer.kind], kept)
            if way.renumber:
                found.tables[number] = tables[layer.kind]
            layer.turn(turned[layer.kind], kept.seat)
        ranked = before is None and following is not None and following[0].reads == "previous"
        mask = mask_seen(layer, hidden, entered, kept, way) if ranked else None  # before it is given another
        if kept is not None:
            if layer.kind not in masks:
                masks[layer.kind] = mask_left(layer, hidden, kept, way)
            layer.cover(masks[layer.kind])
        if mask is not None:
            seen = looks_of(layer.looks(), mask, kept if way.drop else None)
    return found


def prune_step(passage: Passage, held: Held, found: Pruned, way: Way) -> None:
    """Inside a forward after the prompt's: each layer that has lost tokens reads what it holds.

    Args:
        passage: of the forward.
        held: what it holds.
        found: what each layer kept of the prompt.
        way: how the prompt was pruned.
    """
    shared: dict[tuple[int, int], tuple] = {}
    for number, kept in enumerate(found.kept):
        if kept is None:
            continue
        layer = passage.layer(number, held)
        if layer.left_out():  # by another pattern: it has kept no key, and reads no mask
            continue
        if way.renumber:
            layer.turn(moved(found.tables, number, kept, layer.table(), shared))
        if not way.drop:
            mask = layer.mask().expand(len(kept.index), -1, -1, -1).clone()
            missing = gone(kept, passage.length)[:, layer.dropped() :]  # the first keys a sliding window has dropped
            mask[..., : missing.shape[1]].masked_fill_(missing[:, None, None], torch.finfo(mask.dtype).min)
            layer.cover(mask)
        elif layer.masked() or not bool(kept.alive.all()):
            like = layer.like()
            mask = like.new_zeros(len(kept.index), 1, held.count, layer.width())
            closed = torch.finfo(mask.dtype).min
            mask[..., : kept.index.shape[1]].masked_fill_(~kept.alive[:, None, None], closed)
            layer.cover(mask)


def steps_need_care(found: Pruned, way: Way, passage: Passage) -> bool:
    """Whether anything may have to be done in the forwards after the prompt's."""
    filled = any(kept is not None and not bool(kept.alive.all()) for kept in found.kept)
    return way.renumber or not way.drop or not passage.unmasked or filled


def mask_left(layer: Layer, hidden: torch.Tensor, kept: Kept, way: Way) -> torch.Tensor | None:
    """The mask of a layer whose tokens have left, or are closed; None where it needs none."""
    handed = layer.handed(hidden)
    if way.drop:
        return cut_mask(handed, hidden, kept, way)
    return closed_mask(handed, hidden, kept, way, layer.width())


def mask_seen(layer: Layer, hidden: torch.Tensor, entered: torch.Tensor, kept: Kept | None, way: Way) -> torch.Tensor:
    """The mask that a ranking sees: of the whole forward, closed where tokens are."""
    if kept is not None and not way.drop:
        return closed_mask(layer.handed(hidden), hidden, kept, way)
    return layer.square(hidden[:, :1].expand(-1, entered.shape[1], -1))


def look_ahead(
    reader: QueryKeyReader,
    layer: Layer,
    number: int,
    hidden: torch.Tensor,
    entered: torch.Tensor,
    kept: Kept | None,
    tables: dict[Hashable, Table],
    way: Way,
) -> tuple:
    """What a ranking sees of a layer that has not run yet; `tables` are those of layers before it."""
    table = layer.table() if layer.at_hand else tables.get(layer.kind)
    if table is None:
        raise MMFlowError(
            f"the ranking before layer {number} reads that layer's attention, whose rotary table no layer before it"
            " has: in a generation on NDIF take a later layer, or a method that reads the layer before."
        )
    mask = mask_seen(layer, hidden, entered, kept, way)
    found = reader.read(number, "next", hidden, table if kept is None else cut_table(table, kept))
    return looks_of((*found, None), mask, kept if way.drop else None)
