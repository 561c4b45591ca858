"""Attention masks per layer, exact under eager and sdpa. Runs inside traces, so it ships to servers by value.

Under sdpa without padding a layer gets no mask at all; a bool mask is right under sdpa and silently wrong under eager,
where it is added. So every edit starts from the float mask that the layer would really have used.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError

if TYPE_CHECKING:  # the tests check the shapes; a server need not have jaxtyping
    from jaxtyping import Bool, Float
    from transformers import Cache


def layer_mask(
    mask: Float[torch.Tensor, "#batch #heads queries any_keys"]
    | Bool[torch.Tensor, "#batch #heads queries any_keys"]
    | None,
    hidden: Float[torch.Tensor, "batch queries width"],
    past: int,
    causal: bool = True,
    room: int | None = None,
) -> Float[torch.Tensor, "#batch #heads queries keys"]:
    """The additive mask (batch, 1, queries, keys) that a layer uses: 0 is open, the dtype's minimum closed.

    Args:
        mask: what the layer was handed: None, bool (True is open), or float.
        hidden: the layer's input (batch, queries, width); gives type and device.
        past: how many keys the layer's cache holds already.
        causal: what a layer does that is handed None: read backwards alone, or everything (PaliGemma).
        room: keys of a cache that has its full size from the start; None: as many as there are.
    """
    closed = torch.finfo(hidden.dtype).min
    queries = hidden.shape[1]
    keys = past + queries if room is None else room
    if mask is None:
        built = torch.full((queries, keys), closed, dtype=hidden.dtype, device=hidden.device)
        if causal:
            built = built.triu(past + 1)
        else:
            built[:, : past + queries] = 0
        return built[None, None].expand(hidden.shape[0], 1, -1, -1)
    mask = mask[..., :keys].to(hidden.device)
    if mask.dtype == torch.bool:
        zero = torch.zeros((), dtype=hidden.dtype, device=hidden.device)
        mask = torch.where(mask, zero, closed)
    # A query without any open key is padding: opened, so that it stays finite in half precision. Nothing reads it.
    padding = (mask > closed / 2).any(-1, keepdim=True).logical_not()
    return mask.to(hidden.dtype).masked_fill(padding, 0)


def add_to_edges(
    mask: Float[torch.Tensor, "#batch #heads queries keys"],
    edges: list[tuple[list[int], list[int]]],
    heads: list[int] | None,
    n_heads: int,
    amount: float = -math.inf,
) -> tuple[Float[torch.Tensor, "rows mask_heads queries keys"], int, int]:
    """A copy of the mask with a number added to open edges, how many it tells on, and how many queries lost all keys.

    Args:
        mask: (batch, 1 or heads, queries, keys), additive.
        edges: for each row of the batch its target queries and source keys, as indices into the mask.
        heads: the heads in which; None for all.
        n_heads: the number of heads.
        amount: what is added; -inf closes the edges.
    """
    closed = torch.finfo(mask.dtype).min
    shape = (len(edges), *mask.shape[1:])
    mask = mask.expand(*shape) if heads is None else mask.expand(len(edges), n_heads, *mask.shape[2:])
    mask = mask.clone()
    changed = starved = 0
    chosen = torch.arange(mask.shape[1]) if heads is None else torch.tensor(heads)
    chosen = chosen.to(mask.device)
    for row, (targets, sources) in enumerate(edges):
        if not targets or not sources:
            continue
        query = torch.tensor(targets, device=mask.device)
        key = torch.tensor(sources, device=mask.device)
        rows = mask[row, chosen[:, None], query[None, :]]
        block = rows[:, :, key]
        is_open = block > closed / 2
        if amount == -math.inf:
            rows[:, :, key] = closed
            changed += int(is_open.sum())
            starved += int((rows > closed / 2).any(-1).logical_not().sum())
        else:
            more = torch.where(is_open, block + amount, block)
            rows[:, :, key] = more
            # a number added to all that a query reads is nothing to the softmax
            others = (rows > closed / 2).sum(-1) > is_open.sum(-1)
            changed += int(((more != block) & others[..., None]).sum())
            check_size(more[is_open], amount)
        mask[row, chosen[:, None], query[None, :]] = rows
    return mask, changed, starved


def check_size(scores: Float[torch.Tensor, "*edges"], amount: float) -> None:
    """Refuses what was added to scores if half of what their type holds no longer holds them."""
    most = torch.finfo(scores.dtype).max / 2
    if not bool((scores.abs() < most).all()):
        raise MMFlowError(
            f"{amount} and what else is added to these scores go beyond {most:.3g}, half of what {scores.dtype} holds."
            " Take a smaller number; to close edges, use Knockout."
        )


def kept_keys(cache: Cache | None, layer: int) -> tuple[int, int]:
    """How many keys a layer's cache holds, and how many before them a sliding window has dropped already."""
    if cache is None:
        return 0, 0
    seen = int(cache.get_seq_length(layer))
    keys = getattr(cache.layers[layer], "keys", None) if layer < len(cache.layers) else None
    held = min(seen, keys.shape[-2]) if keys is not None and keys.ndim == 4 else seen
    return held, seen - held


def key_room(cache: Cache | None, layer: int) -> int | None:
    """How many keys a layer attends to whose cache has its full size from the start; None for one that grows."""
    if cache is None or layer >= len(cache.layers):
        return None
    room = getattr(cache.layers[layer], "max_cache_len", None)
    return None if room is None else int(room)
