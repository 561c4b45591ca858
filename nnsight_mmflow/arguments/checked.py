"""What callers hand over, looked at before anything runs: one place says what a window, a layer or a span may be.

An argument is checked by its name where the package uses that name for one thing (graph, prompts, layers, spans), else
by its default: where that is a whole number, a whole number is wanted. Whole numbers of numpy are taken as such.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._formerly import with_new_names
from nnsight_mmflow._kinds import (
    boxes_of,
    called,
    came,
    color_of,
    edges_of,
    expression,
    flag,
    folder_of,
    heads_of,
    layers_of,
    number,
    numbers,
    place_of,
    scale_of,
    single_or_several,
    text,
    texts,
    whole,
    windows_of,
    workers_of,
)
from nnsight_mmflow.arguments.things import (
    bound_of,
    corruptions_of,
    facts_of,
    graph_of,
    methods_of,
    pattern_of,
    patterns_of,
    prompt_of,
    prompts_of,
    questions_of,
    same_of,
    settings_of,
)
from nnsight_mmflow.prompts.encode import check_made_for
from nnsight_mmflow.prompts.prompt import Prompt

if TYPE_CHECKING:
    from nnsight_mmflow.adapters.base import Adapter

Given = ParamSpec("Given")
Found = TypeVar("Found")
Check = Callable[[str, object], object]

LEAST = {  # where 0 or less would mean nothing, or something else than was meant
    **dict.fromkeys(("max_new_tokens", "batch_size", "row_budget", "heads_at_once", "top", "most_bytes"), 1),
    **dict.fromkeys(("k", "k1", "k2", "from_layer", "first_layer", "seed", "timed", "exact", "image"), 0),
    **dict.fromkeys(("dominant", "contextual", "calm_layers", "controls", "generated"), 0),
}
ENDLESS = ("max_corrupt", "clip")  # limits, of which none is infinity
MOST = {  # beyond these a run would not end, or a seed not be one
    "seed": 2**32 - 1,
    "controls": 1000,
    "timed": 10_000,
    "max_new_tokens": 1_000_000,
    "generated": 4096,
}


EXPRESSIONS = ("source", "target", "at")
LISTS = ("spans", "sites", "ways", "titles", "kinds", "names")
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
    "control_layers": layers_of,
    "folder": folder_of,
    "report": called,
    "judge": called,
    "make": called,
    "workers": workers_of,
    "remote": place_of,
    "settings": settings_of,
    "max_value": scale_of,
    "metric": called,
    "color": color_of,
    "boxes": boxes_of,
    "questions": questions_of,
}


def checked(run: Callable[Given, Found]) -> Callable[Given, Found]:
    """The function, its arguments checked before it runs.

    Raises:
        MMFlowError: a value that is not what the argument stands for.
    """
    signature = inspect.signature(run)

    @wraps(run)
    def wrapped(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        bound = signature.bind(*args, **with_new_names(run.__name__, kwargs))
        for name, value in bound.arguments.items():
            known = signature.parameters[name]
            if known.kind in (known.POSITIONAL_OR_KEYWORD, known.KEYWORD_ONLY):
                bound.arguments[name] = value_of(name, value, known.default, str(known.annotation))
            elif name == "patterns":
                bound.arguments[name] = patterns_of(value)
        graph = bound.arguments.get("graph")
        if "remote" in signature.parameters and not bound.arguments.get("workers"):
            graph.at(bound.arguments.get("remote")).check_weights({})  # type: ignore[union-attr]
        for name in ("prompts", "prompt", "clean", "others"):
            if graph is not None and bound.arguments.get(name) is not None:
                made_for(graph.adapter, bound.arguments[name], run.__name__)
        return run(*bound.args, **bound.kwargs)

    return wrapped


def check_fields(pattern: object) -> None:
    """Checks a pattern's fields when it is made; layers that come as an iterator, which is read only once, are kept.

    Raises:
        MMFlowError: a value that is not what the field stands for.
    """
    for name, field in type(pattern).__dataclass_fields__.items():  # type: ignore[attr-defined]
        if not field.init or name in ("value", "ready"):
            continue
        if name == "own":
            if not isinstance(getattr(pattern, name), list | tuple):
                raise MMFlowError(f"own is a list of mmf.prune.Stage(...), but {came(getattr(pattern, name))} came.")
            continue
        kind = "str | Span" if name == "at" and getattr(pattern, "changes", False) else str(field.type)
        value = value_of(name, getattr(pattern, name), field.default, kind)
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
    if kind == "BoundBridge":
        return bound_of(name, value)
    if name == "methods" and "Prune" not in kind:
        return texts(name, value)
    if name in BY_NAME and not (name == "heads" and kind == "int"):
        converted = BY_NAME[name](name, value)
        if name == "window" and "Sequence" not in kind:
            converted = whole(name, value)
        if name in ("layers", "control_layers") and isinstance(converted, int) and not kind.startswith("int"):
            converted = (converted,)
        if name == "prompt" and "Batch" not in kind and type(converted).__name__ == "Batch":
            raise MMFlowError("this takes one prompt, but a Batch came: one of batch.prompts.")
        return converted
    if name in EXPRESSIONS:
        return expression(name, value, spans_too="Span" in kind.replace("SpanCache", ""))
    if name in LISTS:
        return texts(name, value, empty=default == ())
    if name == "keep" or "tuple[float" in kind:
        return numbers(name, value)
    if name == "same":
        return same_of(name, value)
    if name == "layer" and "Sequence" in kind:
        return single_or_several(name, value)
    if "float | int" in kind or "int | float" in kind:
        return number(name, value)
    if "int | str" in kind:
        return value  # the function itself tells these apart
    if kind.startswith("int") or (isinstance(default, int) and not isinstance(default, bool)):
        least = 1 if name == "k" and default is inspect.Parameter.empty else LEAST.get(name)  # of the k largest
        return whole(name, value, least, MOST.get(name))
    if kind.startswith("float") or isinstance(default, float):
        return number(name, value, name in ENDLESS)
    if kind in ("str", "str | None"):
        return text(name, value)
    return value


def made_for(adapter: Adapter, prompts: object, what: str) -> None:
    """Refuses prompts that another model's processor made: their ids would mean other words here."""
    for prompt in prompts if isinstance(prompts, list) else getattr(prompts, "prompts", [prompts]):
        if isinstance(prompt, Prompt):
            check_made_for(adapter, prompt)


def _as_tuple(value: object) -> tuple:
    return tuple(value) if isinstance(value, Iterable) else (value,)
