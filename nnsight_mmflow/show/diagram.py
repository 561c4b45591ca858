"""The flow diagram as a figure: a column per layer, a lane per span, arrows as thick as what closing an edge costs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._figure import with_truetype
from nnsight_mmflow._look import PLAIN, Look
from nnsight_mmflow.patterns.flow.arrows import Thresholds, arrows, chosen_window, thresholds
from nnsight_mmflow.show.colors import INCREASE, in_order
from nnsight_mmflow.show.curves import short
from nnsight_mmflow.show.drawing import COLUMN, LETTER, Drawing
from nnsight_mmflow.show.scene import BAR, LANE, LEFT, TOP, WIDTH, Mark, Scene, scale_of, scene_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nnsight_mmflow.patterns.flow.result import FlowResult

LEAST = 14  # pixels from lane to lane, and from a layer's number to the next
POINTS = 0.72  # a pixel at 100 dots per inch
HEAD = 30  # for the title
DASH = (4.0, 2.5)
MEANING = (
    "An arrow's width is the mean change of the answer's probability when its edge is closed in the window of layers"
    " centred there; solid: the answer loses, dashed: it gains."
)


@dataclass(frozen=True)
class Place:
    """Where things stand below the lanes, in pixels, and the sizes of letters, in points.

    Attributes:
        left: where the first column begins.
        letters: of a lane's name, in a line.
        text: size of letters.
        title: size of the title's.
        numbers: layer numbers.
        axis: what they are.
        legend: the samples of arrows.
        samples: where the first sample begins.
        sample: how long one is.
        apart: from sample to sample.
        meaning: what the widths are.
        below: where the caption begins.
    """

    left: float | int
    letters: int
    text: float | int
    title: float | int
    numbers: float | int
    axis: float | int
    legend: float | int
    samples: float | int
    sample: float | int
    apart: float | int
    meaning: str
    below: float | int


LARGE = Place(LEFT, 17, 8.5, 11.0, 10, 27, 58, LEFT, 26, 110, "answer's probability", 92)
SMALL = Place(86, 15, 6.0, 7.5, 8, 19, 37, 62, 17, 70, "probability", 48)


def diagram_figure(result: FlowResult, window: int | None, threshold: int | float | None, look: Look = PLAIN) -> Figure:
    """The figure of `FlowResult.diagram`."""
    window = chosen_window(result, window)
    table, limits = arrows(result, window, threshold), thresholds(result, window, threshold)
    table = table[table["edge"].isin(look.chosen(list(dict.fromkeys(table["edge"]))))]
    drawn, n_layers = table[table["drawn"]], int(result.header["n_layers"])
    lanes = in_order([*table["source"], *table["target"]])
    colors = look.color_of(lanes, {}, lanes)
    names = look.label_of(lanes, {}, lanes)
    scale = scale_of(drawn if len(drawn) else table)
    if look.ax is None and look.figsize is None:
        scene, place = scene_of(table, n_layers, scale, colors=colors), LARGE
        lines = _lines(caption(table, limits), WIDTH)
        drawing = Drawing(look, (WIDTH / 100, (HEAD + scene.bottom + place.below + 13 * len(lines)) / 100))
        width, height = _pixels(drawing)
    else:
        drawing = Drawing(look, (1, 1))
        width, height = _pixels(drawing)
        place = SMALL if width < 100 * COLUMN else LARGE
        lines = _lines(caption(table, limits), width) if drawing.own and place is LARGE else []
        room = height - HEAD * drawing.own - TOP - BAR - place.below - 13 * len(lines)
        looped = bool(((table["source"] == lanes[0]) & (table["target"] == lanes[0])).any())
        lane = room / (len(lanes) - 1 + looped / 3) if len(lanes) > 1 or looped else LANE
        if lane < LEAST:
            raise MMFlowError(
                f"{width / 100:.1f} x {height / 100:.1f} inches are too low for {len(lanes)} lanes:"
                f" {(height + (LEAST - lane) * len(lanes)) / 100:.1f} are needed, or fewer edges="
            )
        scene = scene_of(table, n_layers, scale, width=width, left=place.left, lane=min(lane, LANE), colors=colors)
    axes, head = drawing.axes[0], HEAD * drawing.own
    if drawing.own:
        drawing.figure.set_layout_engine("none")
        axes.set_position((0, 0, 1, 1))
        most = int(0.72 * (width - 24) / (LETTER * place.title))
        axes.text(12, -HEAD / 2, _fitting(result, window, most), fontsize=place.title, va="center")
    axes.set(xlim=(0, width), ylim=(height - head, -head))
    axes.axis("off")
    shown = set(drawn.index)
    _grid(axes, scene, window, names, place)
    for mark in scene.marks:
        if mark.row in shown:
            _arrow(axes, mark)
    _legend(axes, scene, bool((drawn["change"] > 0).any()), place)
    for number, line in enumerate(lines):
        axes.text(12, scene.bottom + place.below + 13 * number, line, fontsize=7, color="0.25", va="center")
    with_truetype(drawing.figure)
    return drawing.figure


def _pixels(drawing: Drawing) -> tuple[float, float]:
    """Width and height of where it is drawn, at 100 dots per inch."""
    figure = drawing.figure
    box = drawing.axes[0].get_position()
    share = (1.0, 1.0) if drawing.own else (box.width, box.height)
    return 100 * figure.get_figwidth() * share[0], 100 * figure.get_figheight() * share[1]


def _lines(texts: Sequence[str], width: float | int) -> list[str]:
    return [line for text in texts for line in textwrap.wrap(text, int(165 * width / WIDTH))]


def _fitting(result: FlowResult, window: int, most: int) -> str:
    """The title; a short one, with n, where there is no room for it."""
    whole = title(result, window)
    name, count = short(result.header["model"]), f" (n={result.header['n_counted']})"
    if len(whole) <= most:
        return whole
    return textwrap.shorten(f"Where {name}'s answer reads from", max(12, most - len(count)), placeholder=" …") + count


def title(result: FlowResult, window: int | None = None) -> str:
    """What a diagram shows."""
    name = short(result.header["model"])
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


def _every(columns: int, across: float) -> int:
    return next(step for step in (1, 2, 4, 8, columns) if step >= columns or step * across >= LEAST)


def every_layer(columns: int) -> int:
    """How far apart layer numbers stand, so that they can be read."""
    return 1 if columns <= 24 else 2 if columns <= 48 else 4


def label(name: str, letters: int = 17) -> list[str]:
    """A lane's name in words, in two lines at most."""
    lines = textwrap.wrap(name.replace("_", " "), letters)
    return lines if len(lines) <= 2 else [lines[0], lines[1][: letters - 2] + " …"]


