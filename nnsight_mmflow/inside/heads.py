"""Queries and keys of a layer, rotated, inside a trace, whatever the attention implementation. Ships by value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from nnsight_mmflow.inside.roles import Roles

ALLOWED = {"float32": 1e-4, "float64": 1e-6}  # of the largest number, for what is computed again here; halves: 0.02


@dataclass(frozen=True)
class QueryKeyReader:
    """Reads queries and keys of a graph's layers."""

    graph: Roles

    def read(
        self, layer: int, which: str, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, heads, positions, width) each, keys repeated to as many heads as queries.

        Args:
            layer: the layer.
            which: "previous" (it runs now: its own projections are read) or "next" (it has not run yet: its projections
                are called on what enters it).
            hidden: what enters it.
            rotary: (cosine, sine) at its positions.
        """
        attention = self.graph.attention(layer)
        if which == "previous":
            query, key = attention.q_proj.output, attention.k_proj.output
        else:
            normed = self.graph.layers[layer].input_layernorm(hidden)
            query, key = attention.q_proj(normed), attention.k_proj(normed)
        width = attention._module.head_dim
        query, key = (part.unflatten(-1, (-1, width)) for part in (query, key))
        if hasattr(attention._module, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        query, key = (rotated(part.transpose(1, 2), *rotary) for part in (query, key))
        return query, key.repeat_interleave(query.shape[1] // key.shape[1], 1)

    def value(self, layer: int) -> torch.Tensor:
        """(batch, heads, positions, width): values of a layer that runs now, repeated to as many heads as queries."""
        attention = self.graph.attention(layer)
        value = attention.v_proj.output.unflatten(-1, (-1, attention._module.head_dim)).transpose(1, 2)
        return value.repeat_interleave(self.graph.n_heads // value.shape[1], 1)

    def heads(self, layer: int) -> torch.Tensor:
        """(batch, positions, heads times width): the heads' results, one after another."""
        return self.graph.attention_out(layer).inputs[0][0]


def attention_weights(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor, scale: float, cap: float | None
) -> torch.Tensor:
    """(heads, queries, keys): the softmax of the scores, in float32.

    Args:
        query: (heads, queries, width), rotated.
        key: (heads, keys, width), rotated.
        mask: (queries, keys), or for each head (1 or heads, queries, keys); additive.
        scale: of the scores.
        cap: where the family squeezes its scores, the cap.
    """
    scores = torch.einsum("hqd,hkd->hqk", query.float(), key.float()) * scale
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    return (scores + mask.float()).softmax(-1)


def differs(error: float, largest: float, dtype: str) -> bool:
    """Whether what was computed again differs from the layer's own by more than its number type explains."""
    return not error <= ALLOWED.get(dtype, 0.02) * max(largest, 1e-3)


def rotated(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """(batch, heads, positions, width) with their rotary embedding; what lies behind its width passes."""
    rotary = cosine.shape[-1]
    part, rest = states[..., :rotary], states[..., rotary:]
    first, second = part.chunk(2, -1)
    turned = part * cosine[:, None] + torch.cat([-second, first], -1) * sine[:, None]
    return torch.cat([turned.to(rest), rest], -1)
