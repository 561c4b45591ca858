"""Pixels as they travel to a server: in the smallest form that gives back every bit. Ships by value.

A processor makes floats of a picture's bytes, so that a colour channel holds at most 256 different numbers: they are
sent once, and for each pixel which one it is, as the change from its neighbours (pictures are smooth, so that the
changes compress well). Rows that repeat are sent once. Where any bit would differ, the floats travel as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes: numbers are the same when all their bits are
COLORS = 3


class Travelling(torch.Tensor):
    """A tensor that is pickled in the small form, and arrives as a plain one."""

    def __reduce_ex__(self, protocol: int) -> tuple:  # type: ignore[override]
        plain = self.as_subclass(torch.Tensor)
        parts = packed(plain)
        return plain.__reduce_ex__(protocol) if parts is None else (unpacked, parts)


def travelling(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs, those with pixels to be sent in the small form."""
    return {
        name: tensor.as_subclass(Travelling) if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        for name, tensor in inputs.items()
    }


def sent_bytes(inputs: Mapping[str, torch.Tensor]) -> int:
    """How many bytes they are in that form, before compression."""
    forms = [(tensor, packed(tensor) if tensor.is_floating_point() else None) for tensor in inputs.values()]
    return sum(tensor.nbytes if form is None else sum(part.nbytes for part in form[:3]) for tensor, form in forms)


def packed(
    tensor: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, ...]] | None:
    """What `unpacked` takes to give the tensor back; None where it has no such form.

    Args:
        tensor: (..., colours, height, width), or (patches, numbers) with the numbers of each colour together.
    """
    shape, kind = tuple(tensor.shape), BITS.get(tensor.element_size())
    colors = shape[-3] if len(shape) > 2 else COLORS
    if kind is None or len(shape) < 2 or not tensor.numel() or (len(shape) == 2 and shape[1] % COLORS):
        return None
    size = shape[-2:] if len(shape) > 2 else (1, shape[1] // COLORS)
    planes = tensor.detach().cpu().contiguous().view(kind).reshape(-1, colors, *size)
    rows: dict[bytes, int] = {}
    which = torch.tensor([rows.setdefault(plane.numpy().tobytes(), len(rows)) for plane in planes])
    once = planes[[int((which == number).nonzero()[0]) for number in range(len(rows))]]
    values = torch.zeros(colors, 256, dtype=kind)
    levels = torch.zeros(once.shape, dtype=torch.int32)
    for color in range(colors):
        distinct, levels[:, color] = torch.unique(once[:, color], return_inverse=True)
        if len(distinct) > 256:
            return None
        values[color, : len(distinct)] = distinct
    for axis in (-1, -2):
        levels = torch.diff(levels, dim=axis, prepend=torch.zeros_like(levels.narrow(axis, 0, 1)))
    form = ((levels % 256).to(torch.uint8), values.view(tensor.dtype), which, shape)
    return form if torch.equal(unpacked(*form).view(kind), tensor.detach().cpu().contiguous().view(kind)) else None


def unpacked(steps: torch.Tensor, values: torch.Tensor, which: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor, bit by bit.

    Args:
        steps: (rows, colours, height, width): which number, as the change along both axes, modulo 256.
        values: (colours, 256): the numbers.
        which: for each of the tensor's rows which of these.
        shape: of the tensor.
    """
    import torch  # here: under shape checks, which wrap this function, its module does not travel

    levels = steps.cumsum(-1, dtype=torch.int32).cumsum(-2, dtype=torch.int32) % 256
    planes = torch.stack([values[color][levels[:, color]] for color in range(len(values))], 1)
    return planes[which].reshape(shape)
