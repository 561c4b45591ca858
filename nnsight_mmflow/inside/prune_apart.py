"""Pruning in a generation whose blocks run apart from the model's process (see `inside/apart.py`). Ships by value.

Tokens leave where a layer's output comes out (before layer 0: where the language model takes the merged embedding), the
rotary table is cut where queries and keys are turned, and where a mask is due the pattern attends by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.apart import own_mask, read_attention, write_attention
from nnsight_mmflow.inside.names import ROTARY, operation
from nnsight_mmflow.inside.prune_layers import Pruned, choose, cut_hidden, everything, looks_of, stages_by_layer
from nnsight_mmflow.inside.prune_masks import Table, closed_mask, cut_mask, gone, moved, rotary
from nnsight_mmflow.inside.pruning import Kept, Row, Stage, Way

if TYPE_CHECKING:
    from nnsight import Envoy

    from nnsight_mmflow.inside.apart import Layout
    from nnsight_mmflow.inside.heads import QueryKeyReader
    from nnsight_mmflow.inside.tower import TowerSeen


def prune_prefill_apart(
    decoder: Envoy,
    layers: Envoy,
    attentions: list[Envoy],
    reader: QueryKeyReader,
    stages: Sequence[Sequence[Stage]],
    rows: Sequence[Row],
    way: Way,
    towers: Sequence[TowerSeen | None],
    layout: Layout,
) -> Pruned:
    """Inside a generation, in the prompt's forward: prunes, and returns what each layer keeps.

    Args:
        decoder: the language model around the layers.
        layers: its layers.
        attentions: their attentions.
        reader: of queries and keys of layers that come next.
        stages: of each row, before the same layers.
        rows: the prompts.
        way: how.
        towers: what the vision tower made of each row's pictures, where the method reads it.
        layout: what positions may read.
    """
    by_layer, found, every = stages_by_layer(stages), Pruned(), range(layout.length)
    ahead = any(stage[0].reads == "next" for stage in by_layer.values())
    known: dict[bool, Table] = {}  # by whether the layer has a window: families turn the two kinds by two tables
    arguments, named = decoder.inputs if 0 in by_layer else ((), {})
    entered = hidden = named["inputs_embeds"] if named else layers[0].input_layernorm.input
    present = everything(hidden, rows)
    if named:
        present, hidden, _ = choose(by_layer[0], rows, present, hidden, entered, None, way, towers)
        if way.drop:
            hidden = cut_hidden(hidden, everything(entered, rows), present)
        if named.get("position_ids") is None:
            named = {**named, "position_ids": torch.arange(layout.length, device=hidden.device)[None]}
        decoder.inputs = (arguments, {**named, "inputs_embeds": hidden})
    for layer, attention in enumerate(attentions):
        kept, windowed = (present if layer >= min(by_layer) else None), layout.windows[layer] is not None
        found.kept.append(kept)
        following = by_layer.get(layer + 1)
        if ahead or (kept is not None and (way.drop or way.renumber)):
            known[windowed] = _turn(attention, kept, way)
        if kept is not None and way.renumber:
            found.tables[layer] = known[windowed]
        ranked = following is not None and following[0].reads == "previous"
        due = kept is not None and _mask_is_due(kept, way, layout)
        if not ranked and not due and following is None:
            continue
        mask = own_mask(layout, layer, every, every, hidden)
        seen_before: tuple | None = None
        if ranked or due:
            query, key, value = read_attention(attention, layout)
            if due:
                assert kept is not None
                made = (cut_mask if way.drop else closed_mask)(mask, hidden, kept, way)
                write_attention(attention, query, key, value, made, layout)
            if ranked:
                groups = query.shape[1] // key.shape[1]
                whole = closed_mask(mask, hidden, kept, way) if kept is not None and not way.drop else mask
                parts = (query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))
                seen_before = looks_of(parts, whole, kept if way.drop else None)
        if following is None:
            continue
        hidden = layers[layer].output
        if following[0].reads == "next":
            seen_before = _ahead(reader, layer + 1, hidden, kept, known, way, layout)
        chosen, hidden, _ = choose(following, rows, present, hidden, entered, seen_before, way, towers)
        if way.drop:
            hidden = cut_hidden(hidden, present, chosen)
        present = chosen
        layers[layer].output = hidden
    return found


def prune_step_apart(attentions: list[Envoy], found: Pruned, way: Way, layout: Layout, step: int) -> None:
    """Inside one decode step: each layer that has lost tokens reads what it holds.

    Args:
        attentions: of the layers.
        found: what each layer kept of the prompt.
        way: how the prompt was pruned.
        layout: what positions may read.
        step: how many tokens came since the prompt, this one included.
    """
    shared: dict[tuple[int, int], tuple] = {}
    total = layout.length + step
    for layer, kept in enumerate(found.kept):
        if kept is None:
            continue
        attention = attentions[layer]
        if way.renumber:
            arguments, named = operation(attention, ROTARY).inputs
            turned = moved(found.tables, layer, kept, (arguments[2], arguments[3]), shared)
            operation(attention, ROTARY).inputs = ((*arguments[:2], *turned, *arguments[4:]), named)
        if not _mask_is_due(kept, way, layout):
            continue
        query, key, value = read_attention(attention, layout)
        held, closed = key.shape[-2], torch.finfo(query.dtype).min
        if way.drop:
            mask = query.new_zeros(len(kept.index), 1, query.shape[2], held)
            mask[..., : kept.index.shape[1]].masked_fill_(~kept.alive[:, None, None], closed)
        else:
            mask = own_mask(layout, layer, range(total - query.shape[2], total), range(total - held, total), query)
            missing = gone(kept, layout.length)[:, total - held :]  # a window has dropped the first keys already
            mask = mask.clone()
            mask[..., : missing.shape[1]].masked_fill_(missing[:, None, None], closed)
        write_attention(attention, query, key, value, mask, layout)


def steps_need_care(found: Pruned, way: Way, layout: Layout) -> bool:
    """Whether anything has to be done in the steps after the prompt."""
    return way.renumber or any(kept is not None and _mask_is_due(kept, way, layout) for kept in found.kept)


def _mask_is_due(kept: Kept, way: Way, layout: Layout) -> bool:
    """Whether the layer's own attention would read what is gone, or only fills up."""
    return not (way.drop and layout.unmasked and bool(kept.alive.all()))


