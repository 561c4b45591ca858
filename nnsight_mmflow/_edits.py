"""What a pattern does to single tensors, said once for TransformerLens: at a hook point, or to a layer's mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._masks import close

if TYPE_CHECKING:
    import torch

    from nnsight_mmflow._row_spans import Spans

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
    """Attention edges of a layer that close.

    Attributes:
        layer: the layer.
        change: from the additive mask, or the scores, (batch, 1 or heads, queries, keys) to (the same with the edges
            closed, how many were open).
    """

    layer: int
    change: Callable[[torch.Tensor], tuple[torch.Tensor, int]]


Edit = HookEdit | MaskEdit


def closing(
    layer: int, prefill: Edges, steps: Edges | None, length: int, heads: list[int] | None, n_heads: int
) -> MaskEdit:
    """Closes edges in the prompt's forward and, if given, in each later step.

    Args:
        layer: the layer.
        prefill: for each row its target queries and source keys, in the prompt's forward; empty lists: none.
        steps: the same for a step of one query.
        length: the prompt's, padding included.
        heads: the heads; None for all.
        n_heads: how many there are.
    """

    def change(mask: torch.Tensor) -> tuple[torch.Tensor, int]:
        edges = prefill if mask.shape[-2] == length else steps
        if not edges:
            return mask, 0
        closed, changed, starved = close(mask, edges, heads, n_heads)
        if starved:
            raise MMFlowError(
                f"the patterns together leave {starved} position(s) of layer {layer} nothing to read, and softmax needs"
                " a key. Leave the first position out of one source."
            )
        return closed, changed

    return MaskEdit(layer, change)


def row_length(rows: tuple[Spans, ...]) -> int:
    """The prompt's length, padding included."""
    return rows[0]["all"].row[1]
