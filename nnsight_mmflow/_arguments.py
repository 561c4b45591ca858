"""What callers hand over, looked at before anything runs: one place says what a window, a layer or a span may be.

An argument is checked by its name where the package uses that name for one thing (graph, prompts, layers, spans), else
by its default: where that is a whole number, a whole number is wanted. Whole numbers of numpy are taken as such.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from numbers import Integral, Real
from os import PathLike
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from nnsight_mmflow._errors import MMFlowError

if TYPE_CHECKING:
    from nnsight_mmflow._graph import Graph

Given = ParamSpec("Given")
Found = TypeVar("Found")
Check = Callable[[str, object], object]

LEAST = {  # where 0 or less would mean nothing, or something else than was meant
    **dict.fromkeys(("max_new_tokens", "batch_size", "row_budget", "heads_at_once", "top", "size", "most_bytes"), 1),
    **dict.fromkeys(("k", "k1", "k2", "from_layer", "first_layer", "seed", "timed", "exact", "image"), 0),
    **dict.fromkeys(("dominant", "contextual", "calm_layers"), 0),
}
MOST = {  # beyond these a run would not end, or a seed not be one
    "seed": 2**32 - 1,
    "control": 1000,
    "controls": 1000,
    "timed": 10_000,
    "max_new_tokens": 1_000_000,
}


def checked(run: Callable[Given, Found]) -> Callable[Given, Found]:
    """The function, its arguments checked before it runs.

    Raises:
        MMFlowError: a value that is not what the argument stands for.
    """
    signature = inspect.signature(run)

    @wraps(run)
    def wrapped(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            known = signature.parameters[name]
            if known.kind in (known.POSITIONAL_OR_KEYWORD, known.KEYWORD_ONLY):
                bound.arguments[name] = value_of(name, value, known.default, str(known.annotation))
            elif name == "patterns":
                bound.arguments[name] = patterns_of(value)
        graph = bound.arguments.get("graph")
        for name in ("prompts", "prompt", "clean", "others"):
            if graph is not None and bound.arguments.get(name) is not None:
                made_for(graph, bound.arguments[name], run.__name__)
        return run(*bound.args, **bound.kwargs)

    return wrapped


def check_fields(pattern: object) -> None:
    """Checks a pattern's fields when it is made; layers that come as an iterator, which is read only once, are kept.

    Raises:
        MMFlowError: a value that is not what the field stands for.
    """
    for name, field in type(pattern).__dataclass_fields__.items():  # type: ignore[attr-defined]
        if not field.init or name in ("value", "ready", "own"):
            continue
        value = value_of(name, getattr(pattern, name), field.default, str(field.type))
        several = str(field.type).startswith("tuple") and value is not None and not isinstance(value, tuple)
        object.__setattr__(pattern, name, _as_tuple(value) if several else value)


def value_of(name: str, value: object, default: object, kind: str) -> object:
    """The value as the package takes it.

    Args:
        name: of the argument.
        value: what came.
        default: what stands there if nothing comes.
        kind: its annotation, as text.
    """
    if value is None and (default is None or "None" in kind):
        return None
    if kind in ("bool", "bool | None") or default is True or default is False:
        return flag(name, value)
    if name in BY_NAME and not (name in ("heads", "controls") and kind == "int"):
        found = BY_NAME[name](name, value)
        if name == "prompt" and "Batch" not in kind and type(found).__name__ == "Batch":
            raise MMFlowError("this takes one prompt, but a Batch came: one of batch.prompts.")
        return found
    if name in EXPRESSIONS:
        return expression(name, value, spans_too="Span" in kind.replace("SpanCache", ""))
    if name in LISTS:
        return texts(name, value, empty=default == ())
    if name == "keep" or "tuple[float" in kind:
        return numbers(name, value)
    if name == "same":
        return same_of(name, value)
    if "int | str" in kind or "float | int" in kind or "int | float" in kind or kind.startswith("int | Sequence"):
        return value  # the function itself tells these apart
    if kind.startswith("int") or (isinstance(default, int) and not isinstance(default, bool)):
        return whole(name, value, LEAST.get(name), MOST.get(name))
    if kind.startswith("float") or isinstance(default, float):
        return number(name, value)
    if kind in ("str", "str | None"):
        return text(name, value)
    return value


def whole(name: str, value: object, least: int | None = None, most: int | None = None) -> int:
    """A whole number within limits; True and False are none, numpy's are."""
    if isinstance(value, bool) or type(value).__name__ == "bool" or not isinstance(value, Integral):
        raise MMFlowError(f"{name} is a whole number, but {came(value)} came.")
    if (least is not None and value < least) or (most is not None and value > most):
        limits = f"at least {least}" if least is not None else ""
        limits += f"{' and ' if limits else ''}at most {most}" if most is not None else ""
        raise MMFlowError(f"{name}={int(value)}: a whole number of {limits} is expected.")
    return int(value)


