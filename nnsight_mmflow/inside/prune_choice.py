"""What pruning keeps: rankings put to what is present, and the hidden states of what is left. Ships by value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.forwards import factor_of
from nnsight_mmflow.inside.prune_masks import Table, seats
from nnsight_mmflow.inside.pruning import Kept, Row, Seen, Stage, Way, ranks_of

if TYPE_CHECKING:
    from nnsight_mmflow.inside.tower import TowerSeen


@dataclass(frozen=True)
class Pruned:
    """What a prompt's forward has left.

    Attributes:
        kept: what each layer keeps (None: all of it).
        tables: for each layer whose positions were counted anew, the whole prompt's rotary table; steps lengthen it.
        contents: for each layer before which tokens merged, each row's (image tokens, what they hold from then on).
    """

    kept: list[Kept | None] = field(default_factory=list)
    tables: dict[int, Table] = field(default_factory=dict)
    contents: dict[int, list[tuple[list[int], torch.Tensor]]] = field(default_factory=dict)


def everything(hidden: torch.Tensor, rows: Sequence[Row]) -> Kept:
    """What is there before anything has left."""
    every = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[0], -1)
    factor = factor_of(len(hidden), len(rows))
    inside = [every[i] >= rows[i // factor].real[0] for i in range(len(hidden))]
    return Kept(every, torch.stack(inside), every)


def of_prompt(found: Pruned, length: int) -> Pruned:
    """The same without the new tokens that a forward may hold behind the prompt (guesses of an assistant)."""
    kept = [
        one
        if one is None or int(one.index.max()) < length
        else Kept(one.index[:, :length], one.alive[:, :length], one.seat[:, :length])
        for one in found.kept
    ]
    return replace(found, kept=kept)


def longer(kept: Kept | None, length: int, rows: Sequence[Row], way: Way) -> Kept:
    """What is left of a prompt, with the tokens behind it that a forward of so many positions holds."""
    assert kept is not None
    every, prompt = torch.arange(length, device=kept.index.device), rows[0].real[1]
    more = every[prompt:].expand(len(kept.index), -1)
    index = torch.cat([kept.index, more], 1)
    alive = torch.cat([kept.alive, torch.ones_like(more, dtype=torch.bool)], 1)
    return Kept(index, alive, seats(index, alive, rows) if way.renumber else index)


def with_contents(
    hidden: torch.Tensor, present: Kept, contents: list[tuple[list[int], torch.Tensor]] | None
) -> torch.Tensor:
    """The hidden states with what merged tokens hold, at their places among what is present."""
    if contents is None:
        return hidden
    hidden = hidden.clone()
    for row, (places, content) in enumerate(contents):
        hidden[row, places] = content.to(hidden)
    return hidden


def cut_hidden(hidden: torch.Tensor, present: Kept, chosen: Kept) -> torch.Tensor:
    """The hidden states of what is chosen, out of what is present."""
    local = torch.searchsorted(present.index.contiguous(), chosen.index)
    return hidden.gather(1, local[..., None].expand(-1, -1, hidden.shape[2]))


def stages_by_layer(stages: Sequence[Sequence[Stage]]) -> dict[int, list[Stage]]:
    """For each layer before which tokens leave, the stage of each row."""
    layers = [sorted(stage.layer for stage in row) for row in stages]
    if any(one != layers[0] for one in layers):
        raise MMFlowError(f"the rows of a batch have stages before different layers: {layers}. Run them one by one.")
    return {layer: [next(one for one in row if one.layer == layer) for row in stages] for layer in layers[0]}


def choose(
    stages: Sequence[Stage],
    rows: Sequence[Row],
    present: Kept,
    hidden: torch.Tensor,
    entered: torch.Tensor,
    looks: tuple | None,
    way: Way,
    towers: Sequence[TowerSeen | None],
) -> tuple[Kept, torch.Tensor, list[tuple[list[int], torch.Tensor]] | None]:
    """(what is left after a stage, what enters, each row's merged contents).

    Where keys close, `index` keeps every position. Stages, rows and towers are those of the prompts; several rows that
    stand for one prompt hold the same, so that what is chosen for the first of them holds for all.
    """
    chosen: list[torch.Tensor] = []
    contents: list[tuple[list[int], torch.Tensor]] = []
    factor = factor_of(len(hidden), len(rows))
    for prompt, (stage, row) in enumerate(zip(stages, rows, strict=True)):
        i = prompt * factor
        index, alive = present.index[i].tolist(), present.alive[i].tolist()
        where = {position: local for local, (position, live) in enumerate(zip(index, alive, strict=True)) if live}
        image = [number for number, position in enumerate(row.image) if position in where]
        query, key, value, mask = (
            (None,) * 4 if looks is None else (None if part is None else part[i] for part in looks)
        )
        seen = Seen(
            [where[row.image[number]] for number in image],
            [where[position] for position in row.after],
            image,
            list(row.image),
            [row.places[number] for number in image],
            prompt,
            hidden[i],
            entered[i],
            index,
            query,
            key,
            None if mask is None else mask[0],
            way.scale,
            way.cap,
            value,
            towers[prompt],
        )
        ranks, content = ranks_of(stage.rank(seen), len(image), hidden.shape[-1])
        if content is not None:
            contents += [(seen.image, content)] * factor
        count = int((ranks > 0).sum()) if stage.exact else stage.count(len(image))
        best = ranks.topk(count).indices.tolist()
        kept = {row.image[image[number]] for number in best}
        leave = {row.image[number] for number in image} - kept
        chosen += [torch.tensor([position not in leave and position in where for position in index])] * factor
    hidden = with_contents(hidden, present, contents or None)
    alive = torch.stack(chosen).to(present.index.device)
    index = present.index
    if way.drop:
        size = int(alive.sum(1).max())
        # fill up with the first dead positions: padding, where there is any
        order = torch.argsort(alive.int(), dim=1, descending=True, stable=True)[:, :size].sort(1).values
        index, alive = index.gather(1, order), alive.gather(1, order)
    return Kept(index, alive, seats(index, alive, rows) if way.renumber else index), hidden, contents or None


def looks_of(found: tuple, mask: torch.Tensor, kept: Kept | None) -> tuple:
    """(query, key, value, mask) of the batch, the mask cut to what is present."""
    query, key, value = found
    mask = mask.expand(query.shape[0], -1, -1, -1)
    if kept is not None:
        batch = torch.arange(len(kept.index), device=mask.device)[:, None, None]
        mask = mask[batch, 0, kept.index[:, :, None], kept.index[:, None, :]][:, None].clone()
        mask.masked_fill_(~kept.alive[:, None, None], torch.finfo(mask.dtype).min)
    return query, key, value, mask
