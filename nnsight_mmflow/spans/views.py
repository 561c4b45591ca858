"""One processed picture: which pixels of the original each of its patches shows. Pure data and arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Number = int | float  # beartype takes float at its word
Box = tuple[Number, Number, Number, Number]
Stretch = tuple[Number, Number]  # from, to
TOLERANCE = 1e-6  # in processed pixels: what rounding may add to a patch


class Step(NamedTuple):
    """One thing a processor does to a picture's shape.

    Attributes:
        name: "pad" and "crop" keep the centre, "resize" scales, "cut" takes out a rectangle.
        width: of the picture after the step.
        height: of the picture after the step.
        left: for a cut, where the rectangle starts.
        top: for a cut, where the rectangle starts.
    """

    name: str
    width: int
    height: int
    left: int = 0
    top: int = 0


@dataclass(frozen=True)
class View:
    """One picture that the tower saw, or one that was divided into tiles for it.

    Attributes:
        size: (width, height) of the original picture in pixels.
        steps: what the processor did, in order.
        patch: side of a patch (of what becomes one token) in processed pixels.
        grid: (rows, columns) of patches.
        name: "image" where there is only one view, else "base" (the whole picture, small) or "tiles".
        rows: where each row of patches starts and ends, in processed pixels; None: one patch after another. They are
            given where tiles are no whole number of patches, and so leave a strip unseen between them, and where
            features are shrunk after the tower.
        columns: the same for columns.
    """

    size: tuple[int, int]
    steps: tuple[Step, ...]
    patch: int
    grid: tuple[int, int]
    name: str = "image"
    rows: tuple[Stretch, ...] | None = None
    columns: tuple[Stretch, ...] | None = None
    _map: tuple[float, float, float, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Works out the affine map: processed = original * scale + shift, for x and y."""
        (width, height), scale_x, scale_y, shift_x, shift_y = self.size, 1.0, 1.0, 0.0, 0.0
        for step in self.steps:
            if step.name == "resize":
                scale_x, shift_x = scale_x * step.width / width, shift_x * step.width / width
                scale_y, shift_y = scale_y * step.height / height, shift_y * step.height / height
            else:
                left, top = corner(step, width, height)
                shift_x, shift_y = shift_x + left, shift_y + top
            width, height = step.width, step.height
        object.__setattr__(self, "_map", (scale_x, scale_y, shift_x, shift_y))
        for name, count in zip(("rows", "columns"), self.grid, strict=True):
            if getattr(self, name) is None:
                stretches = tuple((i * self.patch, (i + 1) * self.patch) for i in range(count))
                object.__setattr__(self, name, stretches)

    def to_processed(self, box: Box) -> Box:
        """A box of original pixels in pixels of the processed picture (it may reach beyond it)."""
        scale_x, scale_y, shift_x, shift_y = self._map
        left, top, right, bottom = box
        return (
            left * scale_x + shift_x,
            top * scale_y + shift_y,
            right * scale_x + shift_x,
            bottom * scale_y + shift_y,
        )

    def to_original(self, box: Box) -> Box:
        """A box of processed pixels in original pixels, cut off at the picture's edges."""
        scale_x, scale_y, shift_x, shift_y = self._map
        width, height = self.size
        left, top, right, bottom = box
        return (
            max(0.0, (left - shift_x) / scale_x),
            max(0.0, (top - shift_y) / scale_y),
            min(float(width), (right - shift_x) / scale_x),
            min(float(height), (bottom - shift_y) / scale_y),
        )

    def kept(self) -> Box:
        """The part of the original picture that the view shows, in original pixels."""
        rows, columns = self._stretches()
        return self.to_original((columns[0][0], rows[0][0], columns[-1][1], rows[-1][1]))

    def cell_box(self, cell: int) -> Box | None:
        """The original pixels that a patch (row * columns + column) shows; None for a patch of padding."""
        rows, columns = self._stretches()
        (top, bottom), (left, right) = rows[cell // self.grid[1]], columns[cell % self.grid[1]]
        box = self.to_original((left, top, right, bottom))
        scale_x, scale_y, *_ = self._map
        seen = (box[2] - box[0]) * scale_x > TOLERANCE and (box[3] - box[1]) * scale_y > TOLERANCE
        return box if seen else None

    def meets(self, box: Sequence[Number]) -> set[int]:
        """The patches that overlap a box of original pixels, by exact arithmetic."""
        width, height = self.size
        inside = max(0.0, box[0]), max(0.0, box[1]), min(width, box[2]), min(height, box[3])
        left, top, right, bottom = self.to_processed(inside)
        rows, columns = self._stretches()
        down = [i for i, (start, end) in enumerate(rows) if end - top > TOLERANCE and bottom - start > TOLERANCE]
        across = [i for i, (start, end) in enumerate(columns) if end - left > TOLERANCE and right - start > TOLERANCE]
        return {row * len(columns) + column for row in down for column in across}

    def raster(self, boxes: Sequence[Sequence[Number]], resample: int, fill: tuple[int, ...]) -> set[int]:
        """The patches in which a pixel kept its colour, when the boxes are painted and sent through the steps."""
        import numpy as np
        from PIL import Image, ImageDraw

        red, green = (255, 0, 0), (0, 255, 0)
        canvas = Image.new("RGB", self.size, green)
        for box in boxes:
            ImageDraw.Draw(canvas).rectangle(tuple(box), fill=red)
        for step in self.steps:
            if step.name == "resize":
                canvas = canvas.resize((step.width, step.height), resample=resample)
            else:
                moved = Image.new("RGB", (step.width, step.height), fill if step.name == "pad" else (0, 0, 0))
                moved.paste(canvas, corner(step, *canvas.size))
                canvas = moved
        rows, columns = self._stretches()
        kept = (np.asarray(canvas) == red).all(-1)
        return {
            row * len(columns) + column
            for row, (top, bottom) in enumerate(rows)
            for column, (left, right) in enumerate(columns)
            if kept[int(top) : math.ceil(bottom), int(left) : math.ceil(right)].any()
        }

    def _stretches(self) -> tuple[tuple[Stretch, ...], tuple[Stretch, ...]]:
        """The rows and columns, which are there once the view is made."""
        assert self.rows is not None
        assert self.columns is not None
        return self.rows, self.columns


def tile_stretches(
    tiles: int, side: int, patch: int, count: int | None = None, cut: tuple[int, int] | None = None
) -> tuple[Stretch, ...]:
    """Where each row (or column) of features lies in processed pixels, when a picture is divided into tiles.

    Args:
        tiles: how many tiles, one after another.
        side: of a tile in pixels; what is left over behind its last whole patch, no feature shows.
        patch: side of a patch.
        count: to how many rows the features are shrunk; None: not at all.
        cut: (first, end) rows of features that are shrunk; the others are left out.
    """
    each = side // patch

    def start(feature: Number) -> Number:
        return feature // each * side + feature % each * patch

    def end(feature: Number) -> Number:  # a whole tile ends with its last patch, not where the next one starts
        return start(feature - 1) + patch if feature % each == 0 else start(feature)

    if count is None:
        return tuple((start(i), end(i + 1)) for i in range(tiles * each))
    first, last = cut or (0, tiles * each)
    step = (last - first) / count
    return tuple((start(first + i * step), end(round(first + (i + 1) * step, 9))) for i in range(count))


def corner(step: Step, width: int, height: int) -> tuple[int, int]:
    """Where the old picture's corner (left, top) lies in the new one: negative where something is taken off."""
    if step.name == "cut":
        return -step.left, -step.top
    return _centred(step.name, step.width, width), _centred(step.name, step.height, height)


def _centred(step: str, new: int, old: int) -> int:
    """Where the old picture's edge lies in the new one, rounded as processors do: negative where a crop cuts."""
    if new < old:
        return -((old - new) // 2)
    # A crop larger than the picture pads, and puts the odd pixel before it; padding to a square, behind it.
    return (new - old + (step == "crop")) // 2
