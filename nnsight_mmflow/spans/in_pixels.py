"""Spans that are named in pixels: boxes, or a mask (a boolean picture), of one picture or several. Pure numbers.

A box takes the tokens whose patch it meets, by the rule of the picture's geometry. A mask takes the tokens whose own
pixel box it covers by at least a share of its area, in every view of the picture: the small whole one and the tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np

from nnsight_mmflow._errors import SpanError
from nnsight_mmflow._kinds import came
from nnsight_mmflow.spans.span import Span

if TYPE_CHECKING:
    from nnsight_mmflow.spans.views import Box

SHARE = 0.5


@dataclass(frozen=True, eq=False)
class Mask:
    """A boolean picture, packed.

    Attributes:
        size: (width, height).
        bits: eight pixels a byte, row by row.
    """

    size: tuple[int, int]
    bits: bytes = field(repr=False)

    @property
    def array(self) -> np.ndarray:
        """(height, width), bool."""
        width, height = self.size
        flat = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=width * height)
        return flat.reshape(height, width).astype(bool)

    def shares(self, boxes: Sequence[Box | None]) -> list[float]:
        """For each box the share of its area that the mask covers; 0 for None."""
        width, height = self.size
        sums = np.zeros((height + 1, width + 1))
        sums[1:, 1:] = self.array.cumsum(0, dtype=np.int64).cumsum(1)

        def up_to(x: float, y: float) -> float:
            """What is covered left of x and above y: exact, a pixel's part counting in proportion."""
            column, row = min(int(x), width - 1), min(int(y), height - 1)
            right, down = x - column, y - row
            (a, b), (c, d) = sums[row : row + 2, column : column + 2]
            return float((a * (1 - right) + b * right) * (1 - down) + (c * (1 - right) + d * right) * down)

        found = []
        for box in boxes:
            if box is None:
                found.append(0.0)
                continue
            left, top, right, bottom = map(float, box)
            covered = up_to(right, bottom) - up_to(left, bottom) - up_to(right, top) + up_to(left, top)
            found.append(covered / ((right - left) * (bottom - top)))
        return found


@dataclass(frozen=True, eq=False)
class InPixels:
    """What a span was named by, so that it can be found again in another prompt about a picture of the same size.

    Attributes:
        boxes: by the picture's number (x0, y0, x1, y1) each.
        masks: by the picture's number.
        share: of its pixel box that a mask has to cover for a token to count.
        sizes: (width, height) of those pictures.
    """

    boxes: Mapping[int, tuple[Box, ...]]
    masks: Mapping[int, Mask]
    share: float
    sizes: Mapping[int, tuple[int, int]]

    def fits(self, image: Span) -> bool:
        """Whether pictures of these sizes are there."""
        sizes = dict(enumerate(one.geometry.size for one in image.images))
        return all(sizes.get(number) == size for number, size in self.sizes.items())

    def found(self, name: str, image: Span) -> Span:
        """The tokens, as a span of that name.

        Raises:
            SpanError: no token shows a box, or is covered enough by a mask.
        """
        positions: set[int] = set()
        for number, boxes in self.boxes.items():
            try:
                positions |= set(image[number].box(*boxes))
            except SpanError as error:
                raise SpanError(f"{name}: {error}") from None
        for number, mask in self.masks.items():
            positions |= self._covered(name, image[number], mask)
        used = tuple(image.images[number] for number in sorted(self.sizes))
        return Span(name, tuple(sorted(positions)), image.row, used)

    def _covered(self, name: str, image: Span, mask: Mask) -> set[int]:
        (one,) = image.images
        shares = mask.shares([one.geometry.token_box(token) for token in range(len(one.positions))])
        found = {position for position, share in zip(one.positions, shares, strict=True) if share >= self.share - 1e-9}
        if found:
            return found
        most = max(shares)
        told = (
            f"the most that it covers of one is {most:.0%}: give share={max(0.01, int(most * 100) / 100):g} or less"
            if most > 0
            else "it covers none at all: what it shows was cut off by the processor (pad_to_square=True keeps it)"
        )
        raise SpanError(
            f"{name}: no image token is covered by at least {self.share:.0%} by the mask of {int(mask.array.sum())}"
            f" pixels; {told}."
        )