def number(name: str, value: object) -> float | int:
    """A number that is one: not NaN, not infinite."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise MMFlowError(f"{name} is a number, but {came(value)} came.")
    if not math.isfinite(value):
        raise MMFlowError(f"{name}={value}: a finite number is expected.")
    return int(value) if isinstance(value, Integral) else float(value)


def numbers(name: str, value: object) -> object:
    """One number or several."""
    return tuple(number(name, one) for one in value) if isinstance(value, list | tuple) else number(name, value)


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
    several = (value,) if isinstance(value, str) else value
    if not isinstance(several, list | tuple | set | frozenset | range) and not hasattr(several, "__next__"):
        raise MMFlowError(f"{name} are texts, such as {EXAMPLES.get(name, ['image'])}, but {came(value)} came.")
    several = tuple(several)  # type: ignore[arg-type]
    if not several and not empty:
        raise MMFlowError(f"{name}={value!r} is empty: name at least one, or leave {name} out.")
    wrong = [one for one in several if not isinstance(one, str) or not one.strip()]
    if wrong:
        raise MMFlowError(f"{name} are texts, such as {EXAMPLES.get(name, ['image'])}, but they hold {came(wrong[0])}.")
    return several


def edges_of(name: str, value: object) -> tuple[str, ...]:
    """Edges "source->target"; one may stand alone."""
    for edge in texts(name, value):
        source, arrow, target = edge.partition("->")
        if not (arrow and source.strip() and target.strip()) or "->" in target:
            raise MMFlowError(f"{edge!r} is no edge: 'source->target' is expected, such as 'image->question'.")
    return texts(name, value)


def expression(name: str, value: object, spans_too: bool = True) -> object:
    """A span by name or expression, or a Span."""
    from nnsight_mmflow._spans import Span

    if isinstance(value, Span) and spans_too:
        return value
    if not isinstance(value, str):
        also = ", or a Span" if spans_too else ""
        raise MMFlowError(f"{name} is a span's name or expression, such as 'image'{also}; {came(value)} came.")
    if not value.strip():
        raise MMFlowError(f"{name}={value!r} names no span: such as {name}='image'.")
    return value


def layers_of(name: str, value: object) -> int | list[int] | tuple[int, ...] | range:
    """A layer or several. Whether they exist is known where the model is."""
    if isinstance(value, range) or (type(value) is int):
        return value
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) != 1:
        raise MMFlowError(f"{name}: a layer is a whole number, several are a list of them; {came(value)} came.")
    several = [whole(f"each of {name}", one) for one in value]
    return several if isinstance(value, list) else tuple(several)


def heads_of(name: str, value: object) -> list[int] | tuple[int, ...] | range:
    """One head or several, as several. Whether they exist is known where the model is."""
    found = layers_of(name, value) if not isinstance(value, Integral) else (whole(name, value),)
    return (found,) if isinstance(found, int) else found


def windows_of(name: str, value: object) -> object:
    """A size in layers, or several."""
    if isinstance(value, Integral | str | bytes | Mapping) or not isinstance(value, Iterable):
        return whole(name, value)
    return tuple(whole(f"each {name}", one) for one in value)


def graph_of(name: str, value: object) -> object:
    """A graph."""
    from nnsight_mmflow._graph import Graph

    if not isinstance(value, Graph):
        raise MMFlowError(f"{name} is what mmf.load or mmf.adapt returns, but {came(value)} came.")
    return value


def prompts_of(name: str, value: object) -> object:
    """One prompt or several; a batch stands for its prompts."""
    from nnsight_mmflow._prompt import Batch, Prompt

    if isinstance(value, Prompt):
        return [value]
    if isinstance(value, Batch):
        return list(value.prompts)
    return _several(name, value, Prompt, "graph.prompt(...)")


def prompt_of(name: str, value: object) -> object:
    """A prompt or a batch; which of them, the function says."""
    from nnsight_mmflow._prompt import Batch, Prompt

    if not isinstance(value, Prompt | Batch):
        raise MMFlowError(
            f"this takes one prompt, but a {type(value).__name__} came as {name}: what graph.prompt(...) returns."
        )
    return value


def corruptions_of(name: str, value: object) -> object:
    """One corrupt run or several."""
    from nnsight_mmflow.patterns.corruption import Corruption

    return [value] if isinstance(value, Corruption) else _several(name, value, Corruption, "mmf.corruption")


def facts_of(name: str, value: object) -> object:
    """One fact or several."""
    from nnsight_mmflow.patterns.edit_value import Fact

    return (
        [value] if isinstance(value, Fact) else _several(name, value, Fact, "mmf.Fact(prompt=..., target=..., at=...)")
    )


def methods_of(name: str, value: object) -> object:
    """Pruning patterns, or a mapping from names to them."""
    from nnsight_mmflow.patterns.prune import Prune

    if isinstance(value, Prune):
        return [value]
    if isinstance(value, Mapping):
        _several(name, list(value.values()), Prune, "such as mmf.FastV(k=2, r=0.5)")
        return {text(f"each name of {name}", key): one for key, one in value.items()}
    return _several(name, value, Prune, "such as mmf.FastV(k=2, r=0.5)")


def pattern_of(name: str, value: object) -> object:
    """A pruning pattern."""
    methods_of(name, [value])
    return value


def patterns_of(value: object) -> object:
    """Patterns, as graph.trace takes them."""
    for one in value:  # type: ignore[attr-defined]
        if isinstance(one, type) or not hasattr(one, "check") or not hasattr(one, "prepared"):
            raise MMFlowError(f"a pattern is expected, such as mmf.Knockout(...), but {came(one)} came.")
    return value


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


def settings_of(name: str, value: object) -> object:
    """The name of edit settings, or some."""
    from nnsight_mmflow.patterns.edit_value import SETTINGS, EditSettings

    if isinstance(value, EditSettings) or (isinstance(value, str) and value in SETTINGS):
        return value
    raise MMFlowError(f"{name} must be one of {', '.join(SETTINGS)}, or mmf.EditSettings(...), not {value!r}.")


def same_of(name: str, value: object) -> object:
    """Prompts by what differs."""
    if not isinstance(value, Mapping):
        raise MMFlowError(f"{name} is a mapping from what differs to prompts, but {came(value)} came.")
    for way, prompts in value.items():
        text(f"each key of {name}", way)
        prompts_of(f"{name}[{way!r}]", prompts)
    return value


def scale_of(name: str, value: object) -> object:
    """Where a scale ends; what it may be, the function says."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise MMFlowError(f"{name} is a number, but {came(value)} came.")
    return value


