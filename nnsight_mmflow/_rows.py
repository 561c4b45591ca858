"""The row engine's inner parts: many knocked-out copies of a prompt's tail in one forward. Ships to servers by value.

Positions before the first blocked target do not change, so their keys and values are computed once and shared. The
rest of the prompt, the tail, is laid out once per row in one sequence: a row sees the prefix and itself, less the
edges that its window closes in this layer. A row whose window starts at layer s equals the clean run below s, so it
joins there, from the clean hidden state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # the tests check the shapes; a server need not have jaxtyping
    from jaxtyping import Bool, Float, Int
    from nnsight import Envoy
    from transformers import Cache


@dataclass(frozen=True)
class Rows:
    """One chunk of rows that share a tail, in the order in which they join.

    Attributes:
        start: where the tail starts: positions before it are the shared prefix.
        tail: how many positions each row has.
        windows: (first, end) layers in which each row's edges are closed; sorted by first.
        edges: for each row, which of `targets` and `sources` it closes.
        targets: for each edge the target positions, counted within the tail.
        sources: for each edge the source positions, counted within the prompt.
    """

    start: int
    tail: int
    windows: tuple[tuple[int, int], ...]
    edges: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]
    sources: tuple[tuple[int, ...], ...]

    def joined(self, layer: int) -> int:
        """How many rows there are in a layer; the first is there from the start, since a forward needs one."""
        return max(1, sum(first <= layer for first, _ in self.windows))


def open_mask(rows: Rows, like: Float[torch.Tensor, ...]) -> Float[torch.Tensor, "positions keys"]:
    """The mask (positions of all rows, prefix + positions of all rows) before any edge is closed."""
    count, tail = len(rows.windows), rows.tail
    shut = torch.finfo(like.dtype).min
    mask = torch.zeros(count * tail, rows.start + count * tail, dtype=like.dtype, device=like.device)
    own = torch.full((count, tail, count, tail), shut, dtype=like.dtype, device=like.device)
    each = torch.arange(count, device=like.device)
    own[each, :, each, :] = torch.full_like(own[0, :, 0], shut).triu(1)
    mask[:, rows.start :] = own.reshape(count * tail, -1)
    return mask


def closed_edges(rows: Rows, device: torch.device) -> Bool[torch.Tensor, "edges tail prefix_and_tail"]:
    """(edges, tail, prefix + tail): which keys each edge closes to each position of a row."""
    closed = torch.zeros(len(rows.targets), rows.tail, rows.start + rows.tail, dtype=torch.bool, device=device)
    for edge, (targets, sources) in enumerate(zip(rows.targets, rows.sources, strict=True)):
        query = torch.tensor(targets, device=device)
        key = torch.tensor(sources, device=device)
        closed[edge, query[:, None], key[None, :]] = True
    return closed


def mask_of_layer(
    rows: Rows,
    layer: int,
    opened: Float[torch.Tensor, "positions keys"],
    closed: Bool[torch.Tensor, "edges tail prefix_and_tail"],
) -> Float[torch.Tensor, "1 1 joined joined_keys"]:
    """The mask (1, 1, positions, prefix + positions) of the rows that have joined by this layer."""
    count, tail, start = rows.joined(layer), rows.tail, rows.start
    shut = torch.finfo(opened.dtype).min
    mask = opened[: count * tail, : start + count * tail].clone()
    active = [row for row in range(count) if rows.windows[row][0] <= layer < rows.windows[row][1]]
    if active:
        chosen = torch.tensor(active, device=mask.device)
        cut = closed[torch.tensor([rows.edges[row] for row in active], device=mask.device)]
        before = mask[:, :start].view(count, tail, start)
        before[chosen] = before[chosen].masked_fill(cut[..., :start], shut)
        within = mask[:, start:].unflatten(0, (count, tail)).unflatten(2, (count, tail))
        within[chosen, :, chosen, :] = within[chosen, :, chosen, :].masked_fill(cut[..., start:], shut)
    return mask[None, None]


def run_rows(
    layers: Envoy,
    rows: Rows,
    clean: list[Float[torch.Tensor, "1 tail width"]],
    opened: Float[torch.Tensor, "positions keys"],
    closed: Bool[torch.Tensor, "edges tail prefix_and_tail"],
) -> None:
    """Inside a trace of the first joined rows' positions: gives each layer its rows and their mask.

    Args:
        layers: the decoder layers.
        rows: the chunk.
        clean: for each layer the clean run's input at the tail's positions (1, tail, width).
        opened: from `open_mask`.
        closed: from `closed_edges`.
    """
    tail, present = rows.tail, 0
    for layer in range(len(clean)):
        arguments, named = layers[layer].inputs
        count = rows.joined(layer)
        hidden = arguments[0]
        joining = clean[layer].to(hidden).repeat(1, count - present, 1)
        hidden = torch.cat([hidden[:, : present * tail], joining], 1) if present else joining
        present = count
        cosine, sine = named["position_embeddings"]
        changed = {
            "attention_mask": mask_of_layer(rows, layer, opened, closed).to(hidden),
            "position_embeddings": (cosine[:, :tail].repeat(1, count, 1), sine[:, :tail].repeat(1, count, 1)),
            "position_ids": named["position_ids"][:, :tail].repeat(1, count),
        }
        layers[layer].inputs = ((hidden, *arguments[1:]), {**named, **changed})


def crop_cache(cache: Cache, length: int) -> None:
    """Cuts every layer of the cache back to its first `length` positions."""
    for layer in cache.layers:
        layer.crop(-(layer.get_seq_length() - length))


def clean_inputs(layers: Envoy, n_layers: int, start: int) -> list[Float[torch.Tensor, "1 tail width"]]:
    """Inside a trace: each layer's input from position `start` on."""
    kept = []
    for layer in range(n_layers):
        arguments, _ = layers[layer].inputs
        kept.append(arguments[0][:, start:].clone())
    return kept


def answer_numbers(
    logits: Float[torch.Tensor, "rows vocabulary"], token: Int[torch.Tensor, ""]
) -> Float[torch.Tensor, "rows 2"]:
    """(rows, 2) in double precision: log-probability of the token, and the id of the most likely one."""
    logits = logits.float().cpu().double()  # some devices have no double precision
    return torch.stack([logits.log_softmax(-1)[:, token.cpu()], logits.argmax(-1).double()], -1)
