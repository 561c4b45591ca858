"""Spans: labelled sets of positions of one row, and their algebra. No tensors, no model: they travel as they are.

The positions are those of the sequence the language model sees, image tokens expanded, padding (if any) on the left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from nnsight_mmflow._errors import SpanError
from nnsight_mmflow._later import later
from nnsight_mmflow.spans.geometry import NEWLINE, Cell, ImageGeometry, Place
from nnsight_mmflow.spans.views import Box, Number


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of one image.

    Attributes:
        positions: of the tokens that carry its features.
        geometry: where each of them lies in the picture.
        separators: positions of the other tokens that the processor put in for the image: row ends, tile names.
        number: which image of the prompt, counted from 0.
    """

    positions: tuple[int, ...]
    geometry: ImageGeometry
    separators: tuple[int, ...] = ()
    number: int = 0


@dataclass(frozen=True, eq=False)
class Span:
    """A named set of positions of one row.

    Attributes:
        name: what it was asked for as.
        positions: sorted, without repeats; counted in the padded row.
        row: (first, end) of the row's real positions; what lies before `first` is padding.
        images: the images whose tokens it may hold (for `grid`, `box` and `boxes`).
        each: a number in brackets is a position, counted from 0, and not an image: "generated[2]".
    """

    name: str
    positions: tuple[int, ...]
    row: tuple[int, int]
    images: tuple[ImageTokens, ...] = field(default=(), repr=False)
    each: bool = field(default=False, repr=False, metadata={"identity": False})

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

    def __repr__(self) -> str:
        """As it can be typed again: the same positions of the same row."""
        return f"Span({self.name!r}, {typed(self.positions)}, {self.row})"

    def _repr_html_(self) -> str:

        return later("span_html")(self)

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
        """The tokens of one image: spans["image"][1] is the second picture's; of generated tokens, one of them."""
        if self.each:
            return self._one(image)
        if type(image) is not int or not 0 <= image < len(self.images):
            raise SpanError(
                f"{self.name}[{image!r}] was asked for, but {self.name} holds {len(self.images)} image(s),"
                " counted from 0."
            )
        picture = self.images[image]
        held = tuple(picture.positions[token] for token in self._held(picture))
        return Span(f"{self.name}[{image}]", held, self.row, (picture,))

    def _one(self, number: int) -> Span:
        if type(number) is not int or not 0 <= number < len(self.positions):
            raise SpanError(
                f"{self.name}[{number!r}] was asked for, but {self.name} holds {len(self.positions)} token(s), counted"
                " from 0; an answer may end before as many as were asked for."
            )
        return Span(f"{self.name}[{number}]", self.positions[number : number + 1], self.row)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the span's patches; they must be of one view of one image."""
        image = self._one_image("grid")
        return image.geometry.grid_of(self._held(image))

    @property
    def tile(self) -> tuple[Span, ...]:
        """The tiles of an image that the processor divided, row by row: spans["image"].tile[0].

        Raises:
            SpanError: the image is not divided.
        """
        image = self._one_image("tile")
        count = len({cell.tile for cell in image.geometry.cells if isinstance(cell, Cell)} - {None})
        if not count:
            raise SpanError(f"{self.name} has no tiles: the processor did not divide this picture.")
        return tuple(self._only(image, f"tile[{k}]", lambda place, k=k: place.tile == k) for k in range(count))  # type: ignore[misc]

    @property
    def base(self) -> Span:
        """The tokens of the whole picture, small, beside its tiles; all patches where it is not divided."""
        return self._only(self._one_image("base"), "base", lambda place: place.kind == "patch" and place.tile is None)

    @property
    def newline(self) -> Span:
        """The tokens that end a row of patches and show none (LLaVA-NeXT, LLaVA-OneVision).

        Raises:
            SpanError: the family has none.
        """
        newlines = self._only(self._one_image("newline"), "newline", lambda place: place.kind == NEWLINE)
        if not newlines:
            raise SpanError(f"{self.name} has no newline tokens; it may have separators: {self.name}.separator.")
        return newlines

    @property
    def separator(self) -> Span:
        """The tokens of text that the processor puts in with the image: row ends, tile names; they carry no feature.

        Raises:
            SpanError: the family has none.
        """
        separators = sorted(position for image in self.images for position in image.separators)
        if not separators:
            raise SpanError(f"{self.name} has no separators: the processor puts in nothing but image tokens.")
        return Span(f"{_grouped(self.name)}.separator", tuple(separators), self.row, self.images)

    def places(self) -> tuple[Place, ...]:
        """For each position of the span that carries an image feature: image, view, tile, row, column and pixel box."""
        place_at = {
            image.positions[token]: image.geometry.place(token, image.number)
            for image in self.images
            for token in self._held(image)
        }
        return tuple(place_at[position] for position in sorted(place_at))

    def box(self, *boxes: Sequence[Number], rule: str | None = None) -> Span:
        """The span's tokens whose patch meets any of the boxes.

        Args:
            boxes: (x0, y0, x1, y1) each, in pixels of the original picture.
            rule: "meets" (overlap, the default) or "raster" (the paper's; the default under pad_to_square=True).

        Raises:
            SpanError: no token meets them, or a box is not one; the message says what the model sees of the picture.
        """
        image = self._one_image("box")
        mine = set(self.positions)
        tokens = image.geometry.tokens(boxes, rule)
        held = tuple(image.positions[i] for i in tokens if image.positions[i] in mine)
        if not held:
            raise SpanError(f"{list(boxes)} lies outside the {len(self)} tokens of {self.name}.")
        asked = ", ".join(repr(tuple(box)) for box in boxes) + (f", rule={rule!r}" if rule else "")
        return Span(f"{_grouped(self.name)}.box({asked})", held, self.row, (image,))

    def boxes(self) -> tuple[Box | None, ...]:
        """Each token's own pixels in the original picture; None for padding and class tokens."""
        image = self._one_image("boxes")
        return tuple(image.geometry.token_box(token) for token in self._held(image))

    def part(self, positions: Sequence[int], name: str) -> Span:
        """Some of the span's positions, under another name.

        Raises:
            SpanError: a position that the span does not hold.
        """
        if isinstance(positions, str) or not isinstance(positions, Iterable):
            raise SpanError(f"positions are whole numbers, but {positions!r} came.")
        strange = [position for position in set(positions) if position not in self.positions]
        if strange:
            raise SpanError(f"{self.name} does not hold position(s) {strange[:5]}.")
        return Span(name, tuple(sorted(set(positions))), self.row, self.images)

    def shifted(self, by: int) -> Span:
        """The same span in a row that got `by` more padding positions on its left."""
        images = tuple(
            replace(
                image,
                positions=tuple(position + by for position in image.positions),
                separators=tuple(position + by for position in image.separators),
            )
            for image in self.images
        )
        first, end = self.row
        positions = tuple(position + by for position in self.positions)
        return Span(self.name, positions, (first + by, end + by), images, self.each)

    def _held(self, image: ImageTokens) -> list[int]:
        """Which of the image's tokens (counted within it) are in the span."""
        mine = set(self.positions)
        return [token for token, position in enumerate(image.positions) if position in mine]

    def _only(self, image: ImageTokens, what: str, wanted: Callable[[Place], bool]) -> Span:
        geometry = image.geometry
        held = tuple(image.positions[token] for token in self._held(image) if wanted(geometry.place(token)))
        return Span(f"{_grouped(self.name)}.{what}", held, self.row, (image,))

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


def typed(positions: tuple[int, ...]) -> str:
    """Positions as Python: (*range(3, 9), 70)."""
    runs = _runs(positions)
    parts = [f"*range({a}, {b + 1})" if b - a > 1 else ", ".join(map(str, range(a, b + 1))) for a, b in runs]
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})" if parts else "()"


def ranges(positions: tuple[int, ...]) -> str:
    """Positions as runs: 3-66, 70."""
    runs = _runs(positions)
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs[:4]) + (", ..." if len(runs) > 4 else "")


def _runs(positions: tuple[int, ...]) -> list[list[int]]:
    """Stretches without a gap, each by its first and last position."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][1] + 1:
            runs[-1][1] = position
        else:
            runs.append([position, position])
    return runs
