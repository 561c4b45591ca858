"""What the vision tower made of the pictures, read inside a trace before the language model. Ships by value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow.spans.geometry import CLASS, Place

if TYPE_CHECKING:
    from jaxtyping import Float

    from nnsight_mmflow.inside.roles import Roles


@dataclass(frozen=True)
class TowerSeen:
    """The tower's layer whose output the projector takes. Its position 0 is the class token.

    Attributes:
        features: (pictures, positions, width) the layer's output.
        attention: (pictures, positions) the class token's attention weights, mean over heads, in float32.
        keys: (pictures, positions, head width) the layer's keys, mean over heads, in float32.
        project: from (positions, width) to (positions, width of the language model).
    """

    features: Float[torch.Tensor, "pictures positions width"]
    attention: Float[torch.Tensor, "pictures positions"]
    keys: Float[torch.Tensor, "pictures positions head"]
    project: Callable[[torch.Tensor], torch.Tensor]

    def of(self, first: int, count: int, factor: int = 1) -> TowerSeen:
        """Of some of the pictures, each of which comes `factor` times."""
        part = slice(first, first + count * factor, factor)
        return replace(self, features=self.features[part], attention=self.attention[part], keys=self.keys[part])


def read_tower(graph: Roles, layer: int) -> TowerSeen:
    """Inside a trace, before anything of the language model is read: what the tower's layer made."""
    module = graph.tower.encoder.layers[layer]
    attention = module.self_attn
    heads, scale = attention._module.num_heads, attention._module.scale
    query = attention.q_proj.output[:, :1].unflatten(-1, (heads, -1)).float()
    key = attention.k_proj.output.unflatten(-1, (heads, -1)).float()
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * scale
    output = module.output
    features = output[0] if isinstance(output, tuple) else output
    return TowerSeen(features, scores.softmax(-1).mean(1)[:, 0], key.mean(2), graph.projector)


def tower_positions(places: list[Place], picture: int) -> list[tuple[int, int]]:
    """(number among the places, the tower's position) of each token of a picture."""
    columns = 1 + max((place.column for place in places if place.column is not None), default=0)
    positions = []
    for number, place in enumerate(places):
        if place.image != picture:
            continue
        if place.kind == CLASS:
            positions.append((number, 0))
        elif place.row is not None and place.column is not None:
            positions.append((number, 1 + place.row * columns + place.column))
    return positions
