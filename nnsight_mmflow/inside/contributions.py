"""Attention contributions of single queries, recomputed from keys and values. Ships to servers by value.

What position i takes from position j in a layer is the sum over heads of weight(i, j) * value(j) through the output
projection. Weights are recomputed for the queries asked for alone, from the layer's own projections, rotary embedding
and mask, so that the attention implementation need not be changed and no full map is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow.inside.called import matrix_of
from nnsight_mmflow.inside.heads import attention_weights
from nnsight_mmflow.inside.masks import layer_mask

if TYPE_CHECKING:  # the tests check the shapes; a server need not have jaxtyping
    from jaxtyping import Float
    from nnsight import Envoy

    from nnsight_mmflow.inside.heads import QueryKeyReader


@dataclass(frozen=True)
class Contributions:
    """One layer's contributions to a few queries.

    Attributes:
        norm: (queries, sources): norm of the sum over heads.
        head_norm: (heads, queries, sources): norm of each head's share.
        weight: (heads, queries, sources): attention weights.
        projection: (queries, sources): of the sum over heads on each query's direction.
        whole: (queries,): sum of the norms over all positions, for shares.
        error: largest difference between the sum over all positions and the attention's real output.
        scale: largest number of the attention's real output, to compare the error with.
        dtype: of the attention's real output, such as "bfloat16"; what error is allowed depends on it.
    """

    norm: Float[torch.Tensor, "queries sources"]
    head_norm: Float[torch.Tensor, "heads queries sources"]
    weight: Float[torch.Tensor, "heads queries sources"]
    projection: Float[torch.Tensor, "queries sources"]
    whole: torch.Tensor
    error: float
    scale: float
    dtype: str


def plain_values(contributions: Contributions) -> dict[str, object]:
    """What a server can return of them: tensors without their gradients' history, and numbers."""
    return {
        name: value.detach().cpu() if isinstance(value, torch.Tensor) else value
        for name, value in vars(contributions).items()
    }


def answer_direction(unembed: Envoy, token: int, hidden: torch.Tensor) -> torch.Tensor:
    """Inside a trace: the unit vector along which a token's logit grows; `hidden` is like what goes in there."""
    row = matrix_of(unembed, hidden.shape[-1], hidden, slice(token, token + 1))[0][0].float()
    return row / row.norm()


def read_contributions(
    layers: Envoy,
    reader: QueryKeyReader,
    attentions: list[Envoy],
    outs: list[Envoy],
    unembed: Envoy,
    tokens: list[int],
    queries: list[int],
    sources: list[int],
    cap: float | None,
    causal: bool,
) -> list[Contributions]:
    """Inside a trace without a cache: the contributions of every layer.

    Args:
        layers: the decoder layers.
        reader: of queries, keys and values.
        attentions: each layer's attention.
        outs: each layer's output projection.
        unembed: the unembedding.
        tokens: for each query the one on whose direction there its contributions are projected: what it answers.
        queries: positions that read.
        sources: positions that are read.
        cap: where the family squeezes its scores, the cap.
        causal: what a layer does that is handed no mask.
    """
    contributions = []
    for layer, attention in enumerate(attentions):
        arguments, named = layers[layer].inputs
        hidden, rotary = arguments[0], named["position_embeddings"]
        if not layer:
            each = {token: answer_direction(unembed, token, hidden) for token in dict.fromkeys(tokens)}
            directions = torch.stack([each[token] for token in tokens])
        mask = layer_mask(named.get("attention_mask"), hidden, 0, causal)[0, 0, queries]
        query, key = reader.read(layer, "previous", hidden, rotary)
        values = reader.value(layer)[0]
        weight = attention_weights(query[0][:, queries], key[0], mask, attention._module.scaling, cap).to(values)
        real = attention.output[0][0, queries]
        out, bias = matrix_of(outs[layer], len(values) * values.shape[-1], values)
        contributions.append(_reduced(weight, values, out, bias, real, sources, directions))
    return contributions


def _reduced(
    weight: Float[torch.Tensor, "heads queries keys"],
    values: Float[torch.Tensor, "heads keys width"],
    out: Float[torch.Tensor, "model heads_width"],
    bias: torch.Tensor,
    real: Float[torch.Tensor, "queries model"],
    sources: list[int],
    directions: Float[torch.Tensor, "queries model"],
) -> Contributions:
    """The numbers of one layer; query by query, so that no (queries, keys, heads, model) tensor is made."""
    heads, queries, keys = weight.shape
    split = out.view(out.shape[0], heads, -1).float()
    norm, head_norm, projection, whole = [], [], [], []
    error = 0.0
    for query in range(queries):
        summed, each = out.new_zeros(keys, out.shape[0], dtype=torch.float32), []
        for head in range(heads):  # one after another: (heads, keys, model) would be large
            share = (weight[head, query, :, None] * values[head]).float() @ split[:, head].T
            summed += share
            each.append(share[sources].norm(dim=-1))
        norm.append(summed[sources].norm(dim=-1))
        head_norm.append(torch.stack(each))
        projection.append(summed[sources] @ directions[query].to(summed))
        whole.append(summed.norm(dim=-1).sum())
        total = summed.sum(0) + bias.float()
        error = max(error, float((total - real[query].float()).abs().max()))
    return Contributions(
        torch.stack(norm).cpu(),
        torch.stack(head_norm, 1).cpu(),
        weight[:, :, sources].float().cpu(),
        torch.stack(projection).cpu(),
        torch.stack(whole).cpu(),
        error,
        float(real.float().abs().max()),
        str(real.dtype).removeprefix("torch."),
    )
