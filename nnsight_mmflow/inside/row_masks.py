"""Rows that share a tail, the edges that each changes, and what that makes of each layer's mask. Ships by value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # the tests check the shapes; a server need not have jaxtyping
    from jaxtyping import Bool, Float


@dataclass(frozen=True)
class RowEdges:
    """Edges of attention to whose scores a row adds a number.

    Attributes:
        targets: the positions that read, counted within the tail.
        sources: the positions that they read, counted within the prompt.
        amount: what is added, in nats; -inf closes the edges, whatever else is added to them.
        heads: in which; None for all.
    """

    targets: tuple[int, ...]
    sources: tuple[int, ...]
    amount: float = -math.inf
    heads: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Rows:
    """One chunk of rows that share a tail, in the order in which they join.

    Attributes:
        start: where the tail starts: positions before it are the shared prefix.
        tail: how many positions each row has.
        windows: (first, end) layers in which each row is changed; sorted by first.
        edges: the different edges that rows change.
        changes: for each row (which of the edges, in which layers), several times; none: its masks stay as they are.
        n_heads: of the masks: the model's where an edge is changed in some heads, else 1.
    """

    start: int
    tail: int
    windows: tuple[tuple[int, int], ...]
    edges: tuple[RowEdges, ...] = ()
    changes: tuple[tuple[tuple[int, tuple[int, ...]], ...], ...] = ()
    n_heads: int = 1

    def joined(self, layer: int) -> int:
        """How many rows there are in a layer; the first is there from the start, since a forward needs one."""
        return max(1, sum(first <= layer for first, _ in self.windows))

    def changed(self, layer: int) -> dict[int, tuple[int, ...]]:
        """For each row that changes masks in a layer, which of the edges."""
        found = {
            row: tuple(edge for edge, layers in parts if layer in layers) for row, parts in enumerate(self.changes)
        }
        return {row: edges for row, edges in found.items() if edges}


def open_mask(rows: Rows, base: Float[torch.Tensor, "tail keys"]) -> Float[torch.Tensor, "positions all_keys"]:
    """The mask (positions of all rows, prefix + positions of all rows) before any edge is closed.

    Args:
        rows: the chunk.
        base: what the tail reads in the clean run (tail, prefix + tail).
    """
    count, tail = len(rows.windows), rows.tail
    mask = base.new_full((count * tail, rows.start + count * tail), torch.finfo(base.dtype).min)
    mask[:, : rows.start] = base[:, : rows.start].repeat(count, 1)
    each = torch.arange(count, device=base.device)
    own = mask[:, rows.start :].unflatten(0, (count, tail)).unflatten(2, (count, tail))
    own[each, :, each, :] = base[:, rows.start :]
    return mask


def edge_places(rows: Rows, device: torch.device) -> Bool[torch.Tensor, "edges tail prefix_and_tail"]:
    """(edges, tail, prefix + tail): which keys of which positions of a row each edge is about."""
    places = torch.zeros(len(rows.edges), rows.tail, rows.start + rows.tail, dtype=torch.bool, device=device)
    for number, edge in enumerate(rows.edges):
        query = torch.tensor(edge.targets, dtype=torch.long, device=device)
        key = torch.tensor(edge.sources, dtype=torch.long, device=device)
        places[number, query[:, None], key[None, :]] = True
    return places


def added(
    rows: Rows, edges: tuple[int, ...], places: Bool[torch.Tensor, "edges tail prefix_and_tail"], like: torch.Tensor
) -> Float[torch.Tensor, "heads tail prefix_and_tail"]:
    """(1 or heads, tail, prefix + tail): what some of the edges together add to the scores; `like` gives the type."""
    total = torch.zeros(rows.n_heads, *places.shape[1:], dtype=like.dtype, device=like.device)
    for number in edges:
        edge = rows.edges[number]
        heads = list(range(rows.n_heads)) if edge.heads is None else list(edge.heads)
        total[heads] += torch.zeros_like(total[0]).masked_fill(places[number], edge.amount)
    return total


def mask_of_layer(
    rows: Rows,
    layer: int,
    opened: Float[torch.Tensor, "positions keys"],
    places: Bool[torch.Tensor, "edges tail prefix_and_tail"],
) -> Float[torch.Tensor, "1 heads joined joined_keys"]:
    """The mask (1, 1 or heads, positions, prefix + positions) of the rows that have joined by this layer."""
    count, tail, start = rows.joined(layer), rows.tail, rows.start
    mask = opened[: count * tail, : start + count * tail].repeat(rows.n_heads, 1, 1)
    changed = {row: edges for row, edges in rows.changed(layer).items() if row < count}
    if changed:
        chosen = torch.tensor(list(changed), device=mask.device)
        made = {edges: added(rows, edges, places, mask) for edges in set(changed.values())}
        more = torch.stack([made[edges] for edges in changed.values()])  # (rows, heads, tail, prefix + tail)
        before = mask[..., :start].unflatten(1, (count, tail))
        before[:, chosen] = summed(before[:, chosen], more[..., :start].transpose(0, 1))
        within = mask[..., start:].unflatten(1, (count, tail)).unflatten(3, (count, tail))
        within[:, chosen, :, chosen, :] = summed(within[:, chosen, :, chosen, :], more[..., start:])
    return mask[None]


def summed(mask: Float[torch.Tensor, "*any"], more: Float[torch.Tensor, "*any"]) -> Float[torch.Tensor, "*any"]:
    """An additive mask with more added to it: what was closed stays so, and -inf closes."""
    shut = torch.finfo(mask.dtype).min
    return torch.where(more == -math.inf, shut, torch.where(mask > shut / 2, mask + more, mask))


def edge_effects(
    rows: Rows,
    edges: tuple[int, ...],
    base: Float[torch.Tensor, "tail keys"],
    places: Bool[torch.Tensor, "edges tail prefix_and_tail"],
) -> tuple[dict[int, int], int]:
    """For each of the edges how many open ones it changes, and how many positions are left with no key.

    Edges that close come first, as `mask_of_layer` has it: what they close is not there for the others.
    """
    reads = (base > torch.finfo(base.dtype).min / 2).expand(rows.n_heads, -1, -1)
    left, counts = reads.clone(), {}
    for number in sorted(edges, key=lambda number: rows.edges[number].amount != -math.inf):
        edge = rows.edges[number]
        heads = list(range(rows.n_heads)) if edge.heads is None else list(edge.heads)
        met = left[heads] & places[number]
        if edge.amount == -math.inf:
            left[heads] &= ~places[number]
        else:  # a number added to all that a position reads is nothing to the softmax
            met &= (left[heads] & ~places[number]).any(-1, keepdim=True)
        counts[number] = int(met.sum())
    return counts, int((reads.any(-1) & ~left.any(-1)).sum())
