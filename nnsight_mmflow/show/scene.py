"""Where everything of the flow diagram stands, in pixels: lanes, columns, arrows. Figure and page draw the same scene.

Time runs from left to right (layers), the prompt from top to bottom (spans). An arrow leaves its source's lane in the
left half of a layer's column and meets its target's lane in the right half; arrows that come from further away arrive
further to the right, so that they do not cross.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnsight_mmflow.patterns.flow.arrows import SMALLEST
from nnsight_mmflow.show.colors import INCREASE, in_order, span_color

if TYPE_CHECKING:
    import pandas as pd

WIDTH, LEFT, RIGHT = 900, 130, 14
TOP, LANE, BAR = 22, 72, 12  # over the first lane, without loops; from lane to lane; a lane's height
WIDEST, THINNEST = 16.0, 0.8
STEPS = (1, 2, 5, 10, 20, 50, 100)
Point = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """One arrow.

    Attributes:
        row: its row in the table of arrows.
        curve: start, two controls and end of a cubic Bezier curve.
        head: the corners of its head.
        width: of its line.
        color: of its source's span, or of an increase.
        increase: whether the answer becomes more likely.
    """

    row: int
    curve: tuple[Point, Point, Point, Point]
    head: tuple[Point, Point, Point]
    width: float
    color: str
    increase: bool


@dataclass(frozen=True)
class Scene:
    """The diagram.

    Attributes:
        lanes: name, middle and colour of each.
        columns: left edge of each layer's column, and the right edge of the last.
        marks: an arrow for each row of the table, the thick ones first.
        scale: the effect in percent that is drawn at `widest`.
        widest: the widest line.
        bottom: under the lanes.
    """

    lanes: tuple[tuple[str, float, str], ...]
    columns: tuple[float, ...]
    marks: tuple[Mark, ...]
    scale: float
    widest: float
    bottom: float

    def line_width(self, percent: float) -> float:
        """How wide an effect is drawn; over 100% as 100."""
        return max(THINNEST, self.widest * min(abs(percent), self.scale) / self.scale)


def scale_of(table: pd.DataFrame) -> float:
    """The effect that the widest arrow stands for: the next of 1, 2, 5, ... 100 percent."""
    largest = min(100.0, float(table["change"].abs().max()))
    return float(next(step for step in STEPS if step >= largest))


def scene_of(
    table: pd.DataFrame,
    n_layers: int,
    scale: float,
    *,
    width: float | int = WIDTH,
    left: float | int = LEFT,
    lane: float | int = LANE,
    colors: Mapping[str, str] | None = None,
) -> Scene:
    """The scene of a table of arrows.

    Args:
        table: of the result.
        n_layers: how many columns.
        scale: the effect in percent of the widest arrow.
        width: of the whole.
        left: where the first column begins.
        lane: from lane to lane.
        colors: of spans, beside their own.
    """
    own = {} if colors is None else colors
    names = in_order([*table["source"], *table["target"]])
    looped = bool(((table["source"] == names[0]) & (table["target"] == names[0])).any())
    top = TOP + (lane // 3 if looped else 0)
    middle = {name: float(top + lane * number) for number, name in enumerate(names)}
    across = (width - left - RIGHT) / n_layers
    columns = tuple(left + across * layer for layer in range(n_layers + 1))
    lanes = tuple((name, middle[name], own.get(name, span_color(name))) for name in names)
    scene = Scene(lanes, columns, (), scale, min(WIDEST, across * 0.5), middle[names[-1]] + BAR)
    # What is never large enough to be drawn takes no room beside the others.
    seen = table[table["change"].abs() >= SMALLEST]
    pairs = {(str(source), str(target)) for source, target in zip(seen["source"], seen["target"], strict=True)}
    marks = []
    for row, (source, target, layer, change) in enumerate(
        zip(table["source"], table["target"], table["layer"], table["change"], strict=True)
    ):
        start, end = _slots(source, target, pairs | {(source, target)}, middle)
        edge = columns[int(layer)]
        wide = scene.line_width(change)
        curve, head = _curve(edge + across * start, middle[source], edge + across * end, middle[target], wide, lane)
        color = INCREASE if change > 0 else own.get(source, span_color(source))
        marks.append(Mark(row, curve, head, wide, color, change > 0))
    marks.sort(key=lambda mark: -mark.width)
    return Scene(lanes, columns, tuple(marks), scale, scene.widest, scene.bottom)


def _slots(source: str, target: str, pairs: set[tuple[str, str]], middle: dict[str, float]) -> tuple[float, float]:
    """Where in a column an arrow starts and ends, as shares of its width."""
    if source == target:
        return 0.3, 0.72
    leaving = sorted(
        (other for end, other in pairs if end == source != other), key=lambda end: _far(source, end, middle)
    )
    coming = sorted((end for end, other in pairs if other == target != end), key=lambda end: _far(target, end, middle))
    start = 0.06 + 0.34 * (leaving.index(target) + 0.5) / len(leaving)
    end = 0.46 + 0.5 * (coming.index(source) + 0.5) / len(coming)
    return start, end


def _far(lane: str, other: str, middle: dict[str, float]) -> float:
    return abs(middle[lane] - middle[other])


def _curve(
    x0: float, y0: float, x1: float, y1: float, width: float, lane: float | int
) -> tuple[tuple[Point, Point, Point, Point], tuple[Point, Point, Point]]:
    """An arrow's line and head, from one lane's edge to another's; over the lane where both are the same."""
    long, half = 4 + 0.8 * width, 2.2 + 0.75 * width
    loop = y0 == y1
    down = 1 if y1 > y0 or loop else -1
    tip = y1 - down * BAR / 2
    start = y0 - BAR / 2 if loop else y0 + down * BAR / 2
    end = tip - down * long
    bend = start - lane * 0.5 if loop else (start + end) / 2
    curve = ((x0, start), (x0, bend), (x1, bend), (x1, end))
    return curve, ((x1 - half, end), (x1, tip), (x1 + half, end))
