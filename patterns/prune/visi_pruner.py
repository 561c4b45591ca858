"""VisiPruner: what the last position takes from each image token decides when, and which, tokens leave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.heads import attention_weights
from nnsight_mmflow.inside.pruning import Seen, Stage
from nnsight_mmflow.patterns.prune.prune import Prune

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph


def taken_by_last(seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
    """What the last position's heads take from each image token: (cosine without it to with it, norm of it).

    Both are over all heads side by side, before the output projection: (image tokens,) each.
    """
    assert seen.query is not None
    assert seen.key is not None
    assert seen.value is not None
    assert seen.mask is not None
    last = seen.after[-1:]
    weights = attention_weights(seen.query[:, last], seen.key, seen.mask[last], seen.scale, seen.cap)[:, 0]
    value = seen.value.float()
    whole = torch.einsum("hk,hkd->hd", weights, value).flatten()
    parts = torch.einsum("hv,hvd->vhd", weights[:, seen.image], value[:, seen.image]).flatten(1)
    return torch.cosine_similarity(whole - parts, whole[None], dim=-1), parts.norm(dim=-1)


@dataclass
class _Watch:
    """Ranks that depend on the layers before: nothing leaves until a layer fires."""

    fires_below: float
    keep_above: float
    calm_above: float
    calm_layers: int
    seen_calm: int = 0
    fired: bool = field(default=False)

    def __call__(self, seen: Seen) -> torch.Tensor:
        ranks = torch.ones(len(seen.image))
        if not len(ranks):
            return ranks
        cosine, norm = taken_by_last(seen)
        if not self.fired:
            if bool((cosine < self.fires_below).any()):
                self.fired = True
                ranks = (norm > self.keep_above).float()
        elif bool((cosine >= self.calm_above).all()):
            self.seen_calm += 1
            if self.seen_calm >= self.calm_layers:
                ranks = torch.zeros(len(seen.image))
        return ranks


@dataclass(frozen=True, kw_only=True)
class VisiPruner(Prune):
    """Image tokens leave when the last position has begun to use them, and all of them when it has done so.

    In each layer from `first_layer` on, it looks at what the last position's heads take from each image token. In the
    first layer where taking one of them away would turn the heads' result by more than `fires_below`, only tokens stay
    whose share is longer than `keep_above`; after `calm_layers` further layers in which none would turn it by more than
    `calm_above`, all leave. How many stay depends on the prompt. The method's third part, closing text to the image in
    the first layers, is `Knockout(source="image", target="text", layers=range(6))` beside it.

    Attributes:
        first_layer: the first layer that is looked at; None: at the depth of layer 6 of 32.
        fires_below: a cosine, of what the heads give with an image token and without it; a lower one is a turn.
        keep_above: how long an image token's share must be for it to stay.
        calm_above: a layer is calm if that cosine is at least this for every image token.
        calm_layers: after how many calm layers all image tokens leave.

    Raises:
        NoEffectError: when run, if no layer fires.

    Source: VisiPruner (arXiv 2510.17205).
    """

    first_layer: int | None = None
    fires_below: float = 0.995
    keep_above: float = 0.2
    calm_above: float = 0.999
    calm_layers: int = 2
    measured: ClassVar[bool] = True

    def stages(self, graph: Graph, image_tokens: int) -> list[Stage]:
        """A stage behind every layer that is looked at; they share what they have seen."""
        first = max(1, round(6 * graph.n_layers / 32)) if self.first_layer is None else self.first_layer
        if not 0 <= first < graph.n_layers - 1:
            raise MMFlowError(f"first_layer lies in 0 to {graph.n_layers - 2}, not {first}.")
        watch = _Watch(self.fires_below, self.keep_above, self.calm_above, self.calm_layers)
        start = max(first + 1, graph.enters_after)
        return [Stage(layer, 1.0, watch, "previous", True) for layer in range(start, graph.n_layers)]
