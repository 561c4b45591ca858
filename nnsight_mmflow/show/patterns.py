"""Patterns and plans as notebooks show them: what they do, their settings, their source; no model is needed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from types import FunctionType
from typing import TYPE_CHECKING

from nnsight_mmflow.show.html import box, heading, table
from nnsight_mmflow.spans.span import Span, ranges

if TYPE_CHECKING:
    from nnsight_mmflow.inside.plan import Plan
    from nnsight_mmflow.model.pattern import Pattern

MADE_BY_RUNS = ("ready",)
NOT_GIVEN = {"heads": "all", "at": "every position"}


def pattern_html(pattern: Pattern) -> str:
    """The first sentence of its class's docstring, its settings, and the paper that the docstring names."""
    paragraphs = [" ".join(part.split()) for part in docstring(type(pattern)).split("\n\n")]
    source = next((part for part in paragraphs if part.startswith("Source: ")), "")
    rows = [
        (field.name, NOT_GIVEN.get(field.name, "not given") if value is None else setting(value))
        for field in fields(pattern)  # type: ignore[arg-type]  # every pattern is a dataclass
        if field.name not in MADE_BY_RUNS and (value := getattr(pattern, field.name)) != ()
    ]
    return box(heading(type(pattern).__name__, paragraphs[0]), table(("setting", "value"), rows), heading("", source))


def docstring(kind: type) -> str:
    """A class's docstring, or that of what it is made from: a dataclass without one gets its signature instead."""
    for base in kind.__mro__:
        written = inspect.cleandoc(base.__doc__ or "")
        if written and not written.startswith(f"{base.__name__}("):
            return written
    return kind.__name__


def setting(value: object) -> str:
    """A setting in a few words: spans and tensors by their size, layers as they were given."""
    if isinstance(value, Span):
        return f"{value.name}: {len(value)} positions, {ranges(value.positions)}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a tensor of {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {setting(held)}" for key, held in value.items())
    if isinstance(value, FunctionType):
        return f"the function {value.__name__}"
    if isinstance(value, range) and value.step == 1 and len(value):
        return f"{value.start} to {value.stop - 1}"
    return str(value)


def plan_html(plan: Plan) -> str:
    """Rows, operations and bytes, beside one forward per window."""
    rows = [
        ("forwards", f"1 and {len(plan.chunks)} chunks of rows, {plan.n_rows} rows in all", plan.n_rows + 1),
        ("operations (GFLOP)", plan.row_flops / 1e9, plan.naive_flops / 1e9),
        ("memory beside the weights (MB)", plan.bytes / 1e6, "assumed" if plan.sizes.assumed else ""),
    ]
    sizes = f"{len(plan.edges)} edges, {len(plan.cells)} numbers wanted, {plan.length} positions"
    less = f"{plan.naive_flops / plan.row_flops:.0f} times fewer operations than one forward per window"
    return box(heading("Plan of a sweep", f"{sizes}; {less}"), table(("", "by rows", "one forward per window"), rows))
