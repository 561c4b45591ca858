"""Attention weights of chosen rows and columns, computed again inside a trace. Ships to servers by value.

sdpa and flash kernels hand out no weights. They are the softmax of the scores of rotated queries and keys under the
mask that the layer really uses: computed here, a few heads at a time, and cut to what was asked for before they leave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.heads import attention_weights
from nnsight_mmflow.inside.masks import layer_mask

if TYPE_CHECKING:  # the tests check the shapes; a server need not have jaxtyping
    from jaxtyping import Float
    from nnsight import Envoy

    from nnsight_mmflow.inside.heads import QueryKeyReader

LATER = 16  # a position that fewer later ones could read is never called a sink: neighbours read one another


@dataclass(frozen=True)
class LayerMap:
    """One layer's weights.

    Attributes:
        weights: (heads, targets, sources).
        received: (positions,): what a position gets from later ones, in multiples of an even share (see `received_by`).
        error: largest difference between weights times values and the heads' real results.
        scale: largest number of the heads' real results, to compare the error with.
        dtype: of the heads' real results, such as "bfloat16"; what error is allowed depends on it.
    """

    weights: Float[torch.Tensor, "heads targets sources"]
    received: torch.Tensor
    error: float
    scale: float
    dtype: str


def received_by(mean: Float[torch.Tensor, "queries keys"], readable: torch.Tensor) -> torch.Tensor:
    """(keys,): the median, over all later positions, of the weight in multiples of that position's even share.

    Args:
        mean: the weights, mean over heads.
        readable: (queries,): how many positions each may read; one part in as many is its even share.
    """
    shares = mean * readable[:, None]
    positions = torch.arange(len(mean), device=mean.device)
    later = positions[:, None] > positions[None]
    medians = shares.masked_fill(~later, float("nan")).nanmedian(0).values
    return medians.masked_fill(later.sum(0) < LATER, 0)


def read_maps(
    layers: Envoy,
    reader: QueryKeyReader,
    chosen: list[int],
    targets: list[int],
    sources: list[int],
    heads: list[int],
    positions: int,
    cap: float | None,
    causal: bool,
    chunk: int,
) -> list[dict]:
    """Inside a trace without a cache: a LayerMap of each chosen layer, as plain values.

    Args:
        layers: the decoder layers.
        reader: of queries, keys and values.
        chosen: the layers to read.
        targets: positions that read.
        sources: positions that are read.
        heads: the heads whose weights are kept.
        positions: how many the prompt has.
        cap: where the family squeezes its scores, the cap.
        causal: what a layer does that is handed no mask.
        chunk: heads at a time.

    Raises:
        MMFlowError: a layer that runs with other positions than the prompt's.
    """
    maps = []
    for layer in chosen:
        arguments, named = layers[layer].inputs
        hidden = arguments[0]
        if hidden.shape[1] != positions:
            raise MMFlowError(
                f"layer {layer} runs with {hidden.shape[1]} positions, the prompt has {positions}: a pattern drops"
                " tokens, so rows and columns would be misnamed. Give that pattern mode='mask', or read earlier layers."
            )
        mask = layer_mask(named.get("attention_mask"), hidden, 0, causal)[0]
        query, key = reader.read(layer, "previous", hidden, named["position_embeddings"])
        value, real = reader.value(layer)[0].float(), reader.heads(layer)[0, targets]
        dtype = str(real.dtype).removeprefix("torch.")
        real = real.unflatten(-1, (query.shape[1], -1)).transpose(0, 1).float()
        scale = reader.graph.attention(layer)._module.scaling
        kept, mean, error = [], query.new_zeros(positions, positions, dtype=torch.float32), 0.0
        for first in range(0, query.shape[1], chunk):
            part = slice(first, min(first + chunk, query.shape[1]))
            closed = mask[part] if len(mask) > 1 else mask
            weight = attention_weights(query[0, part], key[0, part], closed, scale, cap)
            mean += weight.detach().sum(0) / query.shape[1]
            rows = weight[:, targets]
            error = max(error, float((rows @ value[part] - real[part]).detach().abs().max()))
            mine = [head - first for head in heads if part.start <= head < part.stop]
            kept.append(rows[mine][:, :, sources].detach().cpu())  # a server may follow gradients
        readable = (mask > torch.finfo(mask.dtype).min / 2).any(0).sum(-1)
        received = received_by(mean.detach(), readable).cpu()
        of_layer = LayerMap(torch.cat(kept), received, error, float(real.detach().abs().max()), dtype)
        maps.append(dict(vars(of_layer)))  # a server cannot return our classes
    return maps
