"""A prompt's restored cells, in one session, wherever the graph runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nnsight
import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.restore import Cell, cells_of, chunks_of, needs_of, sites_of
from nnsight_mmflow.inside.restored import restored_there
from nnsight_mmflow.model.forms import PLAIN

if TYPE_CHECKING:
    from nnsight_mmflow.inside.sweep import Clean
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.prompts.prompt import Prompt


def cells_there(
    graph: Graph,
    prompt: Prompt,
    corrupt: Prompt,
    patterns: tuple[Pattern, ...],
    cells: list[Cell],
    start: int,
    token: torch.Tensor,
    budget: int,
    blocks: tuple[tuple[int, int], ...],
) -> dict[Cell, torch.Tensor]:
    """For each cell (2,): the log-probability of the token, and the most likely one; nothing large travels.

    Args:
        graph: the model.
        prompt: the clean prompt.
        corrupt: what the corrupt run asks.
        patterns: what is done to it there.
        cells: what to restore.
        start: the first position that any row needs.
        token: the answer whose probability is followed.
        budget: positions in one chunk.
        blocks: as in `chunks_of`.
    """
    model, layers, sites, remotely = graph.model, graph.layers, sites_of(graph), graph.remotely
    corrupted = graph.edited(corrupt, patterns)
    filled = graph.edited(corrupt, patterns, PLAIN) if graph.apart else corrupted
    chunks = chunks_of(cells, len(prompt), budget, blocks)
    names, positions = needs_of(cells)
    ask = {
        "clean": graph.checked(prompt),
        "corrupt": graph.checked(corrupt),
        "start": start,
        "enters_after": graph.enters_after,
        "causal": graph.causal,
        "names": names,
        "positions": positions,
    }
    with torch.no_grad(), model.session(**remotely):
        numbers = nnsight.save(restored_there(model, corrupted, filled, layers, sites, chunks, ask, token))
    return dict(zip([cell for _, chunk in chunks for cell in chunk], numbers, strict=True))


def run_cells(
    graph: Graph,
    cells: list[Cell],
    corrupt: Clean,
    values: dict[str, list[torch.Tensor]],
    places: dict[int, int],
    token: torch.Tensor,
    budget: int,
    blocks: tuple[tuple[int, int], ...] = (),
) -> dict[Cell, torch.Tensor]:
    """For each cell (2,): the log-probability of the token, and the most likely one.

    Args:
        graph: the model.
        cells: what to restore.
        corrupt: the corrupt run from the first restored position on; its cache is cut up.
        values: for each site the clean activations, per layer (positions, width).
        places: for each position of the prompt its row in `values`.
        token: the answer whose probability is followed.
        budget: positions in one chunk.
        blocks: as in `chunks_of`.
    """
    if corrupt.cache is None:
        raise MMFlowError("this run has served already, and its cache is cut up: make another with run_clean.")
    cache, corrupt.cache = corrupt.cache, None
    model, layers, inputs, start = graph.model, graph.layers, corrupt.inputs, corrupt.start
    sites, chunks = sites_of(graph), chunks_of(cells, start + inputs[0].hidden.shape[1], budget, blocks)
    with torch.no_grad(), model.session():
        numbers = nnsight.save(cells_of(model, layers, sites, chunks, start, inputs, cache, values, places, token))
    return dict(zip([cell for _, chunk in chunks for cell in chunk], numbers, strict=True))
