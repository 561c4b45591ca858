"""The cells of a sweep: what stands at each x, made and checked before any forward, and its controls."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow._kinds import came
from nnsight_mmflow.arguments.things import is_a
from nnsight_mmflow.model.together import check_together
from nnsight_mmflow.patterns.flow.controls import PARTS, control_pool

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.spans.span import Span

Label = int | float | str
RESERVED = (  # the columns that a table of a sweep has beside those of its axes
    *("prompt", "kind", "control", "question", "answer", "prediction", "correct", "clean", "score", "change"),
    *("base_probability", "probability", "change_percent", "log_probability_change", "answer_changed"),
    *("mean", "low", "high", "prompts"),  # of `means`
)
OF_TOKENS = ("tokens", "clean_token_scores", "token_scores", "token", "word")  # and that of a whole answer


@dataclass(frozen=True)
class Cell:
    """One x of a sweep.

    Attributes:
        labels: what its columns say.
        patterns: what stands there.
        control: 0, or which draw of random positions in the place of the patterns' own.
    """

    labels: tuple[Label, ...]
    patterns: tuple[Pattern, ...]
    control: int = 0

    def called(self, columns: tuple[str, ...]) -> str:
        """What errors call it."""
        told = ", ".join(f"{column}={label!r}" for column, label in zip(columns, self.labels, strict=True))
        return f"control {self.control} of {told}" if self.control else told


def cells_of(make: Callable, over: object, tokens: bool = False) -> tuple[tuple[str, ...], tuple[Cell, ...]]:
    """(the columns, the cells) of a sweep: `make` is called for each x.

    Args:
        make: gives the patterns of an x.
        over: the x.
        tokens: whether the score is made of tokens, whose columns the table has then.

    Raises:
        MMFlowError: `over` names no x, or one twice; `make` fails, or gives something else than patterns.
        NoEffectError: it gives none.
    """
    columns, values, call = _axes(make, over, (*RESERVED, *OF_TOKENS) if tokens else RESERVED)
    cells = []
    every = list(zip(*(labels_of(axis) for axis in zip(*values, strict=True)), strict=True))
    for value, labels in zip(values, every, strict=True):
        name = Cell(labels, ()).called(columns)
        try:
            made = call(value)
        except MMFlowError as error:
            raise type(error)(f"sweep, {name}: {error}") from error
        except Exception as error:
            raise MMFlowError(f"sweep: make failed at {name}: {type(error).__name__}: {error}") from error
        cells.append(Cell(labels, _patterns(made, name)))
    twice = [
        cell.called(columns) for number, cell in enumerate(cells) if cell.labels in [c.labels for c in cells[:number]]
    ]
    if twice:
        raise MMFlowError(f"sweep: {twice[0]} comes twice in over, so that their rows could not be told apart.")
    return columns, tuple(cells)


def _axes(
    make: Callable, over: object, reserved: tuple[str, ...]
) -> tuple[tuple[str, ...], list[tuple], Callable[[tuple], object]]:
    """(the columns, for each x a value in each, how `make` is called with them)."""
    form = (
        "over is a list of x, each handed to make(x), or a mapping of one or two lists by name, such as"
        " {'layer': range(8), 'head': range(4)}, of whose product each is handed to make(layer=, head=)"
    )
    if isinstance(over, Mapping):
        names = tuple(over)
        wrong = [name for name in names if not isinstance(name, str) or not name.isidentifier() or name in reserved]
        if wrong or not 1 <= len(names) <= 2:
            taken = " (the table has one of that name)" if wrong and wrong[0] in reserved else ""
            told = f"{wrong[0]!r} is no name that a column can have{taken}" if wrong else f"{len(names)} came"
            raise MMFlowError(f"sweep: {form}; {told}.")
        axes = [_listed(one, f"over[{name!r}]") for name, one in over.items()]
        return names, list(itertools.product(*axes)), lambda value: make(**dict(zip(names, value, strict=True)))
    if isinstance(over, str | bytes) or not isinstance(over, Iterable):
        raise MMFlowError(f"sweep: {form}; {came(over)} came.")
    values = _listed(over, "over")
    if all(isinstance(one, tuple) and len(one) == 2 for one in values):  # a product: an axis each
        return ("x_0", "x_1"), values, make
    return ("x",), [(one,) for one in values], lambda value: make(*value)


def _listed(values: object, name: str) -> list:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise MMFlowError(f"sweep: {name} is a list, but {came(values)} came.")
    found = list(values)
    if not found:
        raise MMFlowError(f"sweep: {name} is empty: name at least one x.")
    return found


def labels_of(values: Sequence[object]) -> list[Label]:
    """What a column says of each x of an axis; different things that go by the same name are numbered."""
    labels = [label_of(one) for one in values]
    things: dict[Label, list[int]] = {}
    for value, label in zip(values, labels, strict=True):
        alike = things.setdefault(label, [])
        if name_of(value) is not None and id(value) not in alike:
            alike.append(id(value))
    return [
        label if len(things[label]) < 2 else f"{label} {things[label].index(id(value))}"
        for value, label in zip(values, labels, strict=True)
    ]


def name_of(value: object) -> str | None:
    """What a thing goes by that cannot be typed on a line: functions by their name, others by their type; or None."""
    if isinstance(value, str) or hasattr(value, "positions"):
        return None
    if callable(value) and hasattr(value, "__name__"):
        return str(value.__name__)
    typed = repr(value)
    return type(value).__name__ if any(sign in typed for sign in ("\n", "...", " at 0x")) else None


def label_of(value: object) -> Label:
    """What a column says of an x: a number or text as it is, a range by its ends, else its name or as it is typed."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, range) and value.step == 1 and len(value):
        return str(value.start) if len(value) == 1 else f"{value.start}-{value.stop - 1}"
    if hasattr(value, "positions"):
        return str(getattr(value, "name", value))
    return name_of(value) or repr(value)


