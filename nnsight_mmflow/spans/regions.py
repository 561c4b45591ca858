"""Image tokens, or squares of them, as regions that an experiment goes through one after the other. Plain numbers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow.spans.geometry import Cell

if TYPE_CHECKING:
    from nnsight_mmflow.spans.span import Span


@dataclass(frozen=True)
class Region:
    """Some tokens of one view of one image.

    Attributes:
        positions: in the prompt.
        image: which image, counted from 0.
        view: "image", "base" or "tiles"; empty for a token that shows no patch.
        number: which view of the image it is.
        tile: of the first token; None outside tiles.
        row: of the uppermost patches in their view; None for a token that shows no patch.
        column: of the leftmost.
    """

    positions: tuple[int, ...]
    image: int
    view: str = ""
    number: int = -1
    tile: int | None = None
    row: int | None = None
    column: int | None = None


def regions_of(span: Span, size: int = 1) -> list[Region]:
    """The regions of an image span: its tokens, or squares of `size` x `size` patches of a view.

    Squares at a view's lower and right edge may hold fewer; tokens that show no patch (row ends) are in none.

    Raises:
        MMFlowError: a size below 1.
        NoEffectError: the span holds no image token.
    """
    if size < 1:
        raise MMFlowError(f"size={size}: a region is a square of size x size patches, at least 1.")
    regions: dict[tuple[int, int, int, int], Region] = {}
    mine = set(span)
    for picture in span.images:
        for token, position in enumerate(picture.positions):
            if position not in mine:
                continue
            cell, place = picture.geometry.cells[token], picture.geometry.place(token, picture.number)
            if not isinstance(cell, Cell) or place.row is None or place.column is None:
                if size == 1:
                    regions[picture.number, -1, position, 0] = Region((position,), picture.number)
                continue
            key = (picture.number, cell.view, place.row // size, place.column // size)
            row, column = place.row // size * size, place.column // size * size
            held = regions.get(key, Region((), picture.number, place.view, cell.view, place.tile, row, column))
            positions = (*held.positions, position)
            regions[key] = Region(positions, held.image, held.view, held.number, held.tile, held.row, held.column)
    if not regions:
        raise NoEffectError(f"{span.name!r} holds no image token of this prompt: there is no patch to go through.")
    return list(regions.values())


def random_partners(regions: Sequence[Region], seed: int) -> list[tuple[int, ...]]:
    """For each region as many random positions of the same view, none of them its own.

    Raises:
        MMFlowError: a region is more than half of its view.
    """
    drawing = random.Random(seed)
    views: dict[tuple[int, int], list[int]] = {}
    for region in regions:
        views.setdefault((region.image, region.number), []).extend(region.positions)
    partners = []
    for region in regions:
        others = sorted(set(views[region.image, region.number]) - set(region.positions))
        if len(others) < len(region.positions):
            raise MMFlowError(
                f"a region of {len(region.positions)} patches is more than half of its view, so there is no random one"
                " of the same size beside it: make size smaller, or controls=0."
            )
        partners.append(tuple(sorted(drawing.sample(others, len(region.positions)))))
    return partners
