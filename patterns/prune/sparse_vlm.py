"""SparseVLM: prunes by text tokens that are like the image, and merges part of what it drops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.pruning import Seen, Stage
from nnsight_mmflow.patterns.prune.prune import Prune
from nnsight_mmflow.patterns.prune.rankings import from_raters, share_of

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph

RECYCLED, PER_CLUSTER = 0.3, 10  # of what is dropped, the best share is merged, into a cluster per so many tokens


def clusters_of(dropped: int) -> tuple[int, int]:
    """(tokens that are merged, clusters that they make) of so many dropped tokens."""
    if not dropped:
        return 0, 0
    merged = min(dropped, int(RECYCLED * dropped) + 1)
    return merged, merged // PER_CLUSTER + 1


def density_peaks(tokens: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(centres, each token's cluster) by density peaks: centres are dense and far from what is denser.

    Args:
        tokens: (tokens, width).
        count: how many clusters.
    """
    apart = torch.cdist(tokens[None], tokens[None])[0] / tokens.shape[1] ** 0.5
    density = (-(apart.topk(count, largest=False).values ** 2).mean(-1)).exp()
    denser = density[None] > density[:, None]
    to_denser = torch.where(denser, apart, apart.max()).amin(1)
    centres = (density * to_denser).topk(count).indices
    cluster = apart[:, centres].argmin(1)
    cluster[centres] = torch.arange(count, device=tokens.device)
    return centres, cluster


@dataclass(frozen=True)
class _Recycling:
    """Ranks that keep so many tokens, and the centres of the clusters that merge the best of the others."""

    keep: int
    in_order: bool  # merged tokens stand behind the kept ones, as in the released code; else at their centres

    def __call__(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        scores = from_raters(seen)
        order = scores.argsort(descending=True, stable=True)
        kept, others = order[: self.keep].sort().values, order[self.keep :]
        merged, count = clusters_of(len(others))
        pool = others[:merged]
        tokens = seen.hidden[[seen.image[i] for i in pool.tolist()]].float()
        centres, cluster = density_peaks(tokens, count)
        means = torch.stack([tokens[cluster == number].mean(0) for number in range(count)]).to(seen.hidden)
        slots = torch.cat([kept, pool[centres]])
        hidden = seen.hidden[seen.image].clone()
        content = torch.cat([hidden[kept], means])
        hidden[slots.sort().values if self.in_order else slots] = content
        ranks = torch.zeros_like(scores)
        ranks[slots] = 1
        return ranks, hidden


@dataclass(frozen=True, kw_only=True)
class SparseVLM(Prune):
    """Three prunes by the attention of text tokens that are like the image; part of what is dropped is merged back.

    Of the dropped tokens the best 30% become clusters, one per ten tokens and one more; the mean of each stands where
    its centre stood (behind the kept ones with positions="renumbered", as in the released code).

    Attributes:
        layers: before which tokens leave; None: at the depths of layers 3, 7 and 16 of 32.
        keep: the shares of the prompt's image tokens that stay after each (300, 200 and 110 of 576), clusters aside.
        recycle: whether part of what is dropped is merged back.

    Source: SparseVLM (arXiv 2410.04417). Density has no added noise here, so equal runs are
    equal.
    """

    layers: tuple[int, ...] | None = None
    keep: tuple[float, ...] = (300 / 576, 200 / 576, 110 / 576)
    recycle: bool = True

    @property
    def merges(self) -> bool:
        """Recycling merges tokens."""
        return self.recycle

    def stages(self, graph: Graph, image_tokens: int) -> list[Stage]:
        """The stages."""
        layers = self.layers
        if layers is None:
            layers = tuple(max(1, round(layer * graph.n_layers / 32)) for layer in (3, 7, 16))
        if len(layers) != len(self.keep):
            raise MMFlowError(f"{len(layers)} layers {layers} and {len(self.keep)} shares {self.keep}: one for each.")
        present, stages = image_tokens, []
        for layer, share in zip(layers, self.keep, strict=True):
            kept = min(present, round(share_of("keep", share) * image_tokens))
            if self.recycle and kept < present:
                present = kept + clusters_of(present - kept)[1]
                stages.append(Stage(layer, present, _Recycling(kept, self.positions == "renumbered")))
            else:
                present = kept
                stages.append(Stage(layer, kept, from_raters))
        return stages
