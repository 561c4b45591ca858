"""The controls that must stand beside every pruning method, and spans that are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow.inside.pruning import Seen, Stage
from nnsight_mmflow.patterns.prune.prune import Prune
from nnsight_mmflow.patterns.prune.rankings import share_of

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.spans.row_spans import Spans


@dataclass(frozen=True)
class _Drawn:
    """Ranks drawn by chance."""

    seed: int

    def __call__(self, seen: Seen) -> torch.Tensor:
        return torch.rand(len(seen.image), generator=torch.Generator().manual_seed(self.seed))


@dataclass(frozen=True)
class _Thinned:
    """Ranks that keep a regular grid."""

    keep: int

    def __call__(self, seen: Seen) -> torch.Tensor:
        total = len(seen.image)
        spread = torch.linspace(0, total - 1, min(self.keep, total)).round().long() if self.keep else torch.tensor([])
        ranks = torch.zeros(total)
        ranks[spread.long()] = 1
        return ranks


@dataclass(frozen=True)
class _Named:
    """Ranks that keep image tokens by their number in the prompt's image."""

    numbers: frozenset[int]

    def __call__(self, seen: Seen) -> torch.Tensor:
        return torch.tensor([float(number in self.numbers) for number in seen.original])


@dataclass(frozen=True, kw_only=True)
class Keep(Prune):
    """Only the image tokens of a span stay from a layer on: those that show an object, say.

    Attributes:
        at: the span, as an expression; what of it is no image token does not count.
        from_layer: the first layer without the others.
    """

    at: str
    from_layer: int

    def plan(self, graph: Graph, spans: Spans) -> list[Stage]:
        """The stage, with what stays of this prompt."""
        wanted = set(spans[self.at])
        kept = frozenset(i for i, position in enumerate(spans["image"]) if position in wanted)
        return [Stage(self.from_layer, len(kept), _Named(kept), "", True)]


@dataclass(frozen=True, kw_only=True)
class Random(Prune):
    """The control: as many tokens leave before layer k, drawn by chance.

    Attributes:
        k, r: before layer k the share r leaves.
        seed: which image tokens the draw takes.
    """

    k: int = 2
    r: float = 0.5
    seed: int = 0

    def stages(self, graph: Graph, image_tokens: int) -> list[Stage]:
        """The stage."""
        return [Stage(self.k, round((1 - share_of("r", self.r)) * image_tokens), _Drawn(self.seed), "")]


@dataclass(frozen=True, kw_only=True)
class Grid(Prune):
    """The control: a regular thinning of the image's tokens before layer k.

    Attributes:
        k, r: before layer k the share r leaves.
    """

    k: int = 2
    r: float = 0.5

    def stages(self, graph: Graph, image_tokens: int) -> list[Stage]:
        """The stage."""
        keep = round((1 - share_of("r", self.r)) * image_tokens)
        return [Stage(self.k, keep, _Thinned(keep), "")]


@dataclass(frozen=True, kw_only=True)
class DropAll(Prune):
    """Every image token leaves before a layer: is the image still needed there?

    Attributes:
        from_layer: the first layer without image tokens.
    """

    from_layer: int

    def stages(self, graph: Graph, image_tokens: int) -> list[Stage]:
        """The stage."""
        return [Stage(self.from_layer, 0, _Drawn(0), "")]
