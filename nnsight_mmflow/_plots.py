"""Figures of results. Lines differ by colour, dash and marker, so that they can be told apart in grey."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from nnsight_mmflow._results import Band, bootstrap_band

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nnsight_mmflow._prompt import Prompt
    from nnsight_mmflow.patterns.contributions_result import ContributionsResult
    from nnsight_mmflow.patterns.flow_result import FlowResult
    from nnsight_mmflow.patterns.lens import LensResult
    from nnsight_mmflow.patterns.trace_result import TraceResult
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


class ShownFigure(Figure):
    """A figure that notebooks show without pyplot, which would keep every figure in memory."""

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=100)
        return drawn.getvalue()


def _band(axes: Axes, x: Sequence[int], band: Band, label: str, style: tuple) -> None:
    color, dash, marker = style
    mean, low, high = band
    every = max(1, len(mean) // 12)
    axes.plot(x, mean, color=color, linestyle=dash, marker=marker, markevery=every, markersize=5, label=label)
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def _labels(axes: Axes, x: str, n_layers: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.4, n_layers - 0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def flow_figure(result: FlowResult) -> ShownFigure:
    """Change of the answer's probability by centre layer: a line per edge, a panel per window size."""
    windows = [int(window) for window in result.table["window"].unique()]
    figure = ShownFigure(figsize=(3.2 + 4.4 * len(windows), 4.2), layout="constrained")
    panels = list(figure.subplots(1, len(windows), sharey=True, squeeze=False)[0])
    n_layers = int(result.header["n_layers"])
    for axes, window in zip(panels, windows, strict=True):
        axes.axhline(0, color="0.4", linewidth=0.8)
        for (edge, band), style in zip(result.curves(window).items(), cycle(STYLES), strict=False):
            source, target = edge.split("->")
            label = f"{source} $\\nrightarrow$ {target}".replace("_", " ")
            _band(axes, range(n_layers), band, label, style)
        _labels(axes, "centre layer of the blocked window", n_layers)
        axes.set_title(f"window of {window} layer{'s' if window > 1 else ''}", fontsize=10)
    panels[0].set_ylabel("change of the answer's probability (%)")
    panels[-1].legend(
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        fontsize=9,
        title="source $\\nrightarrow$ target",
        title_fontsize=9,
    )
    figure.suptitle(
        f"Attention knockout, {_short(result.header['model'])}: {result.header['n_counted']} prompts,"
        " mean and 95% bootstrap band",
        fontsize=11,
    )
    return figure


