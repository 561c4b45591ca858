"""Refuses rows of a sweep that would change nothing. Ships to servers by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow.inside.row_masks import Rows, edge_effects
from nnsight_mmflow.inside.rows import LayerInput

if TYPE_CHECKING:
    import torch

    from nnsight_mmflow.inside.plan import Plan


def check_effect(plan: Plan, number: int, clean: list[LayerInput], start: int, places: torch.Tensor) -> None:
    """Refuses a chunk with a row that would change nothing, or leave a position nothing to read.

    Args:
        plan: the sweep.
        number: the chunk's.
        clean: what each layer was handed in the clean run, from `start` on.
        start: where that starts.
        places: where the chunk's edges are.

    Raises:
        NoEffectError: all keys that a row closes are closed already in all its layers (by a sliding window).
        MMFlowError: a position would keep no key.
    """
    rows: Rows = plan.chunks[number]
    masks = {id(was.mask): was.mask[rows.start - start :] for was in clean}
    known: dict[tuple[int, tuple[int, ...]], tuple[dict[int, int], int]] = {}
    for row, parts in enumerate(rows.changes):
        changed = dict.fromkeys((edge for edge, _ in parts), 0)
        starved = False
        first, end = rows.windows[row]
        for layer in range(first, end):
            edges, mask = tuple(edge for edge, layers in parts if layer in layers), id(clean[layer].mask)
            if (mask, edges) not in known:
                known[mask, edges] = edge_effects(rows, edges, masks[mask], places)
            counts, left = known[mask, edges]
            starved = starved or left > 0
            for edge, count in counts.items():
                changed[edge] += count
        idle = [edge for edge, count in changed.items() if not count]
        if starved or idle:
            name = next(cell[0] for cell, place in zip(plan.cells, plan.row_of, strict=True) if place == (number, row))
            layers = f"layer {first}" if end == first + 1 else f"layers {first} to {end - 1}"
            if starved and not idle:
                raise MMFlowError(
                    f"{name!r} leaves a position nothing to read in {layers}, and softmax needs a key: a sliding window"
                    " reaches no further back. Take a position out of the source, or choose other layers."
                )
            closed = "a sliding window" if len(changed) == 1 else "a sliding window, or another pattern,"
            raise NoEffectError(
                f"{name!r} would change nothing in {layers}: {closed} has closed all of it already."
                " Choose a window that holds a layer without one."
            )
