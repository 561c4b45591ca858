"""The flow diagram as a figure: a column per layer, a lane per span, arrows as thick as what closing an edge costs."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from nnsight_mmflow._figure import ShownFigure
from nnsight_mmflow.patterns.flow.arrows import Thresholds, arrows, chosen_window, thresholds
from nnsight_mmflow.show.colors import INCREASE
from nnsight_mmflow.show.scene import BAR, LEFT, WIDTH, Mark, Scene, scale_of, scene_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from nnsight_mmflow.patterns.flow.result import FlowResult

POINTS = 0.72  # a pixel at 100 dots per inch
HEAD = 30  # for the title
DASH = (4.0, 2.5)
MEANING = (
    "An arrow's width is the mean change of the answer's probability when its edge is closed in the window of layers"
    " centred there; solid: the answer loses, dashed: it gains."
)


def diagram_figure(result: FlowResult, window: int | None, threshold: int | float | None) -> ShownFigure:
    """The figure of `FlowResult.diagram`."""
    window = chosen_window(result, window)
    table, limits = arrows(result, window, threshold), thresholds(result, window, threshold)
    drawn = table[table["drawn"]]
    scene = scene_of(table, int(result.header["n_layers"]), scale_of(drawn if len(drawn) else table))
    lines = [line for part in caption(table, limits) for line in textwrap.wrap(part, 165)]
    height = HEAD + scene.bottom + 92 + 13 * len(lines)
    figure = ShownFigure(figsize=(WIDTH / 100, height / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height - HEAD, -HEAD))
    axes.axis("off")
    axes.text(12, -HEAD / 2, title(result, window), fontsize=11, va="center")
    shown = set(drawn.index)
    _grid(axes, scene, window)
    for mark in scene.marks:
        if mark.row in shown:
            _arrow(axes, mark)
    _legend(axes, scene, bool((drawn["change"] > 0).any()))
    for number, line in enumerate(lines):
        axes.text(12, scene.bottom + 92 + 13 * number, line, fontsize=7, color="0.25", va="center")
    return figure


def title(result: FlowResult, window: int | None = None) -> str:
    """What a diagram shows."""
    name = str(result.header["model"]).rstrip("/").split("/")[-1]
    size = "" if window is None else f", window of {window} layer{'s' if window > 1 else ''}"
    return f"Where {name}'s answer takes its information from ({result.header['n_counted']} prompts{size})"


def caption(table: pd.DataFrame, limits: Thresholds) -> tuple[str, str]:
    """What stands under a diagram: what a width means and what is counted; what is drawn."""
    text, prompts = MEANING, table["prompts"]
    if table["window"].iloc[0] > 1:
        text += " Windows are cut off at both ends."
    if (table["change"] > 100).any():
        text += " Gains over 100% are drawn as 100%."
    if prompts.min() < prompts.max():
        text += f" An edge counts the prompts that have its spans: {prompts.min()} to {prompts.max()}."
    return text, limits.told


def every_layer(columns: int) -> int:
    """How far apart layer numbers stand, so that they can be read."""
    return 1 if columns <= 24 else 2 if columns <= 48 else 4


def label(name: str) -> list[str]:
    """A lane's name in words, in two lines at most."""
    lines = textwrap.wrap(name.replace("_", " "), 17)
    return lines if len(lines) <= 2 else [lines[0], lines[1][:15] + " …"]


def _grid(axes: Axes, scene: Scene, window: int) -> None:
    """Columns in turn white and grey, lanes with their names, layer numbers."""
    from matplotlib.patches import Rectangle

    left, right, n_layers = scene.columns[0], scene.columns[-1], len(scene.columns) - 1
    for layer, x in enumerate(scene.columns[:-1]):
        if layer % 2:
            axes.add_patch(Rectangle((x, 4), scene.columns[1] - left, scene.bottom - 4, color="0.955", lw=0, zorder=0))
        if layer % every_layer(n_layers) == 0:
            axes.text(
                (x + scene.columns[layer + 1]) / 2, scene.bottom + 10, str(layer), fontsize=8, ha="center", va="center"
            )
    for name, middle, color in scene.lanes:
        axes.add_patch(
            Rectangle((left, middle - BAR / 2), right - left, BAR, facecolor=color, alpha=0.25, lw=0, zorder=1)
        )
        axes.add_patch(Rectangle((left - 7, middle - BAR / 2), 7, BAR, facecolor=color, lw=0, zorder=1))
        axes.text(left - 13, middle, "\n".join(label(name)), fontsize=8.5, ha="right", va="center")
    below = "layer" if window == 1 else "layer (centre of the window)"
    axes.text((left + right) / 2, scene.bottom + 27, below, fontsize=9, ha="center", va="center")


def _arrow(axes: Axes, mark: Mark) -> None:
    """A line and its head on white, so that crossings can be followed."""
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path

    path = Path(mark.curve, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    points = mark.width * POINTS
    dash = (0, [max(length * POINTS, points * 0.6) / points for length in DASH]) if mark.increase else "-"
    plain = {"facecolor": "none", "capstyle": "butt", "zorder": 2}
    axes.add_patch(PathPatch(path, edgecolor="white", lw=points + 1.4, **plain))
    axes.add_patch(PathPatch(path, edgecolor=mark.color, lw=points, linestyle=dash, **plain))
    axes.add_patch(Polygon(mark.head, closed=True, facecolor=mark.color, edgecolor="white", lw=0.5, zorder=2))


def _legend(axes: Axes, scene: Scene, increases: bool) -> None:
    """What widths stand for."""
    y, x = scene.bottom + 58, float(LEFT)
    samples = [(scene.scale / part, False) for part in (1, 2, 10)]
    if increases:
        samples.append((scene.scale / 2, True))
    for percent, increase in samples:
        width = scene.line_width(percent)
        curve, head = ((x, y), (x, y), (x + 26, y), (x + 26, y)), side_head(x + 26, y, width)
        _arrow(axes, Mark(0, curve, head, width, INCREASE if increase else "#444444", increase))
        sign = "+" if increase else "−"
        axes.text(x + 52, y, f"{sign}{percent:g}%", fontsize=8, va="center")
        x += 110
    axes.text(12, y, "answer's probability", fontsize=7.5, va="center")


def side_head(x: float, y: float, width: float) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
    """The head of an arrow that points to the right."""
    long, half = 4 + 0.8 * width, 2.2 + 0.75 * width
    return (x, y - half), (x + long, y), (x, y + half)
