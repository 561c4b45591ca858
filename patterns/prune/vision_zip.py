"""Methods that prune before the language model, by the vision tower's class token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow.inside.pruning import Seen, Stage
from nnsight_mmflow.inside.tower import tower_positions
from nnsight_mmflow.patterns.prune.prune import Prune
from nnsight_mmflow.patterns.prune.rankings import share_of

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.spans.row_spans import Spans


def from_class(seen: Seen) -> torch.Tensor:
    """Attention that a token's patch receives from the tower's class token."""
    assert seen.tower is not None
    ranks = torch.zeros(len(seen.image), device=seen.tower.attention.device)
    for picture in range(len(seen.tower.attention)):
        for number, position in tower_positions(seen.places, picture):
            ranks[number] = seen.tower.attention[picture, position]
    return ranks


@dataclass(frozen=True, kw_only=True)
class FasterVLM(Prune):
    """Before the language model the image tokens leave whose patches the tower's class token attends to least.

    Attributes:
        r: the share that leaves.
        positions: "renumbered", as in the released code, or "original".

    Source: [CLS] Attention is All You Need (arXiv 2412.01818).
    """

    r: float = 0.5
    positions: str = "renumbered"
    reads_tower: ClassVar[bool] = True

    def stages(self, graph: Graph, image_tokens: int) -> list[Stage]:
        """The stage."""
        return [Stage(0, round((1 - share_of("r", self.r)) * image_tokens), from_class, "")]


@dataclass(frozen=True)
class _Zipped:
    """Ranks that keep the slots of what VisionZip makes, and what they hold."""

    dominant: int
    contextual: int
    in_order: bool

    def __call__(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        assert seen.tower is not None
        ranks = torch.zeros(len(seen.image))
        hidden = seen.hidden[seen.image].clone()
        for picture in range(len(seen.tower.features)):
            features, keys = seen.tower.features[picture], seen.tower.keys[picture]
            token_of = {position: number for number, position in tower_positions(seen.places, picture)}
            best = 1 + seen.tower.attention[picture, 1:].topk(self.dominant - 1).indices.sort().values
            chosen = set(best.tolist())
            rest = [position for position in range(1, len(features)) if position not in chosen]
            targets = rest[:: max(1, len(rest) // self.contextual)][: self.contextual]
            zipped = torch.cat([features[:1], features[best], merged(features, keys, rest, targets)])
            # the class token has no slot where the model leaves it out: it takes that of the first patch that leaves
            first = 0 if 0 in token_of else next(token for token in rest if token not in targets)
            slots = torch.tensor([token_of[position] for position in (first, *best.tolist(), *targets)])
            ranks[slots] = 1
            hidden[slots.sort().values if self.in_order else slots] = seen.tower.project(zipped).to(hidden)
        return ranks, hidden


def merged(features: torch.Tensor, keys: torch.Tensor, rest: list[int], targets: list[int]) -> torch.Tensor:
    """(targets, width): each target, and added to it the mean of the other tokens whose keys are most like its own."""
    others = [position for position in rest if position not in targets]
    unit = torch.nn.functional.normalize(keys, dim=-1)
    nearest = (unit[others] @ unit[targets].T).argmax(1)
    contextual = features[targets].clone()
    for number in range(len(targets)):
        own = [position for position, near in zip(others, nearest.tolist(), strict=True) if near == number]
        if own:
            contextual[number] += features[own].mean(0)
    return contextual


@dataclass(frozen=True, kw_only=True)
class VisionZip(Prune):
    """Before the language model: the patches that the class token attends to most, and merged tokens for the rest.

    What enters is, for each picture, the class token and the `dominant - 1` patches with most attention from it, then
    `contextual` tokens: evenly spaced ones of the rest, each with the mean of those added whose keys are most like its
    own.

    Attributes:
        dominant: tokens that stay as they are, the class token among them (of 576: 162, 108 or 54).
        contextual: merged tokens (of 576: 30, 20 or 10).
        positions: "renumbered", as in the released code; with "original" each token stands where its patch stood, and
            the class token in the place of the first patch that leaves.

    Source: VisionZip (arXiv 2412.04467).
    """

    dominant: int = 54
    contextual: int = 10
    positions: str = "renumbered"
    reads_tower: ClassVar[bool] = True

    @property
    def merges(self) -> bool:
        """The class token and the merged ones stand where patches stood."""
        return True

    def plan(self, graph: Graph, spans: Spans) -> list[Stage]:
        """The stage: so many tokens for each picture.

        Raises:
            MMFlowError: fewer than two dominant tokens (the class token is one) or none that is merged.
            NoEffectError: it would make as many tokens as there are.
        """
        if self.dominant < 2 or self.contextual < 1:
            raise MMFlowError(
                "VisionZip needs two dominant tokens (the class token is one) and one contextual token at least,"
                f" not {self.dominant} and {self.contextual}."
            )
        pictures = 1 + max((place.image for place in spans["image"].places()), default=0)
        kept, there = pictures * (self.dominant + self.contextual), len(spans["image"])
        if kept >= there:
            raise NoEffectError(
                f"{self} would leave {kept} tokens of {pictures} picture(s), which have {there}: take fewer,"
                " such as a tenth."
            )
        return [Stage(0, kept, _Zipped(self.dominant, self.contextual, self.positions == "renumbered"), "")]

    def stages(self, graph: Graph, image_tokens: int) -> list[Stage]:
        """The stage, for one picture."""
        made = self.dominant + self.contextual
        return [Stage(0, made, _Zipped(self.dominant, self.contextual, self.positions == "renumbered"), "")]
