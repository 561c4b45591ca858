"""A prompt's restored cells, in one session, wherever the graph runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nnsight
import torch

from nnsight_mmflow.inside.restore import Cell, chunks_of, needs_of, sites_of
from nnsight_mmflow.inside.restored import restored_there
from nnsight_mmflow.model.forms import PLAIN

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.prompts.prompt import Prompt


def run_cells(
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
    """For each cell (2,): the log-probability of the token, and the most likely one; from a server nothing large comes.

    Args:
        graph: the model.
        prompt: the clean prompt.
        corrupt: what the corrupt run asks.
        patterns: what is done to it there.
        cells: what to restore.
        start: the first position that any row needs.
        token: the answer whose probability is followed.
        budget: positions in one chunk.
        blocks: (first, end) of positions that read each other both ways.
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
        "apart": graph.apart,
        "names": names,
        "positions": positions,
    }
    with torch.no_grad(), model.session(**remotely):
        numbers = nnsight.save(restored_there(model, corrupted, filled, layers, sites, chunks, ask, token))
    return dict(zip([cell for _, chunk in chunks for cell in chunk], numbers, strict=True))
