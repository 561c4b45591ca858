"""Refuses rows of a sweep that would change nothing. Ships to servers by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow.inside.rows import LayerInput, Rows, edge_effects

if TYPE_CHECKING:
    import torch

    from nnsight_mmflow.inside.plan import Plan


def check_effect(plan: Plan, number: int, clean: list[LayerInput], start: int, closed: torch.Tensor) -> None:
    """Refuses a chunk with a row that would change nothing, or leave a position nothing to read.

    Args:
        plan: the sweep.
        number: the chunk's.
        clean: what each layer was handed in the clean run, from `start` on.
        start: where that starts.
        closed: the chunk's edges.

    Raises:
        NoEffectError: all keys that a row closes are closed already in all its layers (by a sliding window).
        MMFlowError: a position would keep no key.
    """
    rows: Rows = plan.chunks[number]
    masks = {id(was.mask): was.mask[rows.start - start :] for was in clean}
    effects = {name: edge_effects(rows, base, closed) for name, base in masks.items()}
    for row, ((first, end), edge) in enumerate(zip(rows.windows, rows.edges, strict=True)):
        met = [effects[id(was.mask)] for was in clean[first:end]]
        if any(starved[edge] for _, starved in met) or not any(counts[edge] for counts, _ in met):
            name = next(cell[0] for cell, place in zip(plan.cells, plan.row_of, strict=True) if place == (number, row))
            layers = f"layer {first}" if end == first + 1 else f"layers {first} to {end - 1}"
            if any(counts[edge] for counts, _ in met):
                raise MMFlowError(
                    f"{name!r} leaves a position nothing to read in {layers}, and softmax needs a key: a sliding window"
                    " reaches no further back. Take a position out of the source, or choose other layers."
                )
            raise NoEffectError(
                f"{name!r} would change nothing in {layers}: a sliding window has closed all of it already."
                " Choose a window that holds a layer without one."
            )