def _patterns(made: object, name: str) -> tuple[Pattern, ...]:
    several = [made] if is_a(made, "Pattern") else made
    if isinstance(several, str | Mapping) or not isinstance(several, Iterable):
        raise MMFlowError(f"sweep: make gives a pattern or a list of them, but at {name} {came(made)} came.")
    found = tuple(several)
    wrong = [one for one in found if not is_a(one, "Pattern")]
    if wrong:
        raise MMFlowError(f"sweep: make gives a pattern or a list of them, but at {name} it holds {came(wrong[0])}.")
    if not found:
        raise NoEffectError(f"sweep: {name} would change nothing: make gave no pattern.")
    return found


def check_cell(graph: Graph, prompt: Prompt, cell: Cell, name: str) -> Cell:
    """The cell as it acts on a prompt with its answer behind it, checked.

    Raises:
        NoEffectError, MMFlowError: it would change nothing, or cannot be done; which x, is told.
    """
    rows = prompt.rows()
    try:
        patterns = tuple(pattern.over_answer(prompt.spans) for pattern in cell.patterns)
        if len(patterns) > 1:
            check_together(graph, patterns, rows)
        for pattern in patterns:
            pattern.check_written(None)
            pattern.check(graph, rows, None)
    except MMFlowError as error:
        raise type(error)(f"sweep, {name}: {error}") from error
    return replace(cell, patterns=patterns)


def check_controls(cells: tuple[Cell, ...], columns: tuple[str, ...]) -> None:
    """Refuses controls for patterns that name no positions.

    Raises:
        MMFlowError: one has neither `source` nor `at`.
    """
    for cell in cells:
        for pattern in cell.patterns:
            if place_of(pattern) is None:
                raise MMFlowError(
                    f"sweep: controls put random positions in the place of a pattern's source or at, and {pattern} (at"
                    f" {cell.called(columns)}) has neither. Leave controls out."
                )


def place_of(pattern: Pattern) -> str | None:
    """The field that says where a pattern acts from: `source`, or else `at`."""
    there = {field.name for field in fields(pattern)}  # type: ignore[arg-type]
    return next((name for name in ("source", "at") if name in there and getattr(pattern, name) is not None), None)


def control_of(graph: Graph, prompt: Prompt, cell: Cell, draw: int, seed: str) -> Cell | None:
    """The cell with as many random other positions in the place of its patterns' own; None where there are too few.

    They are drawn from the part of the prompt in which the span lies (image, question, ...) where that has enough.
    """
    spans, found = prompt.spans, []
    for pattern in cell.patterns:
        place = place_of(pattern)
        assert place is not None  # checked
        named = getattr(pattern, place)
        own: Span = spans[named] if isinstance(named, str) else named
        if place == "source":
            target = getattr(pattern, "target", "last")
            reader = spans[target] if isinstance(target, str) else target
            pool = control_pool(spans, own, [reader.positions], graph.adapter.sliding_window())
        else:
            inside = next((set(spans[part]) for part in PARTS if set(own) <= set(spans[part])), set(range(*own.row)))
            rest = sorted(inside - set(own) - {own.row[0], own.row[1] - 1})
            pool = rest if len(rest) >= len(own) else None
        if not pool or not own:
            return None
        chosen = random.Random(f"{seed}:{own.positions}:{draw}").sample(pool, len(own))
        drawn = replace(own, name=f"control {draw}: {own.name}", positions=tuple(sorted(chosen)))
        found.append(replace(pattern, **{place: drawn}))  # type: ignore[type-var]
    return replace(cell, patterns=tuple(found), control=draw)
