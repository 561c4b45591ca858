"""Pruning inside a trace: what each layer is handed, in the prompt's forward and in each later step. Ships by value."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._masks import layer_mask
from nnsight_mmflow._prune import Kept, Row, Seen, Stage

if TYPE_CHECKING:
    from nnsight import Envoy


def prune_prefill(
    layers: Envoy,
    n_layers: int,
    read: Callable[[int, str, torch.Tensor, tuple[torch.Tensor, torch.Tensor]], tuple],
    stages: list[Stage],
    rows: list[Row],
    drop: bool,
    causal: bool,
    scale: float,
    cap: float | None,
) -> list[Kept | None]:
    """Inside a trace of the prompt: prunes, and returns what each layer keeps (None: all of it).

    Args:
        layers: the decoder layers.
        n_layers: how many there are.
        read: gives rotated queries and keys of a layer, (batch, heads, positions, width) each.
        stages: in order of their layers.
        rows: the prompts.
        drop: tokens leave the sequence; else their keys are closed.
        causal: what a layer does that is handed no mask.
        scale: of the attention scores.
        cap: where the family squeezes its scores, the cap.
    """
    by_layer = {stage.layer: stage for stage in stages}
    present: Kept | None = None  # what the ranking sees as present
    seen_before: tuple | None = None
    found: list[Kept | None] = []
    shared: dict[tuple[str, int], tuple] = {}  # with what it was made of, so that no id is given away twice
    for layer in range(n_layers):
        arguments, named = layers[layer].inputs
        hidden = arguments[0]
        if present is None:
            entered = hidden
            whole = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[0], -1)
            inside = [(whole[i] >= row.real[0]) & (whole[i] < row.real[1]) for i, row in enumerate(rows)]
            present = Kept(whole, torch.stack(inside))
        stage = by_layer.get(layer)
        if stage is not None:
            if stage.reads == "next":
                old = found[-1] if found and drop else None
                mask = layer_mask(named.get("attention_mask"), _whole(hidden, named, old), 0, causal)
                if not drop and found and found[-1] is not None:
                    mask = _closed_mask(named.get("attention_mask"), hidden, found[-1], causal)
                seen_before = _looks(read(layer, "next", hidden, _rotary(named, old)), mask, old)
            chosen = _choose(stage, rows, present, hidden, entered, seen_before, drop, scale, cap)
            if drop:
                local = torch.searchsorted(present.index.contiguous(), chosen.index)
                hidden = hidden.gather(1, local[..., None].expand(-1, -1, hidden.shape[2]))
            present = chosen
            shared.clear()
        found.append(present if any(one.layer <= layer for one in stages) else None)
        kept, handed = found[-1], named.get("attention_mask")
        if kept is not None:
            changed, key = dict(named), ("mask", id(handed))  # layers mostly share masks and rotary tables
            if key not in shared:
                cut = _cut_mask(handed, hidden, kept, causal) if drop else _closed_mask(handed, hidden, kept, causal)
                shared[key] = (handed, cut)
            changed["attention_mask"] = shared[key][1]
            if drop:
                key = ("rotary", id(named["position_embeddings"]))
                if key not in shared:
                    shared[key] = (named["position_embeddings"], _rotary(named, kept))
                changed["position_embeddings"] = shared[key][1]
                places = named.get("position_ids")
                if places is not None:
                    index = kept.index if places.ndim == 2 else kept.index.expand(places.shape[0], -1, -1)
                    changed["position_ids"] = places.expand(*index.shape[:-1], -1).gather(-1, index)
            layers[layer].inputs = ((hidden, *arguments[1:]), changed)
        following = by_layer.get(layer + 1)
        if following is not None and following.reads == "previous":
            now = kept if drop else None
            mask = layer_mask(handed, _whole(hidden, named, now), 0, causal)
            if not drop and kept is not None:
                mask = _closed_mask(handed, hidden, kept, causal)
            seen_before = _looks(read(layer, "previous", hidden, _rotary(named, now)), mask, now)
    return found


def prune_step(layers: Envoy, found: list[Kept | None], length: int, drop: bool, causal: bool) -> None:
    """Inside a trace of one decode step: gives each layer that has lost tokens a mask over what it holds.

    Args:
        layers: the decoder layers.
        found: what each layer kept of the prompt.
        length: the prompt's length, padding included.
        drop: whether tokens left the sequence; else their keys are closed.
        causal: what a layer does that is handed no mask.
    """
    for layer, kept in enumerate(found):
        if kept is None:
            continue
        arguments, named = layers[layer].inputs
        hidden, mask = arguments[0], named.get("attention_mask")
        held = named["past_key_values"].get_seq_length(layer)
        if drop:
            if mask is None and bool(kept.alive.all()):
                continue
            later = held - kept.index.shape[1] + hidden.shape[1]  # tokens written since, this one included
            closed = torch.finfo(hidden.dtype).min
            made = hidden.new_zeros(kept.index.shape[0], 1, hidden.shape[1], kept.index.shape[1] + later)
            made[..., : kept.index.shape[1]].masked_fill_(~kept.alive[:, None, None], closed)
        else:
            made = layer_mask(mask, hidden, held, causal).expand(hidden.shape[0], -1, -1, -1).clone()
            made[..., :length].masked_fill_(_gone(kept, length)[:, None, None], torch.finfo(made.dtype).min)
        layers[layer].inputs = (arguments, {**named, "attention_mask": made})


def _choose(
    stage: Stage,
    rows: list[Row],
    present: Kept,
    hidden: torch.Tensor,
    entered: torch.Tensor,
    looks: tuple | None,
    drop: bool,
    scale: float,
    cap: float | None,
) -> Kept:
    """What is left after a stage. In the closing mode `index` keeps every position, and the dead are not alive."""
    chosen: list[torch.Tensor] = []
    for i, row in enumerate(rows):
        index, alive = present.index[i].tolist(), present.alive[i].tolist()
        where = {position: local for local, (position, live) in enumerate(zip(index, alive, strict=True)) if live}
        image = [number for number, position in enumerate(row.image) if position in where]
        query, key, mask = (None, None, None) if looks is None else (part[i] for part in looks)
        seen = Seen(
            [where[row.image[number]] for number in image],
            [where[position] for position in row.after],
            image,
            list(row.image),
            [row.places[number] for number in image],
            i,
            hidden[i],
            entered[i],
            index,
            query,
            key,
            None if mask is None else mask[0],
            scale,
            cap,
        )
        ranks = stage.rank(seen)
        count = int((ranks > 0).sum()) if stage.exact else stage.count(len(image))
        best = ranks.topk(count).indices.tolist()
        kept = {row.image[image[number]] for number in best}
        gone = {row.image[number] for number in image} - kept
        chosen.append(torch.tensor([position not in gone and position in where for position in index]))
    alive = torch.stack(chosen).to(present.index.device)
    if not drop:
        return Kept(present.index, alive)
    size = int(alive.sum(1).max())
    # fill up with the first dead positions: padding, where there is any
    order = torch.argsort(alive.int(), dim=1, descending=True, stable=True)[:, :size].sort(1).values
    return Kept(present.index.gather(1, order), alive.gather(1, order))


def _whole(hidden: torch.Tensor, named: dict, kept: Kept | None) -> torch.Tensor:
    """Something of the whole prompt's length with the hidden states' type, to build the whole mask for."""
    if kept is None:
        return hidden
    length = named["position_embeddings"][0].shape[-2]
    return hidden[:, :1].expand(-1, length, -1)


def _rotary(named: dict, kept: Kept | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The rotary table at the positions that are left."""
    cosine, sine = named["position_embeddings"]
    if kept is None:
        return cosine, sine
    index = kept.index[..., None].expand(-1, -1, cosine.shape[-1])
    return tuple(part.expand(len(index), -1, -1).gather(1, index) for part in (cosine, sine))