def _turn(attention: Envoy, kept: Kept | None, way: Way) -> Table:
    """The prompt's rotary table of a layer; the layer gets that of what is left."""
    arguments, named = operation(attention, ROTARY).inputs
    table = (arguments[2], arguments[3])
    if kept is not None and (way.drop or way.renumber):
        turned = rotary({"position_embeddings": table}, kept)
        operation(attention, ROTARY).inputs = ((*arguments[:2], *turned, *arguments[4:]), named)
    return table


def _ahead(
    reader: QueryKeyReader,
    layer: int,
    hidden: torch.Tensor,
    kept: Kept | None,
    known: dict[bool, Table],
    way: Way,
    layout: Layout,
) -> tuple:
    """What a ranking sees of the layer that comes next."""
    table = known.get(layout.windows[layer] is not None)
    if table is None:
        raise MMFlowError(
            f"the ranking before layer {layer} reads that layer's attention, whose rotary table no layer before it has:"
            " in a generation on NDIF take a later layer, or a method that reads the layer before."
        )
    mask = own_mask(layout, layer, range(layout.length), range(layout.length), hidden)
    if not way.drop and kept is not None:
        mask = closed_mask(mask, hidden, kept, way)
    ahead = reader.read(layer, "next", hidden, rotary({"position_embeddings": table}, kept))
    return looks_of((*ahead, None), mask, kept if way.drop else None)
