"""Image tokens leave the sequence between layers: the inner parts. Ships to servers by value.

A token that is dropped before layer K is in no layer from K on: not in the hidden states, the mask, the rotary table or
the cache. Positions stay those of the whole prompt. Rows of a batch keep as many positions each: where one keeps fewer
tokens, positions that are dead already fill up, and no query reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._kinds import came, number, whole
from nnsight_mmflow.inside.heads import attention_weights
from nnsight_mmflow.spans.geometry import Place

if TYPE_CHECKING:  # the tests check the shapes; a server need not have jaxtyping
    from jaxtyping import Bool, Float, Int

    from nnsight_mmflow.inside.tower import TowerSeen


@dataclass(frozen=True)
class Row:
    """One prompt of the batch, as positions of the padded row.

    Attributes:
        real: (first, end) of its real positions.
        image: its image tokens.
        after: the positions behind the last of them: the instruction.
        places: of each image token.
    """

    real: tuple[int, int]
    image: tuple[int, ...]
    after: tuple[int, ...]
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Kept:
    """What is left of a batch.

    Attributes:
        index: (batch, kept) positions of the padded prompt, in order.
        alive: (batch, kept) False where a position only fills up.
        seat: (batch, kept) the positions at which they read the rotary table: their own, or counted anew.
    """

    index: Int[torch.Tensor, "batch kept"]
    alive: Bool[torch.Tensor, "batch kept"]
    seat: Int[torch.Tensor, "batch kept"]


@dataclass(frozen=True)
class Way:
    """How a batch is pruned, whatever the method.

    Attributes:
        drop: tokens leave the sequence; else their keys are closed.
        renumber: positions are counted anew without the dropped tokens; else they stay.
        causal: what a layer does that is handed no mask.
        scale: of the attention scores.
        cap: where the family squeezes its scores, the cap.
    """

    drop: bool
    renumber: bool
    causal: bool
    scale: float
    cap: float | None


@dataclass(frozen=True)
class Seen:
    """What a ranking function sees of one row, before a layer whose input it shortens.

    Positions here count what is present in the sequence now.

    Attributes:
        image: the image tokens that are present.
        after: the instruction: positions behind the image.
        original: for each image token its number in the prompt's image, counted from 0.
        prompt_image: the positions of all the prompt's image tokens in the whole row.
        places: of each image token: image, view, tile, row, column, pixel box.
        row: which prompt of the batch this is.
        hidden: (positions, width), the residual stream that enters the layer.
        entered: (prompt's positions, width), the merged embeddings of the whole row, whatever has left since.
        positions: for each position that is present, where it stands in the whole row.
        query: (heads, positions, head width) of the layer whose attention is read, rotated; None where none is.
        key: the same.
        mask: (positions, positions), additive.
        scale: of the scores; `cap` squeezes them where the family does.
        cap: see `scale`.
        value: (heads, positions, head width) of the layer whose attention is read; None for a layer that comes next.
        tower: what the vision tower made of this row's pictures, for methods that read it; else None.
    """

    image: list[int]
    after: list[int]
    original: list[int]
    prompt_image: list[int]
    places: list[Place]
    row: int
    hidden: torch.Tensor
    entered: torch.Tensor
    positions: list[int]
    query: torch.Tensor | None
    key: torch.Tensor | None
    mask: torch.Tensor | None
    scale: float
    cap: float | None
    value: torch.Tensor | None = None
    tower: TowerSeen | None = None


Rank = Callable[[Seen], "torch.Tensor | tuple[torch.Tensor, torch.Tensor]"]


@dataclass(frozen=True)
class Stage:
    """One prune: before `layer`, the image tokens with the highest ranks stay.

    Attributes:
        layer: tokens leave before this layer.
        keep: how many stay of those present: a number, or a share (rounded).
        rank: from what is seen to a number per image token; a method that merges tokens returns (numbers, (image
            tokens, width)), the second being what each holds from then on.
        reads: which layer's attention the ranking reads: "previous" (the layer before), "next" (this one), or ""
            (none).
        exact: whether `rank` gives 1 to keep and 0 to drop, whatever `keep` says.
    """

    layer: int
    keep: int | float
    rank: Rank
    reads: str = "previous"
    exact: bool = False

    def count(self, present: int) -> int:
        """How many of so many image tokens stay."""
        return min(present, self.keep if isinstance(self.keep, int) else round(self.keep * present))


def check_stage(stage: object) -> None:
    """Refuses what is no stage, or one whose layer, number or ranking is none.

    Raises:
        MMFlowError: it is not as `Stage` says.
    """
    if not isinstance(stage, Stage):
        raise MMFlowError(f"a stage is expected, mmf.prune.Stage(layer=2, keep=0.5, rank=...), but {came(stage)} came.")
    whole("layer of a stage", stage.layer)
    number("keep of a stage", stage.keep)
    if not callable(stage.rank):
        raise MMFlowError(f"rank of a stage is a function of mmf.prune.Seen, but {came(stage.rank)} came.")
    if stage.reads not in ("previous", "next", ""):
        raise MMFlowError(f'reads of a stage is "previous", "next" or "", not {stage.reads!r}.')


def ranks_of(returned: object, tokens: int, width: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(a finite number per image token, what each holds from then on or None) of what a ranking returned.

    Raises:
        MMFlowError: it returned something else.
    """
    ranks, content = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
    for what, values, shape in (("numbers", ranks, (tokens,)), ("contents", content, (tokens, width))):
        if values is None and what == "contents":
            continue
        if not isinstance(values, torch.Tensor) or tuple(values.shape) != shape:
            shown = tuple(values.shape) if isinstance(values, torch.Tensor) else came(values)
            raise MMFlowError(f"a ranking returns {what} of shape {shape}, one row per image token; {shown} came.")
        if not bool(torch.isfinite(values).all()):
            wrong = int((~torch.isfinite(values)).sum())
            raise MMFlowError(f"a ranking returned {wrong} {what} that are NaN or infinite: tokens cannot be ordered.")
    return ranks, content  # type: ignore[return-value]


def attention_to_image(seen: Seen, queries: list[int], chunk: int = 8) -> Float[torch.Tensor, "queries image"]:
    """(queries, image tokens): attention weights, mean over heads, in float32; a few heads at a time."""
    if seen.query is None or seen.key is None or seen.mask is None:
        raise MMFlowError('this stage reads no attention: Stage(..., reads="previous"), or "next".')
    total = seen.hidden.new_zeros(len(queries), len(seen.image), dtype=torch.float32)
    heads = seen.query.shape[0]
    for first in range(0, heads, chunk):
        part = slice(first, min(first + chunk, heads))
        weights = attention_weights(seen.query[part, queries], seen.key[part], seen.mask[queries], seen.scale, seen.cap)
        total += weights[:, :, seen.image].sum(0)
    return total / heads
