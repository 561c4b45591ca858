"""Masks and rotary tables of a layer that has lost tokens. Ships to servers by value."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nnsight_mmflow.inside.forwards import factor_of
from nnsight_mmflow.inside.masks import layer_mask
from nnsight_mmflow.inside.pruning import Kept, Row, Way

Table = tuple[torch.Tensor, torch.Tensor]


def seats(index: torch.Tensor, alive: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """(batch, kept): positions counted anew, from each row's first real one on."""
    factor = factor_of(len(index), len(rows))
    first = torch.tensor([rows[i // factor].real[0] for i in range(len(index))], device=index.device)[:, None]
    return first + (alive.long().cumsum(1) - 1).clamp(min=0)


def moved(
    tables: dict[int, Table], layer: int, kept: Kept, given: Table, shared: dict[tuple[int, int], tuple]
) -> Table:
    """The rotary table of a step, as many positions earlier as tokens have left; lengthens the layer's table."""
    before = tables[layer]
    key = (id(before), id(given))
    if key not in shared:
        batch = len(kept.index)
        longer = tuple(
            torch.cat([old.expand(batch, -1, -1), new.expand(batch, -1, -1)], 1)
            for old, new in zip(before, given, strict=True)
        )
        shared[key] = (before, given, longer)
    tables[layer] = table = shared[key][2]
    length, steps = table[0].shape[1], given[0].shape[1]
    # the last token is alive and is never dropped, so its seat tells how many have left
    left = kept.index[:, -1] - kept.seat[:, -1]
    at = torch.arange(length - steps, length, device=left.device) - left[:, None]
    at = at[..., None].expand(-1, -1, table[0].shape[-1])
    return table[0].gather(1, at), table[1].gather(1, at)


def cut_table(table: Table, kept: Kept) -> Table:
    """The rotary table at the positions that are left."""
    seat = kept.seat[..., None].expand(-1, -1, table[0].shape[-1])
    cosine, sine = (part.expand(len(seat), -1, -1).gather(1, seat) for part in table)
    return cosine, sine


def cut_mask(handed: torch.Tensor | None, hidden: torch.Tensor, kept: Kept, way: Way) -> torch.Tensor | None:
    """The layer's mask over the positions that are left; None where the layer was handed none and nothing fills up."""
    if handed is None and bool(kept.alive.all()):
        return None
    length = int(kept.index.max()) + 1 if handed is None else handed.shape[-2]
    mask = layer_mask(handed, hidden[:, :1].expand(-1, length, -1), 0, way.causal)
    mask = mask.expand(len(kept.index), -1, -1, -1)
    batch = torch.arange(len(kept.index), device=hidden.device)[:, None, None]
    cut = mask[batch, 0, kept.index[:, :, None], kept.index[:, None, :]][:, None].clone()
    cut.masked_fill_(~kept.alive[:, None, None], torch.finfo(cut.dtype).min)
    return finite(cut)


def closed_mask(
    handed: torch.Tensor | None, hidden: torch.Tensor, kept: Kept, way: Way, room: int | None = None
) -> torch.Tensor:
    """The layer's mask with the keys of dropped tokens closed; those that are dropped still read themselves."""
    mask = layer_mask(handed, hidden, 0, way.causal, room).expand(hidden.shape[0], -1, -1, -1).clone()
    missing = gone(kept, hidden.shape[1])
    mask[..., : missing.shape[1]].masked_fill_(missing[:, None, None], torch.finfo(mask.dtype).min)
    return finite(mask)


def gone(kept: Kept, length: int) -> torch.Tensor:
    """(batch, length): the positions that are not alive."""
    alive = torch.zeros(len(kept.index), length, dtype=torch.bool, device=kept.index.device)
    return ~alive.scatter(1, kept.index, kept.alive)


def finite(mask: torch.Tensor) -> torch.Tensor:
    """Queries without any open key (dead ones) read themselves: nothing reads them."""
    starved = (mask > torch.finfo(mask.dtype).min / 2).any(-1).logical_not()
    diagonal = torch.eye(*mask.shape[-2:], dtype=torch.bool, device=mask.device)[None, None]
    return mask.masked_fill(starved[..., None] & diagonal, 0)
