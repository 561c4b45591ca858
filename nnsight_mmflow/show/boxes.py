"""Which image tokens a picture can show, and where: boxes in its pixels, coarse views first. Plain numbers.

A divided picture is seen twice: small and whole, and in tiles. A pixel then has a token in each view, and one of them
is drawn: that of the finest view, the one with the smallest patches, unless a view is asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from nnsight_mmflow._errors import PromptError, SpanError
from nnsight_mmflow.spans.geometry import Cell, ImageGeometry

if TYPE_CHECKING:
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.spans.span import ImageTokens
    from nnsight_mmflow.spans.views import Box

DIGITS = 6  # of a pixel: edges that agree so far are one edge


class DrawnBoxes(NamedTuple):
    """The tokens that are drawn.

    Attributes:
        tokens: their numbers, counted within their image.
        boxes: (x0, y0, x1, y1) of each, in pixels of the original picture. Where two overlap, the later one lies on
            top: it is the finer one.
    """

    tokens: tuple[int, ...]
    boxes: tuple[Box, ...]


class Mosaic(NamedTuple):
    """What is seen of boxes that lie over one another: a grid of rectangles between their edges.

    Attributes:
        columns: the vertical edges, in pixels.
        rows: the horizontal edges.
        which: for each row and column of rectangles the number of the box on top; -1 where there is none.
    """

    columns: tuple[float, ...]
    rows: tuple[float, ...]
    which: tuple[tuple[int, ...], ...]


def drawn_boxes(prompt: Prompt, image: int = 0, view: str | None = None) -> DrawnBoxes:
    """The tokens of an image that are drawn, and the pixels of each.

    Left out are tokens that show no pixel (row ends, class tokens, padding), tokens of other views than the one asked
    for, and tokens that finer ones cover wholly.

    Args:
        prompt: with at least one image.
        image: which, counted from 0.
        view: "base" (the whole picture, small) or "tiles"; None: the finest there is at each pixel.

    Raises:
        PromptError: there is no such image.
        SpanError: the picture has no such view.
    """
    geometry = image_tokens(prompt, image).geometry
    held: dict[int, list[int]] = {}
    for token, cell in enumerate(geometry.cells):
        if isinstance(cell, Cell) and geometry.token_box(token) is not None:
            held.setdefault(cell.view, []).append(token)
    names = [geometry.views[number].name for number in held]
    wanted = "image" if view == "base" and names == ["image"] else view
    if wanted is not None and wanted not in names:
        raise SpanError(
            f"view={view!r} was asked for, but this picture's views are {', '.join(dict.fromkeys(names))}"
            f"{'' if len(names) > 1 else ': the processor did not divide it'}. Leave view away for the finest one."
        )
    chosen = [number for number in held if wanted in (None, geometry.views[number].name)]
    # The base comes first where patches are of one size: tiles then lie over it.
    chosen.sort(key=lambda number: (-_patch_area(geometry, held[number]), geometry.views[number].name != "base"))
    tokens = [token for number in chosen for token in held[number]]
    boxes = [box for box in map(geometry.token_box, tokens) if box is not None]
    seen = sorted({number for row in mosaic(tuple(boxes)).which for number in row} - {-1})
    return DrawnBoxes(tuple(tokens[number] for number in seen), tuple(boxes[number] for number in seen))


def mosaic(boxes: tuple[Box, ...]) -> Mosaic:
    """The rectangles between the edges of boxes, and the last box that covers each."""
    columns = sorted({round(float(edge), DIGITS) for box in boxes for edge in (box[0], box[2])})
    rows = sorted({round(float(edge), DIGITS) for box in boxes for edge in (box[1], box[3])})
    which = [[-1] * (len(columns) - 1) for _ in rows[1:]]
    for number, box in enumerate(boxes):
        left, right = (bisect_left(columns, round(float(edge), DIGITS)) for edge in (box[0], box[2]))
        for row in range(*(bisect_left(rows, round(float(edge), DIGITS)) for edge in (box[1], box[3]))):
            which[row][left:right] = [number] * (right - left)
    return Mosaic(tuple(columns), tuple(rows), tuple(map(tuple, which)))


def image_tokens(prompt: Prompt, image: int) -> ImageTokens:
    """The tokens of one image of a prompt.

    Raises:
        PromptError: there is no such image.
    """
    images = prompt.spans["image"].images
    if not images:
        raise PromptError("the prompt has no image, so there are no image tokens to draw.")
    if not 0 <= image < len(images):
        raise PromptError(f"image={image} was asked for, but the prompt has {len(images)}, counted from 0.")
    return images[image]


def _patch_area(geometry: ImageGeometry, tokens: list[int]) -> float:
    """The pixels of a view's largest patch; those at the picture's edges may be cut off."""
    boxes = [box for box in map(geometry.token_box, tokens) if box is not None]
    return round(max((box[2] - box[0]) * (box[3] - box[1]) for box in boxes), 3)
