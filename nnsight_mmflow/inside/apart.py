"""Attention computed by a pattern itself, where blocks run in a process apart from the model's. Ships by value.

NDIF runs ordinary keys' blocks so: what is read there is a copy, and the copy is written back. A layer whose inputs
are read fills a copy of its cache, and in a generation the tokens after it would not see what it wrote. So in a
generation patterns read queries, keys and values behind the cache, attend by themselves, and skip the layer's own
attention. The layer's mask, which comes with its inputs, is not read but said by the prompt's layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow.inside.masks import layer_mask
from nnsight_mmflow.inside.names import ATTEND, ROTARY, UPDATE, operation

if TYPE_CHECKING:
    from jaxtyping import Float
    from nnsight import Envoy


@dataclass(frozen=True)
class Layout:
    """What positions may read in each layer, and how scores become weights; plain values.

    Attributes:
        rows: (first, end) of each row's real positions; all rows end together. As many rows as the model runs.
        blocks: for each row the stretches whose positions read one another backwards and forwards.
        windows: for each layer how far back it reads; None: as far as there is anything.
        windowed_blocks: whether a window also bounds what the positions of a block read.
        scale: of the attention scores.
        cap: where the family squeezes its scores, the cap.
        query: the operation whose output holds the rotated queries; "" for the first part of the rotation's own.
        unmasked: whether layers are handed no mask at all while nothing has left the sequence.
        factor: rows for each prompt: row r belongs to prompt r // factor.
    """

    rows: tuple[tuple[int, int], ...]
    blocks: tuple[tuple[tuple[int, int], ...], ...]
    windows: tuple[int | None, ...]
    windowed_blocks: bool
    scale: float
    cap: float | None
    query: str
    unmasked: bool
    factor: int = 1

    @property
    def length(self) -> int:
        """Positions of the padded prompt."""
        return self.rows[0][1]


def own_mask(
    layout: Layout, layer: int, queries: range, keys: range, like: Float[torch.Tensor, "*any"]
) -> Float[torch.Tensor, "rows one queries keys"]:
    """(rows, 1, queries, keys): the mask that the layer uses, additive, on positions of the padded sequence.

    Args:
        layout: of the prompt.
        layer: the number of the layer.
        queries: the positions that read.
        keys: the positions that are read.
        like: gives type and device.
    """
    query = torch.arange(queries.start, queries.stop, device=like.device)[:, None]
    key = torch.arange(keys.start, keys.stop, device=like.device)[None]
    window = layout.windows[layer]
    near = torch.ones_like(query - key, dtype=torch.bool) if window is None else query - key < window
    found = []
    for (first, _), blocks in zip(layout.rows, layout.blocks, strict=True):
        row = (key <= query) & near
        for start, end in blocks:
            inside = (query >= start) & (query < end) & (key >= start) & (key < end)
            row = row | (inside & near if layout.windowed_blocks else inside)
        found.append(row & (key >= first))
    hidden = like.new_zeros(len(found), len(queries), 1)
    return layer_mask(torch.stack(found)[:, None], hidden, len(keys) - len(queries))


def read_attention(
    attention: Envoy, layout: Layout
) -> tuple[
    Float[torch.Tensor, "batch heads queries width"],
    Float[torch.Tensor, "batch groups keys width"],
    Float[torch.Tensor, "batch groups keys width"],
]:
    """Inside a generation: rotated queries, and the keys and values that the layer's cache gives with these."""
    turned = operation(attention, ROTARY).output[0]
    query = operation(attention, (layout.query,)).output if layout.query else turned
    key, value = operation(attention, UPDATE).output
    return query, key, value


def write_attention(
    attention: Envoy,
    query: Float[torch.Tensor, "batch heads queries width"],
    key: Float[torch.Tensor, "batch groups keys width"],
    value: Float[torch.Tensor, "batch groups keys width"],
    mask: Float[torch.Tensor, "#batch #heads queries keys"],
    layout: Layout,
) -> None:
    """Inside a generation: the heads' results under a mask, in place of the layer's own attention."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if layout.cap is None:
        results = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask.to(query), scale=layout.scale
        )
    else:
        scores = torch.tanh(query @ key.transpose(2, 3) * layout.scale / layout.cap) * layout.cap
        results = (scores + mask.to(scores)).float().softmax(-1).to(value) @ value
    operation(attention, ATTEND).skip((results.transpose(1, 2), None))
