"""Attention or MLPs silenced at some positions, layer by layer, inside a trace. Ships by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nnsight
import torch
from transformers import DynamicCache

from nnsight_mmflow._errors import NoEffectError
from nnsight_mmflow.inside.names import cache_of, cached
from nnsight_mmflow.inside.row_masks import Rows
from nnsight_mmflow.inside.rows import LayerInput, clean_inputs, crop_cache, enter_layer, prepared

if TYPE_CHECKING:
    from nnsight import Envoy, TransformersModel


def silence(module: Envoy, positions: list[int], is_tuple: bool) -> float:
    """Inside a trace: sets a module's output to zero at the positions, and returns the largest value there was."""
    output = module.output
    values = (output[0] if is_tuple else output).clone()
    largest = float(values[:, positions].abs().max())
    values[:, positions] = 0
    module.output = (values, *output[1:]) if is_tuple else values
    return largest


def run_silenced(
    layers: Envoy,
    rows: Rows,
    clean: list[LayerInput],
    opened: list[torch.Tensor],
    nowhere: torch.Tensor,
    silenced: dict[int, tuple[Envoy, bool]],
    positions: list[int],
) -> float:
    """Inside a trace of one row: hands each layer what it had in the clean run, and silences a module in some.

    Returns:
        The largest value that was set to zero.
    """
    present, largest = 0, 0.0
    for layer in range(len(clean)):
        present = enter_layer(layers, layer, rows, clean, opened, nowhere, present)
        if layer in silenced:
            module, is_tuple = silenced[layer]
            largest = max(largest, silence(module, positions, is_tuple))
    return largest


def words_of_each(
    model: TransformersModel,
    layers: Envoy,
    n_layers: int,
    inputs: dict[str, torch.Tensor],
    start: int,
    enters_after: int,
    causal: bool,
    apart: bool,
    cells: list[tuple[str, dict[int, tuple[Envoy, bool]]]],
    positions: list[int],
    top: int,
) -> list[list[list[int]]]:
    """Inside a session: the most likely ids at each position, plain and with each cell silenced.

    Args:
        model: the model.
        layers: its decoder layers.
        n_layers: how many layers there are.
        inputs: the prompt's tensors.
        start: the first position that is computed more than once.
        enters_after: of the model.
        causal: of the model.
        apart: whether blocks run in a process apart from the model's.
        cells: the name of a site, and by layer the module that is silenced, and whether its output is a tuple.
        positions: where the module is silenced, and words are read.
        top: how many ids.
    """
    likeliest = []
    with torch.no_grad():  # the caller's does not travel
        clean: list = []
        if apart:  # a layer whose inputs are read there is handed a copy of its cache
            with model.trace(**inputs, use_cache=False, logits_to_keep=1):
                clean = nnsight.save(clean_inputs(layers, n_layers, start, enters_after, causal))
        with model.trace(**inputs, **cached(model, DynamicCache()), use_cache=True, logits_to_keep=1):
            if not apart:
                clean = nnsight.save(clean_inputs(layers, n_layers, start, enters_after, causal))
            cache = nnsight.save(cache_of(model.output))
        tail = clean[0].hidden.shape[1]
        rows = Rows(start, tail, ((0, n_layers),))  # one row that closes no edge
        handed, nowhere, opened = prepared(clean, 0, rows)
        within = [position - start for position in positions]
        places = torch.arange(start, start + tail, device=handed[0].hidden.device)[None]
        for site, silenced in [("", {}), *cells]:
            crop_cache(cache, start)
            with model.trace(
                inputs_embeds=handed[0].hidden,
                position_ids=places,
                attention_mask=opened[0][None, None],
                **cached(model, cache),
                use_cache=True,
            ):
                largest = nnsight.save(run_silenced(layers, rows, handed, opened, nowhere, silenced, within))
                words = nnsight.save(model.output.logits[0, within].topk(top, -1).indices.cpu())
            if silenced and not largest:
                raise NoEffectError(f"the {site} output of layers {list(silenced)} is zero at these positions already.")
            likeliest.append(words.tolist())
    return likeliest