def _grid(axes: Axes, scene: Scene, window: int, names: Mapping[str, str], place: Place) -> None:
    """Columns in turn white and grey, lanes with their names, layer numbers."""
    from matplotlib.patches import Rectangle

    left, right, n_layers = scene.columns[0], scene.columns[-1], len(scene.columns) - 1
    step = every_layer(n_layers) if place is LARGE else _every(n_layers, scene.columns[1] - left)
    for layer, x in enumerate(scene.columns[:-1]):
        if layer % 2:
            axes.add_patch(Rectangle((x, 4), scene.columns[1] - left, scene.bottom - 4, color="0.955", lw=0, zorder=0))
        if layer % step == 0:
            centre, down = (x + scene.columns[layer + 1]) / 2, scene.bottom + place.numbers
            axes.text(centre, down, str(layer), fontsize=place.text, ha="center", va="center")
    for name, middle, color in scene.lanes:
        axes.add_patch(
            Rectangle((left, middle - BAR / 2), right - left, BAR, facecolor=color, alpha=0.25, lw=0, zorder=1)
        )
        axes.add_patch(Rectangle((left - 7, middle - BAR / 2), 7, BAR, facecolor=color, lw=0, zorder=1))
        axes.text(
            left - 13,
            middle,
            "\n".join(label(names[name], place.letters)),
            fontsize=place.text,
            ha="right",
            va="center",
        )
    below = "layer" if window == 1 else "layer (centre of the window)"
    axes.text((left + right) / 2, scene.bottom + place.axis, below, fontsize=place.text + 0.5, ha="center", va="center")


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


def _legend(axes: Axes, scene: Scene, increases: bool, place: Place) -> None:
    """What widths stand for."""
    y, x, long = scene.bottom + place.legend, float(place.samples), float(place.sample)
    samples = [(scene.scale / part, False) for part in (1, 2, 10)]
    if increases:
        samples.append((scene.scale / 2, True))
    for percent, increase in samples:
        width = scene.line_width(percent)
        curve, head = ((x, y), (x, y), (x + long, y), (x + long, y)), side_head(x + long, y, width)
        _arrow(axes, Mark(0, curve, head, width, INCREASE if increase else "#444444", increase))
        sign = "+" if increase else "−"
        axes.text(x + 2 * long, y, f"{sign}{percent:g}%", fontsize=place.text - 0.5, va="center")
        x += place.apart
    axes.text(12, y, place.meaning, fontsize=place.text - 1, va="center")


def side_head(x: float, y: float, width: float) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
    """The head of an arrow that points to the right."""
    long, half = 4 + 0.8 * width, 2.2 + 0.75 * width
    return (x, y - half), (x + long, y), (x, y + half)
