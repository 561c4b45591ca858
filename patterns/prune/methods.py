"""The published methods that rank by attention inside the language model: each is a schedule and a ranking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.pruning import Stage
from nnsight_mmflow.patterns.prune.prune import Prune
from nnsight_mmflow.patterns.prune.rankings import from_all, from_image, from_instruction, from_last, share_of, to_image

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph


@dataclass(frozen=True, kw_only=True)
class HiMAP(Prune):
    """Two prunes: by attention from the instruction before layer k1, by attention among image tokens before layer k2.

    Attributes:
        k1, r1: before layer k1 (counted from 0) the share r1 leaves.
        k2, r2: before layer k2 the share r2 of the rest leaves.
        deep: "column" (attention received, as in the code) or "row" (attention paid, as equation 9 is printed).

    Source: Lifting the Veil on Visual Information Flow (arXiv 2503.13108), section 5.
    """

    k1: int = 2
    r1: float = 0.5
    k2: int = 8
    r2: float = 0.75
    deep: str = "column"

    def stages(self, graph: Graph, image_tokens: int) -> list[Stage]:
        """The two stages."""
        if self.deep not in ("column", "row"):
            raise MMFlowError(f'deep must be "column" or "row", not {self.deep!r}.')
        first = round((1 - share_of("r1", self.r1)) * image_tokens)
        second = round((1 - share_of("r2", self.r2)) * first)
        deep = from_image if self.deep == "column" else to_image
        return [Stage(self.k1, first, from_instruction), Stage(self.k2, second, deep)]


@dataclass(frozen=True, kw_only=True)
class FastV(Prune):
    """One prune before layer k, by the attention of layer k - 1.

    Attributes:
        k, r: before layer k the share r leaves.
        rank: "last" (attention from the last position, as in the code) or "mean" (received on average, the paper).

    Source: An Image is Worth 1/2 Tokens After Layer 2 (arXiv 2403.06764).
    """

    k: int = 2
    r: float = 0.5
    rank: str = "last"

    def stages(self, graph: Graph, image_tokens: int) -> list[Stage]:
        """The stage."""
        if self.rank not in ("last", "mean"):
            raise MMFlowError(f'rank must be "last" or "mean", not {self.rank!r}.')
        keep = round((1 - share_of("r", self.r)) * image_tokens)
        return [Stage(self.k, keep, from_last if self.rank == "last" else from_all)]


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(Prune):
    """Several prunes, by the last position's attention in the layer that follows.

    Attributes:
        layers: before which tokens leave; None: at a quarter, a half and three quarters of the depth.
        keep: the shares of the prompt's image tokens that stay after each.

    Source: PyramidDrop (arXiv 2410.17247). Positions stay original here.
    """

    layers: tuple[int, ...] | None = None
    keep: tuple[float, ...] = (0.5, 0.25, 0.125)

    def stages(self, graph: Graph, image_tokens: int) -> list[Stage]:
        """The stages."""
        depth = graph.n_layers
        layers = self.layers if self.layers is not None else (depth // 4, depth // 2, 3 * depth // 4)
        if len(layers) != len(self.keep):
            raise MMFlowError(f"{len(layers)} layers {layers} and {len(self.keep)} shares {self.keep}: one for each.")
        return [
            Stage(layer, round(share_of("keep", share) * image_tokens), from_last, "next")
            for layer, share in zip(layers, self.keep, strict=True)
        ]