def _cut_mask(handed: torch.Tensor | None, hidden: torch.Tensor, kept: Kept, causal: bool) -> torch.Tensor | None:
    """The layer's mask over the positions that are left; None where the layer was handed none and nothing fills up."""
    if handed is None and bool(kept.alive.all()):
        return None
    length = int(kept.index.max()) + 1 if handed is None else handed.shape[-2]
    whole = layer_mask(handed, hidden[:, :1].expand(-1, length, -1), 0, causal)
    whole = whole.expand(len(kept.index), -1, -1, -1)
    batch = torch.arange(len(kept.index), device=hidden.device)[:, None, None]
    cut = whole[batch, 0, kept.index[:, :, None], kept.index[:, None, :]][:, None].clone()
    cut.masked_fill_(~kept.alive[:, None, None], torch.finfo(cut.dtype).min)
    return _finite(cut)


def _closed_mask(handed: torch.Tensor | None, hidden: torch.Tensor, kept: Kept, causal: bool) -> torch.Tensor:
    """The layer's mask with the keys of dropped tokens closed; those that are dropped still read themselves."""
    mask = layer_mask(handed, hidden, 0, causal).expand(hidden.shape[0], -1, -1, -1).clone()
    gone = _gone(kept, hidden.shape[1])
    mask.masked_fill_(gone[:, None, None], torch.finfo(mask.dtype).min)
    return _finite(mask)


def _gone(kept: Kept, length: int) -> torch.Tensor:
    """(batch, length): the positions that are not alive."""
    alive = torch.zeros(len(kept.index), length, dtype=torch.bool, device=kept.index.device)
    return ~alive.scatter(1, kept.index, kept.alive)


def _finite(mask: torch.Tensor) -> torch.Tensor:
    """Queries without any open key (dead ones) read themselves: nothing reads them."""
    starved = (mask > torch.finfo(mask.dtype).min / 2).any(-1).logical_not()
    diagonal = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)[None, None]
    return mask.masked_fill(starved[..., None] & diagonal, 0)


def _looks(found: tuple, mask: torch.Tensor, kept: Kept | None) -> tuple:
    """(query, key, mask) for each row, the mask cut to what is present."""
    query, key = found
    mask = mask.expand(query.shape[0], -1, -1, -1)
    if kept is not None:
        batch = torch.arange(len(kept.index), device=mask.device)[:, None, None]
        mask = mask[batch, 0, kept.index[:, :, None], kept.index[:, None, :]][:, None].clone()
        mask.masked_fill_(~kept.alive[:, None, None], torch.finfo(mask.dtype).min)
    return query, key, mask
