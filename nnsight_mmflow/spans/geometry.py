"""Where each image token lies in the original picture: the views that the tower saw, and each token's place in them.

Two rules lead from a pixel box to tokens:

- "meets": the tokens whose patch overlaps the box, by exact arithmetic. A token's own box gives that token back.
- "raster": the box is painted on a canvas that goes through the same steps as the picture, and a token counts if any
  pixel of its patch kept the exact colour. The rule of the Cross-modal Information Flow code; its
  painted box includes the end corner, so it is one pixel too large, here as in that code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import NamedTuple

from nnsight_mmflow._errors import SpanError
from nnsight_mmflow.spans.views import Box, Number, View

NEWLINE, CLASS = "newline", "class"  # tokens that show no patch: the end of a row of tiles; the tower's class token


class Cell(NamedTuple):
    """A token's place: the view, its patch (row * columns + column of the view), and the tile, if in tiles."""

    patch: int
    view: int = 0
    tile: int | None = None


class Place(NamedTuple):
    """All that is known of one image token.

    Attributes:
        image: which image of the prompt, counted from 0.
        kind: "patch", "newline" or "class".
        view: "image", "base" or "tiles"; empty where it shows no patch.
        tile: which tile, counted from 0, row by row; None outside tiles.
        row: of the patch in its view.
        column: of the patch in its view.
        box: (x0, y0, x1, y1) in original pixels; None where it shows none of the picture.
    """

    image: int
    kind: str
    view: str = ""
    tile: int | None = None
    row: int | None = None
    column: int | None = None
    box: Box | None = None


@dataclass(frozen=True)
class ImageGeometry:
    """How one picture became image tokens.

    Attributes:
        size: (width, height) of the original picture in pixels.
        views: the pictures that the tower saw of it.
        cells: for each image token its place, or "newline" or "class".
        raster: whether "raster" is the rule that boxes follow unless asked otherwise.
        resample: PIL's number of the resize filter (3: bicubic).
        fill: the colour of padding to a square (CLIP's mean unless the processor has another).
    """

    size: tuple[int, int]
    views: tuple[View, ...]
    cells: tuple[Cell | str, ...]
    raster: bool = False
    resample: int = 3
    fill: tuple[int, ...] = (122, 116, 104)

    def place(self, token: int, image: int = 0) -> Place:
        """What a token (counted within this image) shows."""
        cell = self.cells[token]
        if isinstance(cell, str):
            return Place(image, cell)
        view = self.views[cell.view]
        row, column = divmod(cell.patch, view.grid[1])
        return Place(image, "patch", view.name, cell.tile, row, column, view.cell_box(cell.patch))

    def token_box(self, token: int) -> Box | None:
        """The pixels of the original picture that a token shows; None for newline, class token and padding."""
        return self.place(token).box

    def grid_of(self, tokens: Sequence[int]) -> tuple[int, int]:
        """(rows, columns) of the view that these tokens are of; of the tile, if they are all of one.

        Raises:
            SpanError: they are of several views, or show no patch.
        """
        cells = [cell for cell in (self.cells[token] for token in tokens) if isinstance(cell, Cell)]
        views, tiles = sorted({cell.view for cell in cells}), {cell.tile for cell in cells}
        if len(views) != 1:
            names = ", ".join(self.views[i].name for i in views) or "none"
            raise SpanError(
                f"these tokens are of {len(views)} views of the picture ({names}): ask for the grid of one,"
                " image.base.grid or image.tile[0].grid."
            )
        there = [cell for cell in self.cells if isinstance(cell, Cell) and cell.view == views[0]]
        there = [cell for cell in there if len(tiles) > 1 or cell.tile in tiles]
        places = [divmod(cell.patch, self.views[views[0]].grid[1]) for cell in there]
        return len({row for row, _ in places}), len({column for _, column in places})

    def tokens(self, boxes: Sequence[Sequence[Number]], rule: str | None = None) -> tuple[int, ...]:
        """The tokens (counted within this image) whose patch meets any of the boxes, in every view.

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
        met = [
            view.raster(boxes, self.resample, self.fill) if rule == "raster" else set().union(*map(view.meets, boxes))
            for view in self.views
        ]
        held = tuple(i for i, cell in enumerate(self.cells) if isinstance(cell, Cell) and cell.patch in met[cell.view])
        if not held:
            left, top, right, bottom = (round(edge, 1) for edge in self.views[0].kept())
            cropped = any(step.name == "crop" for step in self.views[0].steps)
            raise SpanError(
                f"no image token shows any of {list(boxes)}: of the {self.size[0]}x{self.size[1]} picture the model"
                f" sees x {left} to {right} and y {top} to {bottom}. "
                + (
                    "The processor centre-crops; graph.prompt(..., pad_to_square=True) keeps the whole picture."
                    if cropped
                    else "The box is too small to survive the resize under this rule."
                )
            )
        return held

    def _check(self, box: Sequence[Number]) -> None:
        width, height = self.size
        if not isinstance(box, list | tuple) and not hasattr(box, "tolist") or len(box) != 4:
            raise SpanError(f"a box is (x0, y0, x1, y1) in pixels, but {box!r} came.")
        left, top, right, bottom = box
        if not all(isinstance(edge, Real) for edge in box):
            raise SpanError(f"a box is four numbers, (x0, y0, x1, y1) in pixels, but {box!r} came.")
        if not (left < right and top < bottom):
            raise SpanError(
                f"box {tuple(box)} has no area: (x0, y0, x1, y1) needs x0 < x1 and y0 < y1."
                " If it is (x, y, width, height), pass (x, y, x + width, y + height)."
            )
        if not all(map(isfinite, box)):
            raise SpanError(f"box {tuple(box)} holds a number that is no place in a picture.")
        if left >= width or top >= height or right <= 0 or bottom <= 0:
            raise SpanError(f"box {tuple(box)} lies outside the picture, which is {width}x{height} pixels.")


def whole(grid: tuple[int, int], view: int = 0) -> tuple[Cell, ...]:
    """The cells of a view whose tokens come row by row, without tiles."""
    return tuple(Cell(patch, view) for patch in range(grid[0] * grid[1]))


def tiled(tiles: tuple[int, int], side: tuple[int, int], view: int = 0) -> tuple[Cell, ...]:
    """The cells of a view that is divided into tiles, whose tokens come tile by tile, each row by row.

    Args:
        tiles: (rows, columns) of tiles.
        side: (rows, columns) of patches in one tile.
        view: its number.
    """
    columns = tiles[1] * side[1]
    return tuple(
        Cell((down * side[0] + row) * columns + across * side[1] + column, view, down * tiles[1] + across)
        for down in range(tiles[0])
        for across in range(tiles[1])
        for row in range(side[0])
        for column in range(side[1])
    )
