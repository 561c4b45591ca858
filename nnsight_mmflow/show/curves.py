"""Figures of results. Lines differ by colour, dash and marker, so that they can be told apart in grey."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from nnsight_mmflow._figure import ShownFigure
from nnsight_mmflow.runs.results import Band, bootstrap_band

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nnsight_mmflow.patterns.flow.result import FlowResult
    from nnsight_mmflow.patterns.lens import LensResult
    from nnsight_mmflow.patterns.skip_flow import SkipFlowResult
    from nnsight_mmflow.patterns.word_overlap import WordOverlapResult

# Okabe and Ito's colours (told apart by colour-blind readers), ordered from dark to light so that grey works too.
STYLES = (
    ("#000000", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#0072B2", "-.", "^"),
    ("#009E73", ":", "D"),
    ("#CC79A7", (0, (5, 1)), "v"),
    ("#E69F00", (0, (3, 1, 1, 1)), "P"),
    ("#56B4E9", (0, (1, 1)), "X"),
    ("#7F7F7F", (0, (8, 2)), "*"),
    ("#B8A500", (0, (2, 4)), "<"),
)


def draw_band(axes: Axes, x: Sequence[int], band: Band, label: str, style: tuple) -> None:
    """A line with its interval."""
    color, dash, marker = style
    mean, low, high = band
    every = max(1, len(mean) // 12)
    axes.plot(x, mean, color=color, linestyle=dash, marker=marker, markevery=every, markersize=5, label=label)
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def label_layers(axes: Axes, x: str, n_layers: int) -> None:
    """The axis of layers."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.4, n_layers - 0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def flow_figure(result: FlowResult) -> ShownFigure:
    """Change of the answer's probability by centre layer: a line per edge, a panel per window size."""
    windows = [int(window) for window in result.table["window"].unique()]
    # No wider than a notebook or a page: a wider one would be shrunk, its letters with it.
    figure = ShownFigure(figsize=(max(6.4, min(9.0, 4.5 * len(windows))), 5.2), layout="constrained")
    panels = list(figure.subplots(1, len(windows), sharey=True, squeeze=False)[0])
    n_layers = int(result.header["n_layers"])
    for axes, window in zip(panels, windows, strict=True):
        axes.axhline(0, color="0.4", linewidth=0.8)
        _control_band(axes, result, window)
        for (edge, band), style in zip(result.curves(window).items(), cycle(STYLES), strict=False):
            source, target = edge.split("->")
            label = f"{source} \u219b {target}".replace("_", " ")
            draw_band(axes, range(n_layers), band, label, style)
        label_layers(axes, "centre layer of the blocked window", n_layers)
        axes.set_title(f"window of {window} layer{'s' if window > 1 else ''}", fontsize=10)
    panels[0].set_ylabel(result.quantity.label)
    figure.legend(
        *panels[-1].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3 if len(windows) > 1 else 2,
        frameon=False,
        fontsize=9,
        title="source \u219b target",
        title_fontsize=9,
    )
    figure.suptitle(
        f"Attention knockout, {_short(result.header['model'])}: {result.header['n_counted']} prompts,"
        " mean and 95% bootstrap band",
        fontsize=11,
    )
    return figure


def _control_band(axes: Axes, result: FlowResult, window: int) -> None:
    """Grey behind the curves: between the lowest and the highest mean of the run's random spans."""
    import numpy as np

    means = list(result.controls(window).values())
    if not means:
        return
    together = np.concatenate([table.to_numpy(dtype=float) for table in means])
    draws = max(len(table) for table in means)
    label = f"control: {draws} random span{'s' if draws > 1 else ''} for each of {len(means)} edges"
    layers = [int(layer) for layer in means[0].columns]
    low, high = np.nanmin(together, 0), np.nanmax(together, 0)
    axes.fill_between(layers, low, high, color="0.72", edgecolor="0.5", linewidth=0.8, label=label, zorder=0)


def lens_figure(result: LensResult) -> ShownFigure:
    """Probability of the followed words by layer: a panel each for the residual stream, attention and MLP outputs."""
    from nnsight_mmflow.patterns.lens import FOLLOWED

    sites = {"resid": "residual stream", "attn": "attention output", "mlp": "MLP output"}
    figure = ShownFigure(figsize=(9.0, 3.9), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (site, title) in zip(panels, sites.items(), strict=True):
        table = result.table[result.table["site"] == site]
        for name, style in zip(FOLLOWED, STYLES, strict=False):
            if table[name].notna().any():
                wide = table.pivot_table(index="prompt", columns="layer", values=name) * 100
                draw_band(
                    axes, [int(layer) for layer in wide.columns], bootstrap_band(wide), name.replace("_", ", "), style
                )
        label_layers(
            axes, "after layer (-1: embeddings)" if site == "resid" else "layer", int(result.header["n_layers"])
        )
        axes.set_xlim(-1.4 if site == "resid" else -0.4)
        axes.set_title(title, fontsize=10)
    panels[0].set_ylabel("probability (%)")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    normed = "with the final norm" if result.header["norm"] else "without norm (last point normed)"
    figure.suptitle(
        f"Lens at {result.header['at']}, {normed}, {_short(result.header['model'])}:"
        f" {result.header['n_counted']} prompts, mean and 95% bootstrap band",
        fontsize=11,
    )
    return figure


def overlap_figure(result: WordOverlapResult) -> ShownFigure:
    """Overlap of the top words by centre layer, a line per silenced module."""
    figure = ShownFigure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for (site, label), style in zip(
        {"attn": "attention silenced", "mlp": "MLP silenced"}.items(), STYLES, strict=False
    ):
        wide = result.table[result.table["site"] == site].pivot_table(index="prompt", columns="layer", values="jaccard")
        draw_band(axes, [int(layer) for layer in wide.columns], bootstrap_band(wide), label, style)
    label_layers(axes, f"centre layer of the window of {result.header['window']}", int(result.header["n_layers"]))
    axes.set_ylim(0, 1.02)
    axes.set_ylabel(f"Jaccard overlap of the top {result.header['top']} words")
    axes.legend(frameon=False, fontsize=9)
    figure.suptitle(f"{_short(result.header['model'])}, at {result.header['at']}", fontsize=11)
    return figure


def _short(name: object) -> str:
    """The last part of a path or hub id."""
    return str(name).rstrip("/").split("/")[-1]


def skip_figure(result: SkipFlowResult) -> ShownFigure:
    """Change of the answer's probability by layer left out: a line per span, with its 95% bootstrap band."""
    figure = ShownFigure(figsize=(6.4, 3.9), layout="constrained")
    axes, header = figure.subplots(), result.header
    axes.axhline(0, color="0.4", linewidth=0.8)
    n_layers = int(header["n_layers"])
    for (span, band), style in zip(result.curves().items(), cycle(STYLES), strict=False):
        draw_band(axes, range(n_layers), band, span, style)
    label_layers(axes, "first layer left out" if header["scope"] == "from_layer" else "centre of the window", n_layers)
    axes.set_ylabel(result.quantity.label)
    axes.legend(frameon=False, fontsize=9, title="passes unchanged", title_fontsize=9)
    skipped = {"layer": "Layers", "attn": "Attention", "mlp": "MLPs"}[header["part"]]
    size = "" if header["scope"] == "from_layer" else f", window of {header['window']}"
    axes.set_title(f"{skipped} left out, {_short(header['model'])}: {header['n_counted']} prompts{size}", fontsize=10)
    return figure