def in_pixels(name: str, value: object, image: Span, share: object) -> InPixels:
    """What came: a box, several, a mask, or any of these by the number of the picture (the first unless given).

    Raises:
        SpanError: it is none of these, or there is no such picture.
    """
    if not image.images:
        raise SpanError(f"{name}: boxes and masks are in pixels of a picture, but the prompt has none.")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise SpanError(f"share={share!r}: the share of a token's pixels that a mask must cover is above 0, up to 1.")
    each = dict(value) if isinstance(value, Mapping) else {0: value}
    if not each:
        raise SpanError(f"{name}: no box or mask came.")
    boxes: dict[int, tuple[Box, ...]] = {}
    masks: dict[int, Mask] = {}
    sizes = {}
    for number, one in each.items():
        known = isinstance(number, Integral) and not isinstance(number, bool)
        if not known or not 0 <= int(number) < len(image.images):
            raise SpanError(
                f"{name}: pictures are named by number, counted from 0, and the prompt has {len(image.images)};"
                f" {came(number)} came."
            )
        size = sizes[int(number)] = image.images[int(number)].geometry.size
        if _is_mask(one, size):
            mask = masks[int(number)] = mask_of(name, one)
            if mask.size != size:
                turned = " Is it transposed?" if mask.size == size[::-1] else ""
                raise SpanError(
                    f"{name}: the mask is {mask.size[0]}x{mask.size[1]} pixels (width x height), the picture"
                    f" {size[0]}x{size[1]} (upright).{turned} Resize the mask to the picture, nearest neighbour."
                )
        else:
            boxes[int(number)] = _boxes(name, one)
    return InPixels(boxes, masks, float(share), sizes)


def mask_of(name: str, value: object) -> Mask:
    """The mask that came as a numpy array, a torch tensor or a PIL picture: True where the thing is.

    Raises:
        SpanError: it is no boolean picture, or holds no pixel.
    """
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):  # (1, height, width), as segmenters give it
        array = array[0] if array.shape[0] == 1 else array[:, :, 0]
    if array.ndim != 2:
        raise SpanError(
            f"{name}: a mask is (height, width), True where the thing is, but an array of shape {array.shape} came."
            " One mask of several is masks[0]."
        )
    if array.dtype != bool:
        held = np.unique(array) if array.dtype.kind in "iuf" else np.array([])
        if held.tolist() not in ([0], [1], [0, 1], [0, 255], [255]):
            few = ", ".join(map(str, held[:3]))
            raise SpanError(
                f"{name}: a mask is boolean, but {array.dtype} with {len(held)} different values ({few}, ...) came:"
                " say where it begins, such as mask > 0.5."
            )
        array = array > 0
    if not array.any():
        raise SpanError(f"{name}: the mask of {array.shape[1]}x{array.shape[0]} pixels is empty: no pixel is True.")
    return Mask((array.shape[1], array.shape[0]), np.packbits(array).tobytes())


def _is_mask(value: object, size: tuple[int, int]) -> bool:
    """Whether it is a mask, and not a box or several."""
    if isinstance(value, list | tuple):
        return False
    if hasattr(value, "getbands"):  # a PIL picture; PIL itself need not be here
        return True
    shape = tuple(getattr(value, "shape", ()))
    if "bool" in str(getattr(value, "dtype", "")):
        return True
    return len(shape) >= 2 and (shape[-1] != 4 or shape == size[::-1])


def _boxes(name: str, value: object) -> tuple[Box, ...]:
    """One box or several, as several; what a box may be, the geometry says."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, str | bytes) or not isinstance(plain, Sequence) or not len(plain):
        raise SpanError(
            f"{name}: a box (x0, y0, x1, y1) in pixels, several in a list, or a mask (height, width) is expected, but"
            f" {came(value)} came."
        )
    several = [plain] if all(isinstance(one, Real) for one in plain) else list(plain)
    made = [tuple(one) if isinstance(one, Sequence) and not isinstance(one, str) else one for one in several]
    for box in made:
        if not isinstance(box, tuple) or len(box) != 4 or not all(isinstance(edge, Real) for edge in box):
            table = isinstance(box, tuple) and len(box) > 4
            mask = " A mask is an array: np.array(mask, bool)." if table else ""
            raise SpanError(f"{name}: a box is four numbers, (x0, y0, x1, y1) in pixels, but {came(box)} came.{mask}")
    return tuple(made)  # type: ignore[arg-type]
