"""A heat map with a row for each span or edge and a column for each layer; names and numbers where they have room."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from nnsight_mmflow.show.drawing import Drawing

LINE = 1.22  # of a letter's height
CELL = 0.3  # inches across that a number of two digits needs


def layer_heat(
    drawing: Drawing,
    axes: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    layers: Sequence[int],
    ends: tuple[float, float],
    colors: str,
    panels: int = 1,
) -> AxesImage:
    """The picture in a panel.

    Args:
        drawing: what it belongs to.
        axes: the panel.
        values: (rows, layers).
        rows: their names, cut where they have no room.
        layers: their numbers.
        ends: of the scale.
        colors: the colour map.
        panels: how many stand below one another.
    """
    low, high = ends
    image = axes.imshow(values, aspect="auto", cmap=colors, vmin=low, vmax=high)
    room = max(0.3, (drawing.height - 0.75) / panels - 0.3) / len(rows)  # inches of a row
    lines = int(72 * room / (LINE * drawing.size("row")))
    wide = drawing.letters("row", 0.34 * drawing.width if drawing.small else 2.2)
    step = max(1, int(np.ceil(LINE * drawing.size("row") / (72 * room))))  # not every name, where rows are too low
    shown = [_name(name, wide, max(1, lines)) for name in rows]
    axes.set_yticks(range(0, len(rows), step), shown[::step], parse_math=False)
    axes.tick_params(axis="y", labelsize=drawing.size("row"))
    across = max(1.0, drawing.width * (0.45 if drawing.small else 0.6))
    every = max(1, int(np.ceil(len(layers) * 0.24 / across)))
    axes.set_xticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])
    tall = room * 72 > LINE * drawing.size("cell")
    if across / len(layers) >= CELL and tall:
        for (row, column), value in np.ndenumerate(values):
            written = f"{value:.2f}".replace("-0.00", "0.00")
            color = _ink(image, float(value))
            axes.text(column, row, written, ha="center", va="center", fontsize=drawing.size("cell"), color=color)
    return image


def _name(name: str, letters: int, lines: int) -> str:
    """A name in as many lines as there is room for, cut where it has more."""
    folded = textwrap.wrap(name, letters) or [""]
    if len(folded) <= lines:
        return "\n".join(folded)
    last = folded[lines - 1][: letters - 1].rstrip()
    return "\n".join([*folded[: lines - 1], f"{last}\u2026"])


def _ink(image: AxesImage, value: float) -> str:
    """Black or white, whichever is read on the cell's colour."""
    red, green, blue, _ = image.to_rgba(np.array([value]))[0]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
