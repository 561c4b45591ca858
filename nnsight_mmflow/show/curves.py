"""Figures of results. Lines differ by colour, dash and marker, so that they can be told apart in grey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from nnsight_mmflow._look import PLAIN, Look
from nnsight_mmflow.runs.results import Band, bootstrap_band
from nnsight_mmflow.show.drawing import Drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nnsight_mmflow.patterns.flow.result import FlowResult
    from nnsight_mmflow.patterns.lens import LensResult
    from nnsight_mmflow.patterns.skip_flow import SkipFlowResult
    from nnsight_mmflow.patterns.word_overlap import WordOverlapResult
    from nnsight_mmflow.runs.scores import Quantity

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


def styles_of(look: Look, names: Sequence[str], labels: Mapping[str, str] | None = None) -> dict[str, Style]:
    """The chosen names, in order, each with its look: a name has the same whatever else is drawn.

    Args:
        look: what the caller asks.
        names: all that could be drawn.
        labels: what each is called unless the caller says otherwise.
    """
    chosen = look.chosen(names)
    own = {name: STYLES[number % len(STYLES)] for number, name in enumerate(names)}
    colors = look.color_of(chosen, {name: own[name][0] for name in chosen}, names)
    called = look.label_of(chosen, labels or {}, names)
    return {name: Style(colors[name], own[name][1], own[name][2], called[name]) for name in chosen}


class Style(NamedTuple):
    """How one curve looks.

    Attributes:
        color: of line, band and legend.
        dash: of the line.
        marker: on it.
        label: in the legend.
    """

    color: str
    dash: str | tuple
    marker: str
    label: str

    def line(self) -> dict[str, Any]:
        """For matplotlib's plot and errorbar."""
        return {"color": self.color, "linestyle": self.dash, "marker": self.marker, "markersize": 4.5}

    def counted(self, prompts: int) -> Style:
        """The same, with how many prompts the curve is of."""
        return self._replace(label=f"{self.label} (n={prompts})")


