"""Attention maps pooled by groups of positions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow.spans.groups import Group, Grouping, groups_of

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

    from nnsight_mmflow.spans.row_spans import Spans


@dataclass(frozen=True)
class PooledAttention:
    """Attention between groups of positions.

    Attributes:
        weights: (layers, heads, row groups, column groups): for each row group the mean over its targets of the sum
            over the sources of each column group: the attention mass that a target of the one gives the other in all.
        layers: the layers, counted from 0.
        heads: the heads, counted from 0.
        rows: the groups of targets.
        columns: the groups of sources.
    """

    weights: Float[torch.Tensor, "layers heads rows columns"] = field(repr=False)
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    rows: tuple[Group, ...] = field(repr=False)
    columns: tuple[Group, ...] = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """A row per layer, head and cell: layer, head, target, source, mass, n_targets, n_sources."""
        import pandas as pd

        index = pd.MultiIndex.from_product(
            [self.layers, self.heads, [row.name for row in self.rows], [column.name for column in self.columns]],
            names=["layer", "head", "target", "source"],
        )
        table = pd.DataFrame({"mass": self.weights.flatten().numpy()}, index).reset_index()
        counts = {row.name: len(row.positions) for row in self.rows}, {c.name: len(c.positions) for c in self.columns}
        return table.assign(n_targets=table["target"].map(counts[0]), n_sources=table["source"].map(counts[1]))


def pooled(
    spans: Spans,
    weights: torch.Tensor,
    layers: tuple[int, ...],
    heads: tuple[int, ...],
    targets: tuple[int, ...],
    sources: tuple[int, ...],
    rows: Grouping,
    columns: Grouping,
) -> PooledAttention:
    """The weights, pooled by groups of targets and of sources."""
    down, across = groups_of(spans, rows, targets), groups_of(spans, columns, sources)
    mean, total = _members(down, targets), _members(across, sources)
    mean /= mean.sum(1, keepdim=True)
    return PooledAttention(mean @ weights @ total.T, layers, heads, down, across)


def _members(groups: tuple[Group, ...], positions: tuple[int, ...]) -> torch.Tensor:
    """(groups, positions): 1 where a group holds a position."""
    where = {position: index for index, position in enumerate(positions)}
    held = torch.zeros(len(groups), len(positions))
    for number, group in enumerate(groups):
        held[number, [where[position] for position in group.positions]] = 1
    return held
