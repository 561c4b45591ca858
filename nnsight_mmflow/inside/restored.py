"""A prompt's restored cells as one session on a server: corrupt run, clean activations, rows. Ships by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nnsight
import torch
from transformers import DynamicCache

from nnsight_mmflow.inside.names import cache_of, cached
from nnsight_mmflow.inside.restore import Cell, cells_of, chunks_of, needs_of, read_clean, sites_of
from nnsight_mmflow.inside.rows import clean_inputs
from nnsight_mmflow.inside.sites import Site
from nnsight_mmflow.model.forms import PLAIN

if TYPE_CHECKING:
    from nnsight import Envoy, TransformersModel

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.trace.corruption import Corruption
    from nnsight_mmflow.prompts.prompt import Prompt


def cells_there(
    graph: Graph,
    prompt: Prompt,
    corruption: Corruption,
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
        corruption: the corrupt one.
        cells: what to restore.
        start: the first position that any row needs.
        token: the answer whose probability is followed.
        budget: positions in one chunk.
        blocks: as in `chunks_of`.
    """
    model, layers, sites, remotely = graph.model, graph.layers, sites_of(graph), graph.remotely
    corrupted = graph.edited(corruption.prompt, corruption.patterns)
    filled = graph.edited(corruption.prompt, corruption.patterns, PLAIN) if graph.apart else corrupted
    chunks = chunks_of(cells, len(prompt), budget, blocks)
    names, positions = needs_of(cells)
    ask = {
        "clean": graph.checked(prompt),
        "corrupt": graph.checked(corruption.prompt),
        "start": start,
        "enters_after": graph.enters_after,
        "causal": graph.causal,
        "names": names,
        "positions": positions,
    }
    with torch.no_grad(), model.session(**remotely):
        numbers = nnsight.save(restored_there(model, corrupted, filled, layers, sites, chunks, ask, token))
    return dict(zip([cell for _, chunk in chunks for cell in chunk], numbers, strict=True))


def restored_there(
    model: TransformersModel,
    corrupted: TransformersModel,
    filled: TransformersModel,
    layers: Envoy,
    sites: list[dict[str, Site]],
    chunks: list[tuple[int, list[Cell]]],
    ask: dict,
    token: torch.Tensor,
) -> torch.Tensor:
    """Inside a session: (cells, 2), chunk by chunk.

    Args:
        model: the model.
        corrupted: the same with the corruption's patterns.
        filled: the same, in the way that lets the cache be filled.
        layers: its decoder layers.
        sites: for each layer where its sites are.
        chunks: what is restored.
        ask: the prompts' tensors, and the settings.
        token: the answer whose probability is followed.
    """
    n_layers = len(sites)
    with torch.no_grad():  # the caller's does not travel
        # as in clean_and_rows, inputs are read without a cache, and the cache where it comes out
        with corrupted.trace(**ask["corrupt"], use_cache=False, logits_to_keep=1):
            inputs = nnsight.save(clean_inputs(layers, n_layers, ask["start"], ask["enters_after"], ask["causal"]))
        with filled.trace(**ask["corrupt"], **cached(model, DynamicCache()), use_cache=True, logits_to_keep=1):
            cache = nnsight.save(cache_of(model.output))
        with model.trace(**ask["clean"], use_cache=False, logits_to_keep=1):
            values = nnsight.save(read_clean(n_layers, sites, ask["names"], ask["positions"]))
        places = {position: row for row, position in enumerate(ask["positions"])}
        return cells_of(model, layers, sites, chunks, ask["start"], inputs, cache, values, places, token)
