"""What a pattern does to single tensors, said once for TransformerLens: at a hook point, or to a layer's mask."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.edges import check_starved
from nnsight_mmflow.inside.forwards import Held, factor_of
from nnsight_mmflow.inside.masks import add_to_edges

if TYPE_CHECKING:
    import torch

    from nnsight_mmflow.spans.row_spans import Spans

HOOK_POINTS = {
    "resid": "blocks.{}.hook_out",
    "attn": "blocks.{}.hook_attn_out",
    "heads": "blocks.{}.attn.hook_z",
    "mlp": "blocks.{}.hook_mlp_out",
    "embed": "blocks.0.hook_in",
}
Edges = list[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class HookEdit:
    """An edit of the tensor at a hook point.

    Attributes:
        name: the hook point.
        change: from the tensor to (what stands there instead, or None for no change; how many numbers changed).
    """

    name: str
    change: Callable[[torch.Tensor], tuple[torch.Tensor | None, int]]


@dataclass(frozen=True)
class MaskEdit:
    """Attention edges of a layer that close, or to whose scores something is added.

    Attributes:
        layer: the layer.
        change: from the additive mask, or the scores, (batch, 1 or heads, queries, keys) to (the same with the edges
            changed, how many were open).
    """

    layer: int
    change: Callable[[torch.Tensor], tuple[torch.Tensor, int]]


Edit = HookEdit | MaskEdit


@dataclass(frozen=True)
class MaskEdges:
    """Edges of a prompt's forward to whose attention scores a pattern adds a number, said without running anything.

    Attributes:
        layers: in which, in ascending order.
        edges: for each prompt its target and its source positions, counted in the (padded) prompt's row.
        amount: what is added, in nats; -inf closes the edges.
        heads: in which; None for all.
    """

    layers: tuple[int, ...]
    edges: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    amount: float = -math.inf
    heads: tuple[int, ...] | None = None


def adding(
    layer: int,
    edges: Callable[[Held], Edges | None],
    prompts: int,
    length: int,
    heads: list[int] | None,
    n_heads: int,
    amount: float,
) -> MaskEdit:
    """Adds a number to the scores of edges in each forward that holds their targets.

    Args:
        layer: the layer.
        edges: from what a forward holds to each row's target queries and source keys; None: it holds no target.
        prompts: how many the batch has.
        length: the prompt's, padding included.
        heads: the heads; None for all.
        n_heads: how many there are.
        amount: what is added; -inf closes the edges.
    """

    def change(mask: torch.Tensor) -> tuple[torch.Tensor, int]:
        rows, queries, keys = mask.shape[0], mask.shape[-2], mask.shape[-1]
        there = edges(Held(keys - queries, queries, length, factor_of(max(rows, prompts), prompts)))
        if there is None:
            return mask, 0
        made, changed, starved = add_to_edges(mask, there, heads, n_heads, amount)
        check_starved(starved, layer)
        return made, changed

    return MaskEdit(layer, change)


def held_by(tensor: torch.Tensor, prompts: int, length: int) -> Held:
    """What a forward of a bridge holds, of which one tensor (rows, positions, ...) is seen.

    A bridge's generations are checked before they start: each forward holds the whole sequence, or one new token.
    """
    rows, count = tensor.shape[:2]
    if 1 < count < length:
        raise MMFlowError(
            f"this forward of the bridge holds {count} positions, the prompt {length}: patterns need the whole prompt,"
            " or a new token alone. Use graph.generate, which knows which positions a forward holds."
        )
    return Held(length if count == 1 < length else 0, count, length, factor_of(rows, prompts))


def row_length(rows: tuple[Spans, ...]) -> int:
    """The prompt's length, padding included."""
    return rows[0]["all"].row[1]
