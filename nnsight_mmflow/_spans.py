"""Spans: labelled sets of positions of one row, and their algebra. No tensors, no model: they travel as they are.

The positions are those of the sequence the language model sees, image tokens expanded, padding (if any) on the left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from nnsight_mmflow._errors import SpanError
from nnsight_mmflow._geometry import Box, ImageGeometry, Number


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of one image: the position of each, and where each lies in the picture."""

    positions: tuple[int, ...]
    geometry: ImageGeometry


@dataclass(frozen=True, eq=False)
class Span:
    """A named set of positions of one row.

    Attributes:
        name: what it was asked for as.
        positions: sorted, without repeats; counted in the padded row.
        row: (first, end) of the row's real positions; what lies before `first` is padding.
        images: the images whose tokens it may hold (for `grid`, `box` and `boxes`).
    """

    name: str
    positions: tuple[int, ...]
    row: tuple[int, int]
    images: tuple[ImageTokens, ...] = field(default=(), repr=False)

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions)

    def __len__(self) -> int:
        return len(self.positions)

    def __contains__(self, position: object) -> bool:
        return position in self.positions

    def __eq__(self, other: object) -> bool:
        """Two spans are equal when they hold the same positions of rows that lie alike."""
        return isinstance(other, Span) and (self.positions, self.row) == (other.positions, other.row)

    def __hash__(self) -> int:
        return hash((self.positions, self.row))

    def __or__(self, other: Span) -> Span:
        return self._join(other, "|", set.union)

    def __and__(self, other: Span) -> Span:
        return self._join(other, "&", set.intersection)

    def __sub__(self, other: Span) -> Span:
        return self._join(other, "-", set.difference)

    def __invert__(self) -> Span:
        """Every real position of the row that is not in the span (padding is never in one)."""
        rest = set(range(*self.row)) - set(self.positions)
        return Span(f"~{_grouped(self.name)}", tuple(sorted(rest)), self.row, self.images)

    def __getitem__(self, image: int) -> Span:
        """The tokens of one image: spans["image"][1] is the second picture's."""
        if not 0 <= image < len(self.images):
            raise SpanError(
                f"{self.name}[{image}] was asked for, but {self.name} holds {len(self.images)} image(s),"
                " counted from 0."
            )
        one = self.images[image]
        held = tuple(position for position in one.positions if position in self)
        return Span(f"{self.name}[{image}]", held, self.row, (one,))

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the image's patches."""
        return self._one_image("grid").geometry.grid

    def box(self, *boxes: Sequence[Number], rule: str | None = None) -> Span:
        """The span's tokens whose patch meets any of the boxes.

        Args:
            boxes: (x0, y0, x1, y1) each, in pixels of the original picture.
            rule: "meets" (overlap, the default) or "raster" (the paper's; the default under pad_to_square=True).

        Raises:
            SpanError: no token meets them, or a box is not one; the message says what the model sees of the picture.
        """
        image = self._one_image("box")
        found = image.geometry.tokens(boxes, rule)
        held = tuple(image.positions[i] for i in found if image.positions[i] in self)
        if not held:
            raise SpanError(f"{list(boxes)} lies outside the {len(self)} tokens of {self.name}.")
        return Span(f"{self.name}.box{boxes if len(boxes) > 1 else boxes[0]}", held, self.row, (image,))

    def boxes(self) -> tuple[Box | None, ...]:
        """Each token's own pixels in the original picture; None for padding and class tokens."""
        image = self._one_image("boxes")
        return tuple(image.geometry.token_box(i) for i, position in enumerate(image.positions) if position in self)

    def shifted(self, by: int) -> Span:
        """The same span in a row that got `by` more padding positions on its left."""
        images = tuple(
            ImageTokens(tuple(position + by for position in image.positions), image.geometry) for image in self.images
        )
        first, end = self.row
        return Span(self.name, tuple(position + by for position in self.positions), (first + by, end + by), images)

    def _one_image(self, what: str) -> ImageTokens:
        if len(self.images) == 1:
            return self.images[0]
        if not self.images:
            raise SpanError(f'{self.name}.{what} needs an image span, such as spans["image"].')
        raise SpanError(f"{self.name} holds {len(self.images)} images: ask one of them, {self.name}[0].{what}.")

    def _join(self, other: Span, sign: str, join: Callable[[set[int], set[int]], set[int]]) -> Span:
        if not isinstance(other, Span):
            raise SpanError(f"{self.name} {sign} {other!r}: both sides must be spans.")
        if self.row != other.row:
            raise SpanError(
                f"{self.name} is of a row at {self.row[0]} to {self.row[1]}, {other.name} of one at {other.row[0]} to"
                f" {other.row[1]}: spans join within one row. In a batch, take both from prompts.spans[i]."
            )
        images = tuple(dict.fromkeys(self.images + other.images))
        name = f"{_grouped(self.name)} {sign} {_grouped(other.name)}"
        joined = join(set(self.positions), set(other.positions))
        return Span(name, tuple(sorted(joined)), self.row, images)


def _grouped(name: str) -> str:
    return f"({name})" if " " in name else name
