"""What users hand in with a question: its texts, its two options, its boxes; refused where they enter if they are none.

A box is four finite numbers, (x0, y0, x1, y1) in pixels, with an area.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real

from nnsight_mmflow._errors import PromptError
from nnsight_mmflow._kinds import came
from nnsight_mmflow.spans.views import Box


def check_asked(question: object, answer: object, instruction: object, key: object, kind: object) -> None:
    """Refuses what is no text.

    Raises:
        PromptError: with the name of the argument.
    """
    texts = {"question": question, "answer": answer, "instruction": instruction, "key": key, "kind": kind}
    for name, value in texts.items():
        if value is None and name in ("answer", "instruction"):
            continue
        if not isinstance(value, str):
            raise PromptError(f"{name} is a text, not {type(value).__name__}: {value!r}.")
        if name == "answer" and not value.strip():
            raise PromptError("the answer is empty; leave it out (None) where there is none.")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(f"{name} holds half a character ({error.reason}): {value!r}.") from None


def checked_options(options: object) -> tuple[str, str] | None:
    """(true, false) option, or None.

    Raises:
        PromptError: they are not two texts that differ.
    """
    if options is None or options == () or options == []:
        return None
    if isinstance(options, str | dict | set) or not isinstance(options, Iterable):
        raise PromptError(f"options are two, (true, false), but {options!r} came.")
    two = tuple(options)
    if len(two) != 2:
        raise PromptError(f"options are two, (true, false), but {len(two)} came: {two}.")
    true, false = two
    if not all(isinstance(option, str) and option.strip() for option in two):
        raise PromptError(f"options are two texts, (true, false), but {two} came.")
    if true == false:
        raise PromptError(f"the options are the same: {two}. They are (true, false) answers.")
    return true, false


def checked_boxes(boxes: object, size: tuple[int, int] | None = None) -> tuple[Box, ...]:
    """The boxes as tuples of plain numbers.

    Args:
        boxes: a sequence of (x0, y0, x1, y1).
        size: (width, height) of the picture, where it is known.

    Raises:
        PromptError: one is not four finite numbers, has no area, or lies outside the picture.
    """
    if isinstance(boxes, str | bytes | dict) or not isinstance(boxes, Iterable):
        raise PromptError(f"boxes are (x0, y0, x1, y1) each, in pixels, in a list, but {boxes!r} came.")
    return tuple(_box(box, size) for box in boxes)


def named_in_pixels(
    boxes: object, masks: object, size: tuple[int, int] | None = None
) -> tuple[tuple[Box, ...], dict[str, object]]:
    """(what the question is about, boxes and masks under other names), of what came as `boxes` and `masks`.

    Args:
        boxes: a sequence of boxes, or by name a box, several, or these by picture.
        masks: by name a mask, or masks by picture.
        size: (width, height) of the first picture, where it is known.

    Raises:
        PromptError: a name that is no text, or that comes twice; boxes of the object that are none.
    """
    named: dict[str, object] = {}
    for what, given in (("boxes", boxes), ("masks", masks)):
        if not isinstance(given, Mapping):
            if what == "masks" and given is not None:
                raise PromptError(f'masks are given by name, masks={{"sky": mask}}, but {came(given)} came.')
            continue
        for name, value in given.items():
            if not isinstance(name, str):
                raise PromptError(f'{what} are given by name, such as {{"object": ...}}, but a key is {came(name)}.')
            if name in named:
                raise PromptError(f"{name!r} is given by boxes and by a mask: keep one of them.")
            named[name] = value
    if not isinstance(boxes, Mapping):
        about = checked_boxes(boxes, size)
        if about and "object" in named:
            raise PromptError("the object is given by boxes and by a mask: keep one of them.")
        return about, named
    if "object" not in boxes or isinstance(boxes["object"], Mapping):
        return (), named
    return checked_boxes(several(named.pop("object")), size), named


def several(boxes: object) -> object:
    """One box, or several, as several."""
    plain = boxes.tolist() if hasattr(boxes, "tolist") else boxes
    alone = isinstance(plain, list | tuple) and bool(plain) and all(isinstance(one, Real) for one in plain)
    return [plain] if alone else plain


def _box(box: object, size: tuple[int, int] | None) -> Box:
    numbers = list(box) if isinstance(box, Iterable) and not isinstance(box, str | bytes | dict) else []
    if len(numbers) != 4 or not all(isinstance(edge, Real) and not isinstance(edge, bool) for edge in numbers):
        raise PromptError(f"boxes are (x0, y0, x1, y1) each, in pixels, four numbers in a list, but {box!r} came.")
    try:
        left, top, right, bottom = (int(edge) if isinstance(edge, Integral) else float(edge) for edge in numbers)
        finite = all(math.isfinite(edge) for edge in (left, top, right, bottom))
    except OverflowError:
        finite = False
    if not finite:
        raise PromptError(f"boxes: {box!r} holds a number that is no place in a picture.")
    if not (left < right and top < bottom):
        raise PromptError(
            f"boxes: {(left, top, right, bottom)} has no area: (x0, y0, x1, y1) needs x0 < x1 and y0 < y1."
            " If it is (x, y, width, height), pass (x, y, x + width, y + height)."
        )
    if size is not None and (left >= size[0] or top >= size[1] or right <= 0 or bottom <= 0):
        raise PromptError(
            f"boxes: {(left, top, right, bottom)} lies outside the picture, which is {size[0]}x{size[1]} pixels"
            " (upright)."
        )
    return left, top, right, bottom
