"""Figures of causal tracing and of attribution patching: heat maps, span by layer."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from nnsight_mmflow._figure import ShownFigure

if TYPE_CHECKING:
    from nnsight_mmflow.patterns.trace.attribution import AttributionPatchingResult
    from nnsight_mmflow.patterns.trace.result import CausalTraceResult


def trace_figure(result: CausalTraceResult, quantity: str = "effect") -> ShownFigure:
    """Heat maps of causal tracing: span by layer, a panel per site; numbers in the cells where there is room."""
    maps = result.map(quantity)
    names = {"mlp": "MLP output", "attn": "attention output", "resid": "residual stream"}
    spans = max(len(table) for table in maps.values())
    layers = max(table.shape[1] for table in maps.values())
    # One panel under the other, no wider than a notebook or a page: side by side they would be shrunk.
    wide = min(9.0, 3.6 + 0.5 * layers)
    figure = ShownFigure(figsize=(wide, 1.2 + len(maps) * (0.6 + 0.36 * spans)), layout="constrained")
    axes = figure.subplots(len(maps), 1, squeeze=False, sharex=True)[:, 0].tolist()
    largest = max(float(table.abs().to_numpy().max()) for table in maps.values()) or 1.0
    lowest = min(0.0, min(float(table.to_numpy().min()) for table in maps.values()))
    for axis, (site, table) in zip(axes, maps.items(), strict=True):
        values = table.to_numpy()
        image = axis.imshow(values, aspect="auto", cmap="cividis", vmin=lowest, vmax=largest)
        axis.set_yticks(range(len(table)), [fill(str(span), 26) for span in table.index], fontsize=8)
        axis.set_xticks(range(0, layers, max(1, layers // 12)))
        axis.set_title(names[site], fontsize=10)
        if layers <= 16:
            for (row, column), value in np.ndenumerate(values):
                dark = value < lowest + 0.6 * (largest - lowest)
                axis.text(
                    column,
                    row,
                    f"{value:.2f}".replace("-0.00", "0.00"),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if dark else "black",
                )
    axes[-1].set_xlabel("centre layer")
    figure.colorbar(image, ax=list(axes), label=quantity.replace("_", " "), aspect=20 * len(maps))
    figure.suptitle(fill(f"Causal tracing, {result.header['model']}: {result.caption(quantity)}", 100), fontsize=9)
    return figure


def attribution_figure(result: AttributionPatchingResult) -> ShownFigure:
    """Heat maps of the estimates, head by layer, a panel per span; on the right, estimates against exact patching."""
    means = result.table.groupby(["span", "head", "layer"], sort=False)["estimate"].mean()
    spans, checked = list(dict.fromkeys(result.table["span"])), result.table.dropna(subset=["exact"])
    n_layers, n_heads = int(result.header["n_layers"]), int(result.header["n_heads"])
    count = len(spans) + bool(len(checked))
    across = 2 if count == 4 else min(count, 3)
    down = -(-count // across)
    unit = f" ({result.unit.strip()})" if result.unit else ""
    figure = ShownFigure(figsize=(2.9 * across + 0.8, 0.8 + 2.6 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten().tolist()
    for axes in panels[count:]:
        axes.set_visible(False)
    largest = float(means.abs().max()) or 1.0
    for axes, span in zip(panels, spans, strict=False):
        grid = means[span].unstack().to_numpy()
        image = axes.imshow(grid, aspect="auto", cmap="PuOr_r", vmin=-largest, vmax=largest)
        axes.set_title(fill(span, 26), fontsize=9)
        axes.set_xlabel("layer")
        axes.set_xticks(range(0, n_layers, max(1, n_layers // 10)))
        axes.set_yticks(range(0, n_heads, max(1, n_heads // 16)))
    for axes in panels[: len(spans) : across]:
        axes.set_ylabel("head")
    figure.colorbar(image, ax=panels[: len(spans)], label=f"estimate{unit}")
    if len(checked):
        axes = panels[count - 1]
        axes.scatter(checked["exact"], checked["estimate"], s=10, color="#0072B2", alpha=0.6, linewidths=0)
        ends = [
            float(checked[["exact", "estimate"]].to_numpy().min()),
            float(checked[["exact", "estimate"]].max().max()),
        ]
        axes.plot(ends, ends, color="0.6", linewidth=0.8)
        axes.set(xlabel="exact (nats)", ylabel=f"estimate{unit}")
        axes.set_title(f"correlation {result.correlation:.2f}, {len(checked)} cells", fontsize=9)
    rows, hows = result.table.drop_duplicates("prompt"), result.header["corruptions"]
    more = f" and {len(hows) - 1} more" if len(hows) > 1 else ""
    what, which, letter = "the answer's log-probability", "probability", "P"
    if "score" in result.header:
        what, which, letter = result.quantity.what, "score", "S"
    title = (
        f"Attribution patching, {result.header['model']}: estimated change of {what}, head by"
        f" head; single layers, counted from 0; corruption: {hows[0]}{more};"
        f" mean {letter}_clean {rows[f'clean_{which}'].mean():.2f},"
        f" {letter}_corrupt {rows[f'corrupt_{which}'].mean():.2f};"
        f" {result.header['n_prompts']} prompts, {sum(result.header['left_out'].values())} left out"
    )
    figure.suptitle(fill(title, 40 * across), fontsize=9)
    return figure
