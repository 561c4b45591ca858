"""What an argument may be, by kind: whole numbers, texts, spans, layers, prompts. Each gives the value as it is taken.

This travels to servers with the patterns, so it imports nothing but the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from os import PathLike

from nnsight_mmflow._errors import MMFlowError, SpanError

EXAMPLES = {"spans": ["image", "question"], "sites": ["mlp", "attn"], "ways": ["img2txt"], "edges": ["image->last"]}


def whole(name: str, value: object, least: int | None = None, most: int | None = None) -> int:
    """A whole number within limits; True and False are none, numpy's are."""
    if isinstance(value, bool) or type(value).__name__ == "bool" or not isinstance(value, Integral):
        raise MMFlowError(f"{name} is a whole number, but {came(value)} came.")
    count = int(value)
    if (least is not None and count < least) or (most is not None and count > most):
        limits = f"at least {least}" if least is not None else ""
        limits += f"{' and ' if limits else ''}at most {most}" if most is not None else ""
        raise MMFlowError(f"{name}={count}: a whole number of {limits} is expected.")
    return count


def number(name: str, value: object, endless: bool = False) -> float | int:
    """A number that is one: not NaN, and not infinite unless `endless`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise MMFlowError(f"{name} is a number, but {came(value)} came.")
    if math.isnan(value) or (math.isinf(value) and not endless):
        raise MMFlowError(f"{name}={value}: a finite number is expected.")
    return int(value) if isinstance(value, Integral) else float(value)


def numbers(name: str, value: object) -> object:
    """One number or several."""
    return tuple(number(name, item) for item in value) if isinstance(value, list | tuple) else number(name, value)


def flag(name: str, value: object) -> bool:
    """True or False."""
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise MMFlowError(f"{name} is True or False, but {came(value)} came.")


def text(name: str, value: object) -> str:
    """Text."""
    if not isinstance(value, str):
        raise MMFlowError(f"{name} is text, but {came(value)} came.")
    return value


def texts(name: str, value: object, empty: bool = False) -> tuple[str, ...]:
    """One text or several, as several."""
    if isinstance(value, bytes | Mapping) or not isinstance(value, Iterable):
        raise MMFlowError(f"{name} are texts, such as {EXAMPLES.get(name, ['image'])}, but {came(value)} came.")
    several: tuple[object, ...] = (value,) if isinstance(value, str) else tuple(value)
    if not several and not empty:
        raise MMFlowError(f"{name}={value!r} is empty: name at least one, or leave {name} out.")
    wrong = [item for item in several if not isinstance(item, str) or not item.strip()]
    if wrong:
        raise MMFlowError(f"{name} are texts, such as {EXAMPLES.get(name, ['image'])}, but they hold {came(wrong[0])}.")
    return tuple(map(str, several))


def edges_of(name: str, value: object) -> tuple[str, ...]:
    """Edges "source->target"; one may stand alone."""
    edges = texts(name, value)
    for edge in edges:
        source, arrow, target = edge.partition("->")
        if not (arrow and source.strip() and target.strip()) or "->" in target:
            raise MMFlowError(f'an edge is "source->target", such as "image->question", not {edge!r}.')
    return edges


def expression(name: str, value: object, spans_too: bool = True) -> object:
    """A span by name or expression, or a Span."""
    if spans_too and hasattr(value, "positions") and hasattr(value, "row"):  # a Span; this runs on servers too
        return value
    if not isinstance(value, str):
        also = ", or a Span" if spans_too else ""
        raise SpanError(f"{name} is a span's name or expression, such as 'image'{also}; {came(value)} came.")
    return value


def layers_of(name: str, value: object) -> int | list[int] | tuple[int, ...] | range:
    """A layer or several. Whether they exist is known where the model is."""
    if isinstance(value, range) or (type(value) is int):
        return value
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) != 1:
        raise MMFlowError(f"{name}: a layer is a whole number, several are a list of them; {came(value)} came.")
    several = [whole(f"each of {name}", layer) for layer in value]
    return several if isinstance(value, list) else tuple(several)


def single_or_several(name: str, value: object) -> object:
    """A layer or several, not none."""
    layers = layers_of(name, value)
    if not isinstance(layers, int) and not len(layers):
        raise MMFlowError(f"{name}={value!r} names no layer.")
    return layers


def heads_of(name: str, value: object) -> list[int] | tuple[int, ...] | range:
    """One head or several, as several. Whether they exist is known where the model is."""
    heads = layers_of(name, value) if not isinstance(value, Integral) else (whole(name, value),)
    return (heads,) if isinstance(heads, int) else heads


def windows_of(name: str, value: object) -> object:
    """A size in layers, or several."""
    if isinstance(value, Integral | str | bytes | Mapping) or not isinstance(value, Iterable):
        return whole(name, value)
    return tuple(whole(f"each {name}", window) for window in value)


def folder_of(name: str, value: object) -> object:
    """A path."""
    if not isinstance(value, str | PathLike) or not str(value):
        raise MMFlowError(f"{name} is a path, but {came(value)} came.")
    return value


def called(name: str, value: object) -> object:
    """Something to call."""
    if not callable(value):
        raise MMFlowError(f"{name} is a function, but {came(value)} came.")
    return value


def place_of(name: str, value: object) -> object:
    """Where a run goes: here, NDIF, or a host."""
    if not isinstance(value, bool | str) or value == "":
        raise MMFlowError(f"{name} is True (NDIF), False, or a host, but {came(value)} came.")
    return value


def scale_of(name: str, value: object) -> object:
    """Where a scale ends; what it may be, the function says."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise MMFlowError(f"{name} is a number, but {came(value)} came.")
    return value


def choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """One of a few names."""
    if value not in known:
        raise MMFlowError(f"{name} must be one of {', '.join(known)}, not {came(value)}.")


def boxes_of(name: str, value: object) -> object:
    """Boxes in pixels. How many edges each has, the function says."""
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise MMFlowError(f"{name} are a list of (x0, y0, x1, y1), but {came(value)} came.")
    for box in value:
        if isinstance(box, str) or not isinstance(box, Iterable):
            raise MMFlowError(f"{name} are (x0, y0, x1, y1) each, in pixels, so one box is [box]; {came(box)} came.")
        for edge in box:
            number("each edge of a box", edge)
    return value


def color_of(name: str, value: object) -> tuple[int, ...]:
    """(red, green, blue)."""
    parts = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else ()
    if len(parts) != 3:
        raise MMFlowError(f"{name} is (red, green, blue), 0 to 255 each, but {came(value)} came.")
    return tuple(whole(f"each part of {name}", part, 0, 255) for part in parts)


def came(value: object) -> str:
    """A value, as messages show it."""
    if value is None:
        return "None"
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(value).__name__})"


def workers_of(name: str, value: object) -> object:
    """How many processes, or Workers; which, the runner says."""
    return value if type(value).__name__ == "Workers" else whole(name, value, 0)
