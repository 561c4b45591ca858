"""What an argument may be, where it is one of the package's own things: a graph, prompts, facts, patterns.

The rooms above are known by the names of their classes, so that nothing of them is imported for a check.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._kinds import came, text
from nnsight_mmflow.prompts.prompt import Batch, Prompt

PACKAGE = "nnsight_mmflow"


def is_a(value: object, kind: str) -> bool:
    """Whether it is of the package's class of that name, or of one derived from it."""
    return any(cls.__name__ == kind and cls.__module__.partition(".")[0] == PACKAGE for cls in type(value).__mro__)


def graph_of(name: str, value: object) -> object:
    """A graph."""
    if not is_a(value, "Graph"):
        raise MMFlowError(f"{name} is what mmf.load or mmf.adapt returns, but {came(value)} came.")
    return value


def bound_of(name: str, value: object) -> object:
    """A bridge bound to a prompt."""
    if not hasattr(value, "run_with_span_cache"):
        raise MMFlowError(f"{name} is what graph.bound(bridge, prompt) returns, but {came(value)} came.")
    return value


def prompts_of(name: str, value: object) -> list:
    """One prompt or several; a batch stands for its prompts."""
    if isinstance(value, Prompt):
        return [value]
    if isinstance(value, Batch):
        return list(value.prompts)
    return _several(name, value, "Prompt", "graph.prompt(...)")


def prompt_of(name: str, value: object) -> object:
    """A prompt or a batch; which of them, the function says."""
    if not isinstance(value, Prompt | Batch):
        raise MMFlowError(
            f"this takes one prompt, but a {type(value).__name__} came as {name}: what graph.prompt(...) returns."
        )
    return value


def corruptions_of(name: str, value: object) -> object:
    """One corrupt run or several."""
    return [value] if is_a(value, "Corruption") else _several(name, value, "Corruption", "mmf.corruption")


def facts_of(name: str, value: object) -> object:
    """One fact or several."""
    return [value] if is_a(value, "Fact") else _several(name, value, "Fact", "mmf.Fact(prompt=..., target=..., at=...)")


def questions_of(name: str, value: object) -> object:
    """Questions, or questions with constraints."""
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise MMFlowError(f"{name}: a list of questions is expected (mmf.data.read_questions), but {came(value)} came.")
    questions = list(value)
    wrong = [question for question in questions if not hasattr(question, "image") or not hasattr(question, "question")]
    if wrong:
        raise MMFlowError(f"{name}: each is an mmf.data.Question, but {came(wrong[0])} came.")
    return questions


def methods_of(name: str, value: object) -> object:
    """Pruning patterns, or a mapping from names to them."""
    if is_a(value, "Prune"):
        return [value]
    if isinstance(value, Mapping):
        _several(name, list(value.values()), "Prune", "such as mmf.FastV(k=2, r=0.5)")
        return {text(f"each name of {name}", key): method for key, method in value.items()}
    return _several(name, value, "Prune", "such as mmf.FastV(k=2, r=0.5)")


def pattern_of(name: str, value: object) -> object:
    """A pruning pattern."""
    methods_of(name, [value])
    return value


def patterns_of(value: object) -> object:
    """Patterns, as graph.trace takes them."""
    for pattern in value:  # type: ignore[attr-defined]
        if not is_a(pattern, "Pattern"):
            raise MMFlowError(f"a pattern is expected, such as mmf.Knockout(...), but {came(pattern)} came.")
    return value


def settings_of(name: str, value: object) -> object:
    """The name of edit settings, or some."""
    if is_a(value, "EditSettings") or isinstance(value, str):  # which names there are, the function says
        return value
    raise MMFlowError(f"{name} is the name of some, or mmf.EditSettings(...), but {came(value)} came.")


def same_of(name: str, value: object) -> object:
    """Prompts by what differs."""
    if not isinstance(value, Mapping):
        raise MMFlowError(f"{name} is a mapping from what differs to prompts, but {came(value)} came.")
    for way, prompts in value.items():
        text(f"each key of {name}", way)
        prompts_of(f"{name}[{way!r}]", prompts)
    return value


def _several(name: str, value: object, kind: str, how: str) -> list:
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise MMFlowError(f"{name}: one {kind} or a list of them is expected ({how}), but {came(value)} came.")
    items = list(value)
    wrong = [number for number, item in enumerate(items) if not is_a(item, kind)]
    if wrong:
        raise MMFlowError(f"{name}: each is a {kind} ({how}), but number {wrong[0]} is {came(items[wrong[0]])}.")
    return items