def made_for(graph: Graph, prompts: object, what: str) -> None:
    """Refuses prompts that another model's processor made: their ids would mean other words here."""
    from nnsight_mmflow._encode import check_made_for
    from nnsight_mmflow._prompt import Prompt

    for prompt in prompts if isinstance(prompts, list) else getattr(prompts, "prompts", [prompts]):
        if isinstance(prompt, Prompt):
            check_made_for(graph.adapter, prompt)


def check_asked(question: object, answer: object, options: object, boxes: object, named: Mapping[str, object]) -> None:
    """Refuses what is no question, answer, pair of options or box; `named`: the other texts."""
    text("question", question)
    for name, value in {"answer": answer, **named}.items():
        if value is not None:
            text(name, value)
    if options is not None:
        if isinstance(options, str) or not isinstance(options, list | tuple):
            raise MMFlowError(f"options are two texts, (true, false), but {came(options)} came.")
        for option in options:
            text("each of options", option)
    if isinstance(boxes, str | Mapping) or not isinstance(boxes, Iterable):
        raise MMFlowError(f"boxes are a list of (x0, y0, x1, y1), but {came(boxes)} came.")
    for box in boxes:
        if isinstance(box, str) or not isinstance(box, Iterable):
            raise MMFlowError(f"boxes are (x0, y0, x1, y1) each, in pixels, so one box is [box]; {came(box)} came.")
        for edge in box:
            number("each edge of a box", edge)


def came(value: object) -> str:
    """A value, as messages show it."""
    if value is None:
        return "None"
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(value).__name__})"


def _as_tuple(value: object) -> tuple:
    return tuple(value) if isinstance(value, Iterable) else (value,)


def _several(name: str, value: object, kind: type, how: str) -> list:
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise MMFlowError(f"{name}: one {kind.__name__} or a list of them is expected ({how}), but {came(value)} came.")
    found = list(value)
    wrong = [number for number, one in enumerate(found) if not isinstance(one, kind)]
    if wrong:
        raise MMFlowError(
            f"{name}: each is a {kind.__name__} ({how}), but number {wrong[0]} is {came(found[wrong[0]])}."
        )
    return found


EXPRESSIONS = ("source", "target", "at", "targets", "sources")
LISTS = ("spans", "sites", "ways", "titles")
EXAMPLES = {"spans": ["image", "question"], "sites": ["mlp", "attn"], "ways": ["img2txt"], "edges": ["image->last"]}
BY_NAME: dict[str, Check] = {
    "graph": graph_of,
    "prompts": prompts_of,
    "clean": prompts_of,
    "others": prompts_of,
    "prompt": prompt_of,
    "corrupt": corruptions_of,
    "same_answer": corruptions_of,
    "facts": facts_of,
    "methods": methods_of,
    "pattern": pattern_of,
    "edges": edges_of,
    "window": windows_of,
    "layers": layers_of,
    "heads": heads_of,
    "controls": layers_of,
    "folder": folder_of,
    "report": called,
    "judge": called,
    "measured_by": called,
    "remote": place_of,
    "settings": settings_of,
    "max_value": scale_of,
    "metric": called,
}
