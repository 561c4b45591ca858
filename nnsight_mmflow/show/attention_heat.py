"""Attention by layer as a heat map: which span reads which."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from nnsight_mmflow._figure import ShownFigure

if TYPE_CHECKING:
    from nnsight_mmflow.patterns.attention.result import AttentionResult

MOST_NUMBERS = 16  # layers in whose cells numbers can be read


def attention_figure(result: AttentionResult) -> ShownFigure:
    """A heat map of the attention mass between spans: a row per source and target, a column per layer."""
    table = result.table.assign(edge=result.table["source"] + " to " + result.table["target"])
    edges, layers = list(dict.fromkeys(table["edge"])), list(dict.fromkeys(table["layer"]))
    values = table.pivot(index="edge", columns="layer", values="mass").loc[edges, layers].to_numpy()
    read = values.max(1) > 0  # what lies behind a target it cannot read
    edges, values = [edge for edge, drawn in zip(edges, read, strict=True) if drawn], values[read]
    wide, high = min(9.0, 3.6 + 0.5 * len(layers)), 1.4 + 0.32 * len(edges)
    figure = ShownFigure(figsize=(wide, high), layout="constrained")
    axes = figure.subplots()
    largest = float(values.max())
    image = axes.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=largest)
    axes.set_yticks(range(len(edges)), [fill(edge, 34) for edge in edges], fontsize=8, parse_math=False)
    step = max(1, len(layers) // 12)
    axes.set_xticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    axes.set_xlabel("layer")
    if len(layers) <= MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(values):
            color = "white" if value < 0.6 * largest else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, ax=axes, label="attention mass")
    heads = f"mean over {len(result.heads)} head{'s' if len(result.heads) > 1 else ''}"
    title = f"Attention{f', {result.model}' if result.model else ''}: what a target gives a source in all, {heads}"
    figure.suptitle(fill(title, int(11 * wide)), fontsize=9, parse_math=False)
    return figure
