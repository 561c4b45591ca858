"""One processed picture: which pixels of the original each of its patches shows. Pure data and arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Number = int | float  # beartype takes float at its word
Box = tuple[Number, Number, Number, Number]
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
    """

    size: tuple[int, int]
    steps: tuple[Step, ...]
    patch: int
    grid: tuple[int, int]
    name: str = "image"
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
        rows, columns = self.grid
        return self.to_original((0, 0, columns * self.patch, rows * self.patch))

    def cell_box(self, cell: int) -> Box | None:
        """The original pixels that a patch (row * columns + column) shows; None for a patch of padding."""
        row, column = divmod(cell, self.grid[1])
        left, top = column * self.patch, row * self.patch
        box = self.to_original((left, top, left + self.patch, top + self.patch))
        scale_x, scale_y, *_ = self._map
        seen = (box[2] - box[0]) * scale_x > TOLERANCE and (box[3] - box[1]) * scale_y > TOLERANCE
        return box if seen else None

    def meets(self, box: Sequence[Number]) -> set[int]:
        """The patches that overlap a box of original pixels, by exact arithmetic."""
        width, height = self.size
        inside = max(0.0, box[0]), max(0.0, box[1]), min(width, box[2]), min(height, box[3])
        left, top, right, bottom = self.to_processed(inside)
        rows, columns = self.grid
        return {
            row * columns + column
            for row in range(rows)
            if (row + 1) * self.patch - top > TOLERANCE and bottom - row * self.patch > TOLERANCE
            for column in range(columns)
            if (column + 1) * self.patch - left > TOLERANCE and right - column * self.patch > TOLERANCE
        }

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
        rows, columns = self.grid
        kept = (np.asarray(canvas) == red).all(-1)[: rows * self.patch, : columns * self.patch]
        touched = kept.reshape(rows, self.patch, columns, self.patch).any((1, 3))
        return set(np.flatnonzero(touched).tolist())


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
