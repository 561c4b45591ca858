"""Attention times gradient, reduced layer by layer inside one trace: no map of all layers is ever held. Ships by value.

The gradient by an attention weight is the gradient by its head's result, times the value it weighs: so weights, values
and the gradients by the heads' results (the inputs of the output projections) give weight times gradient exactly,
whatever the attention implementation; the weights are computed again from queries and keys, a few heads at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow.inside.heads import attention_weights
from nnsight_mmflow.inside.masks import layer_mask

if TYPE_CHECKING:
    from nnsight import Envoy

    from nnsight_mmflow.inside.heads import QueryKeyReader


@dataclass(frozen=True)
class Flows:
    """One layer's importance of flows, summed over blocks of (target, source) positions.

    Attributes:
        blocks: (spans, spans): summed importance, from span j to span i.
        received: (spans, positions): for each source position what it gives to each span.
    """

    blocks: torch.Tensor
    received: torch.Tensor


def weights_times_gradients(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    gradient: torch.Tensor,
    scale: float,
    cap: float | None,
    released: bool,
    chunk: int,
) -> torch.Tensor:
    """(positions, positions): |sum over heads of A * dL/dA|; released: the mean over heads of |A * A * dL/dA|.

    Args:
        query: (heads, positions, head width), rotated; `key` and `value` alike.
        key: see `query`.
        value: see `query`.
        mask: (positions, positions), additive.
        gradient: (heads, positions, head width), of the loss by the heads' results.
        scale: of the scores.
        cap: where the family squeezes its scores, the cap.
        released: as the released code computes it.
        chunk: heads at a time.
    """
    heads, positions = query.shape[:2]
    total = query.new_zeros(positions, positions, dtype=torch.float32)
    for first in range(0, heads, chunk):
        part = slice(first, min(first + chunk, heads))
        weight = attention_weights(query[part], key[part], mask, scale, cap)
        flow = weight * torch.einsum("hqd,hkd->hqk", gradient[part].float(), value[part].float())
        total += (weight * flow).abs().sum(0) / heads if released else flow.sum(0)
    return total if released else total.abs()


def read_flows(
    layers: Envoy,
    n_layers: int,
    reader: QueryKeyReader,
    model: Envoy,
    token: int,
    spans: list[list[int]],
    causal: bool,
    scale: float,
    cap: float | None,
    released: bool,
    chunk: int,
) -> tuple[float, list[Flows]]:
    """Inside a trace: the loss (minus the token's log-probability at the last position), and each layer's flows.

    Args:
        layers: the decoder layers.
        n_layers: how many there are.
        reader: of queries and keys.
        model: the model.
        token: the answer.
        spans: the positions of each span.
        causal: what a layer does that is handed no mask.
        scale: of the attention scores.
        cap: where the family squeezes its scores, the cap.
        released: as the released code computes it.
        chunk: heads at a time.
    """
    read, heads = [], []
    for layer in range(n_layers):
        arguments, named = layers[layer].inputs
        hidden = arguments[0]
        if layer == 0:  # so that there is a gradient where the weights take none
            hidden = hidden.detach().requires_grad_(True)
            layers[layer].inputs = ((hidden, *arguments[1:]), named)
        query, key = reader.read(layer, "previous", hidden, named["position_embeddings"])
        value = reader.value(layer)
        read.append((query[0].detach(), key[0].detach(), value[0].detach(), named.get("attention_mask")))
        heads.append(reader.heads(layer))
    logits = model.output.logits[0, -1].float()
    loss = -logits.log_softmax(-1)[token]
    gradients = torch.autograd.grad(loss, heads)
    flows = []
    for (query, key, value, handed), gradient in zip(read, gradients, strict=True):
        mask = layer_mask(handed, gradient, 0, causal)[0, 0]
        split = gradient[0].unflatten(-1, (query.shape[0], -1)).transpose(0, 1)
        flow = weights_times_gradients(query, key, value, mask, split, scale, cap, released, chunk)
        received = torch.stack([flow[rows].sum(0) for rows in spans])
        blocks = torch.stack([received[:, columns].sum(-1) for columns in spans], -1)
        flows.append(Flows(blocks.cpu(), received.cpu()))
    return float(loss.detach()), flows
