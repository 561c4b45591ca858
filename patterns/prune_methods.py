"""The published methods, and the controls that must stand beside them: each is a schedule and a ranking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from nnsight_mmflow.patterns.prune import Prune

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._prune import Seen, Stage, attention_to_image

if TYPE_CHECKING:
    from nnsight_mmflow._graph import Graph
    from nnsight_mmflow._row_spans import Spans


# Rankings: from what is seen to a number per image token.


def from_instruction(seen: Seen) -> torch.Tensor:
    """Attention that a token receives from the instruction (HiMAP's shallow criterion, equation 8)."""
    return attention_to_image(seen, seen.after).sum(0)


def from_image(seen: Seen) -> torch.Tensor:
    """Attention that a token receives from the image tokens that are left, itself included (HiMAP's deep criterion)."""
    return attention_to_image(seen, seen.image).sum(0)


def to_image(seen: Seen) -> torch.Tensor:
    """Attention that a token pays to the image tokens that are left (equation 9 as it is printed)."""
    return attention_to_image(seen, seen.image).sum(1)


def from_last(seen: Seen) -> torch.Tensor:
    """Attention that a token receives from the last position (FastV's code, PyramidDrop)."""
    return attention_to_image(seen, seen.after[-1:]).sum(0)


def from_all(seen: Seen) -> torch.Tensor:
    """Attention that a token receives on average (FastV's paper)."""
    return attention_to_image(seen, list(range(seen.hidden.shape[0]))).mean(0)


def from_raters(seen: Seen) -> torch.Tensor:
    """Attention from the raters (SparseVLM): text tokens behind the image that are more like it than average.

    Likeness is the mean over the prompt's image tokens of the softmax over text tokens of their embeddings' products.
    """
    image = set(seen.prompt_image)
    here = {where: local for local, where in enumerate(seen.positions) if where > min(image) and where not in image}
    text = list(here)
    products = seen.entered[seen.prompt_image].float() @ seen.entered[text].float().T
    likeness = products.softmax(-1).mean(0)
    raters = [here[text[i]] for i in (likeness >= likeness.mean()).nonzero().flatten().tolist()]
    return attention_to_image(seen, raters).mean(0)


# Methods.


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise MMFlowError(f"{name} is the share of tokens that leave, 0 to 1, not {value}.")
    return value


@dataclass(frozen=True, kw_only=True)
class HiMAP(Prune):
    """Two prunes: by attention from the instruction before layer k1, by attention among image tokens before layer k2.

    Attributes:
        k1, r1: before layer k1 (counted from 0) the share r1 leaves.
        k2, r2: before layer k2 the share r2 of the rest leaves.
        deep: "column" (attention received, as in the code) or "row" (attention paid, as equation 9 is printed).

    Source: Lifting the Veil on Visual Information Flow (arXiv 2503.13108), section 5; spec section 3.
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
        first = round((1 - _share("r1", self.r1)) * image_tokens)
        second = round((1 - _share("r2", self.r2)) * first)
        deep = from_image if self.deep == "column" else to_image
        return [Stage(self.k1, first, from_instruction), Stage(self.k2, second, deep)]


@dataclass(frozen=True, kw_only=True)
class FastV(Prune):
    """One prune before layer k, by the attention of layer k - 1.

    Attributes:
        k, r: before layer k the share r leaves.
        rank: "last" (attention from the last position, as in the code) or "mean" (received on average, the paper).

    Source: An Image is Worth 1/2 Tokens After Layer 2 (arXiv 2403.06764); spec himap, section 5.
    """

    k: int = 2
    r: float = 0.5
    rank: str = "last"

    def stages(self, graph: Graph, image_tokens: int) -> list[Stage]:
        """The stage."""
        if self.rank not in ("last", "mean"):
            raise MMFlowError(f'rank must be "last" or "mean", not {self.rank!r}.')
        keep = round((1 - _share("r", self.r)) * image_tokens)
        return [Stage(self.k, keep, from_last if self.rank == "last" else from_all)]


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(Prune):
    """Several prunes, by the last position's attention in the layer that follows.

    Attributes:
        layers: before which tokens leave; None: at a quarter, a half and three quarters of the depth.
        keep: the shares of the prompt's image tokens that stay after each.

    Source: PyramidDrop (arXiv 2410.17247); spec himap, section 5. Positions stay original here.
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
            Stage(layer, round(_share("keep", share) * image_tokens), from_last, "next")
            for layer, share in zip(layers, self.keep, strict=True)
        ]


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
    """Ranks that keep image tokens by their number in the prompt's image, row by row of the batch."""

    numbers: tuple[frozenset[int], ...]

    def __call__(self, seen: Seen) -> torch.Tensor:
        return torch.tensor([float(number in self.numbers[seen.row]) for number in seen.original])


@dataclass(frozen=True, kw_only=True)
class SparseVLM(Prune):
    """Three prunes by the attention of text tokens that are like the image; what is dropped is not merged back in.

    Attributes:
        layers: before which tokens leave; None: at the depths of layers 3, 7 and 16 of 32.
        keep: the shares of the prompt's image tokens that stay after each (300, 200 and 110 of 576).

    Source: SparseVLM (arXiv 2410.04417); spec himap, section 5. Its recycling of dropped tokens is left out.
    """

    layers: tuple[int, ...] | None = None
    keep: tuple[float, ...] = (300 / 576, 200 / 576, 110 / 576)

    def stages(self, graph: Graph, image_tokens: int) -> list[Stage]:
        """The stages."""
        layers = self.layers
        if layers is None:
            layers = tuple(max(1, round(layer * graph.n_layers / 32)) for layer in (3, 7, 16))
        if len(layers) != len(self.keep):
            raise MMFlowError(f"{len(layers)} layers {layers} and {len(self.keep)} shares {self.keep}: one for each.")
        return [
            Stage(layer, round(_share("keep", share) * image_tokens), from_raters)
            for layer, share in zip(layers, self.keep, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Keep(Prune):
    """Only the image tokens of a span stay from a layer on: those that show an object, say.

    Attributes:
        at: the span, as an expression; what of it is no image token does not count.
        from_layer: the first layer without the others.
    """

    at: str
    from_layer: int

    def plan(self, graph: Graph, rows: tuple[Spans, ...]) -> list[Stage]:
        """The stage, with what stays of each row."""
        kept = []
        for spans in rows:
            wanted = set(spans[self.at])
            kept.append(frozenset(i for i, position in enumerate(spans["image"]) if position in wanted))
        most = max(len(numbers) for numbers in kept)
        return [Stage(self.from_layer, most, _Named(tuple(kept)), "", True)]


@dataclass(frozen=True, kw_only=True)
class Random(Prune):
    """The control: as many tokens leave before layer k, drawn by chance.

    Attributes:
        k, r: before layer k the share r leaves.
        seed: of the draw.
    """

    k: int = 2
    r: float = 0.5
    seed: int = 0

    def stages(self, graph: Graph, image_tokens: int) -> list[Stage]:
        """The stage."""
        return [Stage(self.k, round((1 - _share("r", self.r)) * image_tokens), _Drawn(self.seed), "")]


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
        keep = round((1 - _share("r", self.r)) * image_tokens)
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
