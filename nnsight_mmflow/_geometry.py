"""Where each image token lies in the original picture: the processor's pad, resize and crop, as pure data.

A token shows one patch of the processed picture. Two rules lead from a pixel box to tokens:

- "meets": the tokens whose patch overlaps the box, by exact arithmetic. A token's own box gives that token back.
- "raster": the box is painted on a canvas that goes through the same steps as the picture, and a token counts if any
  pixel of its patch kept the exact colour. The rule of the Cross-modal Information Flow code (spec section 1.4); its
  painted box includes the end corner, so it is one pixel too large, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nnsight_mmflow._errors import SpanError

Number = int | float  # beartype takes float at its word
Box = tuple[Number, Number, Number, Number]
Step = tuple[str, int, int]  # ("pad" | "resize" | "crop", width, height) of the picture after the step
TOLERANCE = 1e-6  # in processed pixels: what rounding may add to a patch


@dataclass(frozen=True)
class ImageGeometry:
    """How one picture became image tokens.

    Attributes:
        size: (width, height) of the original picture in pixels.
        steps: what the processor did, in order; each with the picture's (width, height) after it.
        patch: side of a patch in processed pixels.
        grid: (rows, columns) of patches.
        cells: for each image token its patch (row * columns + column), or None (a class token).
        raster: whether "raster" is the rule that boxes follow unless asked otherwise.
        resample: PIL's number of the resize filter (3: bicubic).
        fill: the colour of padding to a square (CLIP's mean unless the processor has another).
    """

    size: tuple[int, int]
    steps: tuple[Step, ...]
    patch: int
    grid: tuple[int, int]
    cells: tuple[int | None, ...]
    raster: bool = False
    resample: int = 3
    fill: tuple[int, ...] = (122, 116, 104)
    _map: tuple[float, float, float, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Works out the affine map: processed = original * scale + shift, for x and y."""
        (width, height), scale_x, scale_y, shift_x, shift_y = self.size, 1.0, 1.0, 0.0, 0.0
        for name, new_width, new_height in self.steps:
            if name == "resize":
                scale_x, shift_x = scale_x * new_width / width, shift_x * new_width / width
                scale_y, shift_y = scale_y * new_height / height, shift_y * new_height / height
            else:  # pad and crop both keep the centre
                shift_x += _centred(name, new_width, width)
                shift_y += _centred(name, new_height, height)
            width, height = new_width, new_height
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

    def kept(self) -> Box:
        """The part of the original picture that the model sees, in original pixels."""
        rows, columns = self.grid
        return self._to_original((0, 0, columns * self.patch, rows * self.patch))

    def token_box(self, token: int) -> Box | None:
        """The pixels of the original picture that a token shows; None for a class token or a patch of padding."""
        cell = self.cells[token]
        if cell is None:
            return None
        row, column = divmod(cell, self.grid[1])
        left, top = column * self.patch, row * self.patch
        box = self._to_original((left, top, left + self.patch, top + self.patch))
        scale_x, scale_y, *_ = self._map
        seen = (box[2] - box[0]) * scale_x > TOLERANCE and (box[3] - box[1]) * scale_y > TOLERANCE
        return box if seen else None

    def tokens(self, boxes: Sequence[Sequence[Number]], rule: str | None = None) -> tuple[int, ...]:
        """The tokens (counted within this image) whose patch meets any of the boxes.

        Raises:
            SpanError: a box outside the picture, without area, or wholly removed by the processor's crop.
        """
        rule = rule or ("raster" if self.raster else "meets")
        if rule not in ("meets", "raster"):
            raise SpanError(f'rule must be "meets" or "raster", not {rule!r}.')
        if not boxes:
            raise SpanError("no box was given; each is (x0, y0, x1, y1) in pixels of the original picture.")
        for box in boxes:
            self._check(box)
        cells = self._raster(boxes) if rule == "raster" else set().union(*map(self._meets, boxes))
        found = tuple(i for i, cell in enumerate(self.cells) if cell in cells)
        if not found:
            left, top, right, bottom = (round(edge, 1) for edge in self.kept())
            cropped = any(name == "crop" for name, *_ in self.steps)
            raise SpanError(
                f"no image token shows any of {list(boxes)}: of the {self.size[0]}x{self.size[1]} picture the model"
                f" sees x {left} to {right} and y {top} to {bottom}. "
                + (
                    "The processor centre-crops; graph.prompt(..., pad_to_square=True) keeps the whole picture."
                    if cropped
                    else "The box is too small to survive the resize under this rule."
                )
            )
        return found

    def _to_original(self, box: Box) -> Box:
        scale_x, scale_y, shift_x, shift_y = self._map
        width, height = self.size
        left, top, right, bottom = box
        return (
            max(0.0, (left - shift_x) / scale_x),
            max(0.0, (top - shift_y) / scale_y),
            min(float(width), (right - shift_x) / scale_x),
            min(float(height), (bottom - shift_y) / scale_y),
        )

    def _check(self, box: Sequence[Number]) -> None:
        width, height = self.size
        if len(box) != 4:
            raise SpanError(f"a box is (x0, y0, x1, y1) in pixels, but {box!r} came.")
        left, top, right, bottom = box
        if not (left < right and top < bottom):
            raise SpanError(
                f"box {tuple(box)} has no area: (x0, y0, x1, y1) needs x0 < x1 and y0 < y1."
                " If it is (x, y, width, height), pass (x, y, x + width, y + height)."
            )
        if left >= width or top >= height or right <= 0 or bottom <= 0:
            raise SpanError(f"box {tuple(box)} lies outside the picture, which is {width}x{height} pixels.")

    def _meets(self, box: Sequence[Number]) -> set[int]:
        width, height = self.size
        inside = max(0.0, box[0]), max(0.0, box[1]), min(width, box[2]), min(height, box[3])
        left, top, right, bottom = self.to_processed(inside)
        rows, columns = self.grid
        return {
            row * columns + column
            for row in range(rows)
            for column in range(columns)
            if (column + 1) * self.patch - left > TOLERANCE
            and right - column * self.patch > TOLERANCE
            and (row + 1) * self.patch - top > TOLERANCE
            and bottom - row * self.patch > TOLERANCE
        }

    def _raster(self, boxes: Sequence[Sequence[Number]]) -> set[int]:
        import numpy as np
        from PIL import Image, ImageDraw

        red, green = (255, 0, 0), (0, 255, 0)
        canvas = Image.new("RGB", self.size, green)
        for box in boxes:
            ImageDraw.Draw(canvas).rectangle(tuple(box), fill=red)
        for name, width, height in self.steps:
            if name == "resize":
                canvas = canvas.resize((width, height), resample=self.resample)
            else:
                moved = Image.new("RGB", (width, height), self.fill if name == "pad" else (0, 0, 0))
                moved.paste(canvas, (_centred(name, width, canvas.width), _centred(name, height, canvas.height)))
                canvas = moved
        rows, columns = self.grid
        kept = (np.asarray(canvas) == red).all(-1)[: rows * self.patch, : columns * self.patch]
        touched = kept.reshape(rows, self.patch, columns, self.patch).any((1, 3))
        return set(np.flatnonzero(touched).tolist())


def _centred(step: str, new: int, old: int) -> int:
    """Where the old picture's edge lies in the new one, rounded as processors do: negative where a crop cuts."""
    if new < old:
        return -((old - new) // 2)
    # A crop larger than the picture pads, and puts the odd pixel before it; padding to a square, behind it.
    return (new - old + (step == "crop")) // 2
