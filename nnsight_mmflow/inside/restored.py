"""A prompt's restored cells as one session on a server: corrupt run, clean activations, rows. Ships by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nnsight
import torch
from transformers import DynamicCache

from nnsight_mmflow.inside.names import cache_of, cached
from nnsight_mmflow.inside.reading import Reading
from nnsight_mmflow.inside.restore import Cell, cells_of, read_clean
from nnsight_mmflow.inside.rows import clean_inputs
from nnsight_mmflow.inside.sites import Site

if TYPE_CHECKING:
    from nnsight import Envoy, TransformersModel


def restored_there(
    model: TransformersModel,
    corrupted: TransformersModel,
    filled: TransformersModel,
    layers: Envoy,
    sites: list[dict[str, Site]],
    chunks: list[tuple[int, list[Cell]]],
    ask: dict,
    token: torch.Tensor,
    reading: Reading | None = None,
) -> torch.Tensor:
    """Inside a session: (cells, numbers), chunk by chunk.

    Args:
        model: the model.
        corrupted: the same with the corruption's patterns.
        filled: the same, in the way that lets the cache be filled.
        layers: its decoder layers.
        sites: for each layer where its sites are.
        chunks: what is restored.
        ask: the prompts' tensors, and the settings.
        token: the answer whose probability is followed.
        reading: what is read instead.
    """
    n_layers, inputs = len(sites), []
    with torch.no_grad():  # the caller's does not travel
        # as in clean_and_rows, inputs are read without a cache, and the cache where it comes out
        if ask["apart"]:
            with corrupted.trace(**ask["corrupt"], use_cache=False, logits_to_keep=1):
                inputs = nnsight.save(clean_inputs(layers, n_layers, ask["start"], ask["enters_after"], ask["causal"]))
        with filled.trace(**ask["corrupt"], **cached(model, DynamicCache()), use_cache=True, logits_to_keep=1):
            if not ask["apart"]:
                inputs = nnsight.save(clean_inputs(layers, n_layers, ask["start"], ask["enters_after"], ask["causal"]))
            cache = nnsight.save(cache_of(model.output))
        with model.trace(**ask["clean"], use_cache=False, logits_to_keep=1):
            values = nnsight.save(read_clean(n_layers, sites, ask["names"], ask["positions"]))
        places = {position: row for row, position in enumerate(ask["positions"])}
        return cells_of(model, layers, sites, chunks, ask["start"], inputs, cache, values, places, token, reading)