def draw_band(axes: Axes, x: Sequence[int], band: Band, style: Style) -> None:
    """A line with its interval."""
    mean, low, high = band
    axes.plot(x, mean, markevery=max(1, len(mean) // 12), label=style.label, **style.line())
    axes.fill_between(x, low, high, color=style.color, alpha=0.15, linewidth=0)


def label_layers(axes: Axes, x: str, n_layers: int) -> None:
    """The axis of layers."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_xlim(-0.4, n_layers - 0.6)
    axes.margins(y=0.09)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def flow_figure(result: FlowResult, look: Look = PLAIN) -> Figure:
    """Change of the answer's probability by centre layer: a line per edge, a panel per window size."""
    from nnsight_mmflow.patterns.flow.controls import controlled

    windows = [int(window) for window in result.table["window"].unique()]
    names = [edge for edge in dict.fromkeys(map(str, result.table["edge"])) if controlled(edge) is None]
    labels = {edge: " \u219b ".join(edge.split("->")).replace("_", " ") for edge in names}
    styles = styles_of(look, names, labels)
    # No wider than a notebook or a page: a wider one would be shrunk, its letters with it.
    size = max(6.4, min(9.0, 4.5 * len(windows))), 5.2
    drawing = Drawing(look, size, 1, len(windows), share="y")
    n_layers = int(result.header["n_layers"])
    for axes, window in zip(drawing.axes, windows, strict=True):
        axes.axhline(0, color="0.4", linewidth=0.8)
        _control_band(axes, result, window, list(styles))
        part, bands = result.table[result.table["window"] == window], result.curves(window)
        for edge, style in styles.items():
            count = int(part.loc[part["edge"] == edge, "prompt"].nunique())
            draw_band(axes, range(n_layers), bands[edge], style.counted(count))
        label_layers(axes, "centre layer" if drawing.small else "centre layer of the blocked window", n_layers)
        drawing.panel(axes, f"window of {window} layer{'s' if window > 1 else ''}")
    drawing.axes[0].set_ylabel(value_label(result.quantity, drawing.small))
    drawing.legend("source \u219b target")
    drawing.title(f"Attention knockout, {short(result.header['model'])}", ": mean and 95% bootstrap band")
    return drawing.done()


def value_label(quantity: Quantity, small: bool) -> str:
    """What an axis of changes is called; in a narrow figure its unit alone."""
    if not small:
        return quantity.label
    return f"change ({quantity.unit.strip()})" if quantity.unit else "change"


def _control_band(axes: Axes, result: FlowResult, window: int, edges: Sequence[str]) -> None:
    """Grey behind the curves: between the lowest and the highest mean of the drawn edges' random spans."""
    import numpy as np

    means = [table for edge, table in result.controls(window).items() if edge in edges]
    if not means:
        return
    together = np.concatenate([table.to_numpy(dtype=float) for table in means])
    draws = max(len(table) for table in means)
    label = f"control: {draws} random span{'s' if draws > 1 else ''} for each of {len(means)} edges"
    layers = [int(layer) for layer in means[0].columns]
    low, high = np.nanmin(together, 0), np.nanmax(together, 0)
    axes.fill_between(layers, low, high, color="0.72", edgecolor="0.5", linewidth=0.8, label=label, zorder=0)


def lens_figure(result: LensResult, look: Look = PLAIN) -> Figure:
    """Probability of the followed words by layer: a panel each for the residual stream, attention and MLP outputs."""
    from nnsight_mmflow.patterns.lens import FOLLOWED, WRITTEN

    sites = {"resid": "residual stream", "attn": "attention output", "mlp": "MLP output"}
    whole, n_layers = result.of_at(), int(result.header["n_layers"])
    names = [name for name in (*FOLLOWED, WRITTEN) if name in whole and whole[name].notna().any()]
    called = {name: name.replace("_", ", ") for name in names} | {WRITTEN: "what is written next"}
    styles = styles_of(look, names, called)
    drawing = Drawing(look, (9.0, 3.9), 1, 3, share="y")
    for axes, (site, title) in zip(drawing.axes, sites.items(), strict=True):
        table = whole[whole["site"] == site]
        for name, style in styles.items():
            wide = table.pivot_table(index="prompt", columns="layer", values=name) * 100
            draw_band(axes, [int(layer) for layer in wide.columns], bootstrap_band(wide), style.counted(len(wide)))
        below = "after layer (-1: embeddings)" if site == "resid" and not drawing.small else "layer"
        label_layers(axes, below, n_layers)
        axes.set_xlim(-1.4 if site == "resid" else -0.4)
        drawing.panel(axes, title)
    drawing.axes[0].set_ylabel("probability (%)")
    drawing.legend()
    normed = "with the final norm" if result.header["norm"] else "without norm (last point normed)"
    more = f": {normed}, mean and 95% bootstrap band"
    drawing.title(f"Lens at {result.header['at']}, {short(result.header['model'])}", more)
    return drawing.done()


def overlap_figure(result: WordOverlapResult, look: Look = PLAIN) -> Figure:
    """Overlap of the top words by centre layer, a line per silenced module."""
    styles = styles_of(look, ["attn", "mlp"], {"attn": "attention silenced", "mlp": "MLP silenced"})
    drawing = Drawing(look, (6.4, 3.8))
    axes, header = drawing.axes[0], result.header
    for site, style in styles.items():
        wide = result.table[result.table["site"] == site].pivot_table(index="prompt", columns="layer", values="jaccard")
        draw_band(axes, [int(layer) for layer in wide.columns], bootstrap_band(wide), style.counted(len(wide)))
    label_layers(axes, f"centre layer of the window of {header['window']}", int(header["n_layers"]))
    axes.set_ylim(0, 1.02)
    words = f"top {header['top']} words"
    axes.set_ylabel(f"overlap, {words}" if drawing.small else f"Jaccard overlap of the {words}")
    drawing.legend()
    drawing.title(f"Word overlap at {header['at']}, {short(header['model'])}", ": mean and 95% bootstrap band")
    return drawing.done()


def short(name: object) -> str:
    """The last part of a path or hub id."""
    return str(name).rstrip("/").split("/")[-1]


def skip_figure(result: SkipFlowResult, look: Look = PLAIN) -> Figure:
    """Change of the answer's probability by layer left out: a line per span, with its 95% bootstrap band."""
    curves, header = result.curves(), result.header
    styles = styles_of(look, list(curves))
    drawing = Drawing(look, (6.4, 3.9))
    axes, n_layers = drawing.axes[0], int(header["n_layers"])
    axes.axhline(0, color="0.4", linewidth=0.8)
    for span, style in styles.items():
        count = int(result.table.loc[result.table["span"] == span, "prompt"].nunique())
        draw_band(axes, range(n_layers), curves[span], style.counted(count))
    label_layers(axes, "first layer left out" if header["scope"] == "from_layer" else "centre of the window", n_layers)
    axes.set_ylabel(value_label(result.quantity, drawing.small))
    drawing.legend("passes unchanged")
    skipped = {"layer": "Layers", "attn": "Attention", "mlp": "MLPs"}[header["part"]]
    window = "" if header["scope"] == "from_layer" else f", window of {header['window']}"
    drawing.title(f"{skipped} left out, {short(header['model'])}", f"{window}: mean and 95% bootstrap band")
    return drawing.done()