def lens_figure(result: LensResult) -> ShownFigure:
    """Probability of the followed words by layer: a panel each for the residual stream, attention and MLP outputs."""
    from nnsight_mmflow.patterns.lens import FOLLOWED

    sites = {"resid": "residual stream", "attn": "attention output", "mlp": "MLP output"}
    figure = ShownFigure(figsize=(12.5, 3.8), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (site, title) in zip(panels, sites.items(), strict=True):
        table = result.table[result.table["site"] == site]
        for name, style in zip(FOLLOWED, STYLES, strict=False):
            if table[name].notna().any():
                wide = table.pivot_table(index="prompt", columns="layer", values=name) * 100
                _band(
                    axes, [int(layer) for layer in wide.columns], bootstrap_band(wide), name.replace("_", ", "), style
                )
        _labels(axes, "after layer (-1: embeddings)" if site == "resid" else "layer", int(result.header["n_layers"]))
        axes.set_xlim(-1.4 if site == "resid" else -0.4)
        axes.set_title(title, fontsize=10)
    panels[0].set_ylabel("probability (%)")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
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
        _band(axes, [int(layer) for layer in wide.columns], bootstrap_band(wide), label, style)
    _labels(axes, f"centre layer of the window of {result.header['window']}", int(result.header["n_layers"]))
    axes.set_ylim(0, 1.02)
    axes.set_ylabel(f"Jaccard overlap of the top {result.header['top']} words")
    axes.legend(frameon=False, fontsize=9)
    figure.suptitle(f"{_short(result.header['model'])}, at {result.header['at']}", fontsize=11)
    return figure


def _short(name: object) -> str:
    """The last part of a path or hub id."""
    return str(name).rstrip("/").split("/")[-1]


def trace_figure(result: TraceResult, quantity: str = "effect") -> ShownFigure:
    """Heat maps of causal tracing: span by layer, a panel per site; numbers in the cells where there is room."""
    from textwrap import fill

    maps = result.map(quantity)
    names = {"mlp": "MLP output", "attn": "attention output", "resid": "residual stream"}
    spans = max(len(table) for table in maps.values())
    layers = max(table.shape[1] for table in maps.values())
    wide = max(5.0, 1.6 + 0.5 * layers)
    figure = ShownFigure(figsize=(wide * len(maps) + 1.2, 1.9 + 0.42 * spans), layout="constrained")
    axes = figure.subplots(1, len(maps), squeeze=False, sharey=True)[0]
    largest = max(float(table.abs().to_numpy().max()) for table in maps.values()) or 1.0
    lowest = min(0.0, min(float(table.to_numpy().min()) for table in maps.values()))
    for axis, (site, table) in zip(axes, maps.items(), strict=True):
        values = table.to_numpy()
        image = axis.imshow(values, aspect="auto", cmap="cividis", vmin=lowest, vmax=largest)
        axis.set_yticks(range(len(table)), [fill(str(span), 26) for span in table.index], fontsize=8)
        axis.set_xticks(range(0, layers, max(1, layers // 12)))
        axis.set_xlabel("centre layer")
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
    figure.colorbar(image, ax=list(axes), label=quantity.replace("_", " "))
    figure.suptitle(fill(f"Causal tracing, {result.header['model']}: {result.caption(quantity)}", 110), fontsize=9)
    return figure


def contributions_figure(result: ContributionsResult) -> ShownFigure:
    """The source's share of all contributions by layer, and the mean norm of each patch over prompts and layers."""
    table = result.table[result.table["head"] == -1]
    shares = table.groupby(["prompt", "layer"])["share"].sum().unstack()
    patches = table.dropna(subset=["row"])
    figure = ShownFigure(figsize=(9.5 if len(patches) else 5.5, 3.6), layout="constrained")
    left, *right = figure.subplots(1, 2 if len(patches) else 1, squeeze=False).flatten().tolist()
    _band(
        left, [int(layer) for layer in shares.columns], bootstrap_band(shares), str(result.header["source"]), STYLES[0]
    )
    _labels(left, "layer", int(result.header["n_layers"]))
    left.set_ylabel("share of all contributions")
    left.set_title(f"{result.header['source']} to {result.header['target']}", fontsize=10)
    for axes in right:
        grid = patches.pivot_table(index="row", columns="column", values="norm", aggfunc="mean")
        image = axes.imshow(grid.to_numpy(dtype=float), cmap="cividis")
        axes.set_title("mean norm by patch, all layers", fontsize=10)
        axes.set(xticks=[], yticks=[])
        figure.colorbar(image, ax=axes)
    told = f"Attention contributions, {result.header['model']}: {result.header['n_prompts']} prompts"
    figure.suptitle(told + ", norm of the sum over heads", fontsize=10)
    return figure


def contributions_on_image(result: ContributionsResult, prompt: Prompt, layer: int | None) -> ShownFigure:
    """The norms on the picture: each token's own pixels, darker where less is taken."""
    from matplotlib.patches import Rectangle

    table = result.table[(result.table["head"] == -1) & (result.table["prompt"] == (prompt.key or "0"))]
    if layer is not None:
        table = table[table["layer"] == layer]
    image = prompt.spans["image"].images[0]
    norms = table.groupby("position")["norm"].sum()
    largest = float(norms.max()) or 1.0
    figure = ShownFigure(
        figsize=(4.4, 4.4 * prompt.images[0].height / prompt.images[0].width + 0.5), layout="constrained"
    )
    axes = figure.subplots()
    axes.imshow(prompt.images[0])
    for token, position in enumerate(image.positions):
        box = image.geometry.token_box(token)
        if box is None or position not in norms.index:
            continue
        left, top, right, bottom = box
        shade = 0.85 * (1 - float(norms[position]) / largest)
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, color="black", alpha=shade, lw=0))
    axes.set(xticks=[], yticks=[])
    where = "all layers" if layer is None else f"layer {layer}"
    axes.set_title(f"{result.header['source']} to {result.header['target']}, {where}", fontsize=10)
    axes.set_xlabel(prompt.question, fontsize=9)
    return figure
