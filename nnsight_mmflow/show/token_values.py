"""A number per token, from what a user or a result has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._kinds import came
from nnsight_mmflow.patterns.attention.result import AttentionResult
from nnsight_mmflow.runs.results import Result

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.spans.span import Span

    Values: TypeAlias = Mapping[int, float] | Sequence[float] | np.ndarray | torch.Tensor | Result

COLUMNS = {"contributions": "norm", "lens": "answer_lower", "flow": "change_percent"}


def values_of(
    prompt: Prompt, span: Span, values: Values, layer: int | None, column: str | None
) -> tuple[list[float], str]:
    """(a number per position of the span, what they are).

    Args:
        prompt: the prompt that the values are of.
        span: the positions that get a number each.
        values: numbers by position, one per token of the span, or a result that holds them.
        layer: of a result; None: summed over layers (contributions), the lowest of all layers (flow).
        column: of a result's table.

    Raises:
        MMFlowError: a position without a number, or a result that holds none.
    """
    if isinstance(values, Result):
        value_at, label = of_result(prompt, values, layer, column)
    elif isinstance(values, Mapping):
        try:
            value_at, label = {int(position): float(value) for position, value in values.items()}, "value"
        except (TypeError, ValueError):
            raise MMFlowError(f"values by position are numbers, but {came(values)} came.") from None
    else:
        try:
            listed = [float(value) for value in values]
        except (TypeError, ValueError):
            raise MMFlowError(f"values are numbers, one per token of the span, but {came(values)} came.") from None
        if len(listed) != len(span):
            raise MMFlowError(
                f"{len(listed)} values came for the {len(span)} tokens of {span.name!r}: give one for each, or a"
                " mapping of position to value; or name another span: at=."
            )
        value_at, label = dict(zip(span, listed, strict=True)), "value"
    missing = [position for position in span if position not in value_at]
    if missing:
        raise MMFlowError(
            f"{len(missing)} of the {len(span)} tokens of {span.name!r} have no value, the first of them"
            f" {prompt.spans.tokens[missing[0]]!r} at position {missing[0]}; there are values for"
            f" {len(value_at)} positions: {sorted(value_at)[:8]}. Is at= the span that the values are of?"
        )
    numbers = [value_at[position] for position in span]
    wrong = [number for number in numbers if not abs(number) < float("inf")]
    if wrong:
        raise MMFlowError(f"{len(wrong)} of {len(numbers)} values are not finite: {wrong[:3]}. They have no colour.")
    return numbers, label


def of_result(prompt: Prompt, result: Result, layer: int | None, column: str | None) -> tuple[dict[int, float], str]:
    """(a number by position, what they are): what a result holds of a prompt; arguments as in `values_of`."""
    table, kind = result.table, result.kind
    if isinstance(result, AttentionResult):
        return _of_maps(prompt, result, layer)
    if kind not in COLUMNS:
        raise MMFlowError(
            f"a {type(result).__name__} holds no number per token of text; attention, contributions, lens and"
            " knockout_by_token do. What it holds for image tokens, its on_image shows."
        )
    column = column or (result.quantity.column if kind == "flow" else COLUMNS[kind])  # type: ignore[attr-defined]
    if column not in table:
        raise MMFlowError(f"the result has no column {column!r}; it has {', '.join(map(str, table.columns))}.")
    table = of_prompt(table, prompt)
    if kind == "lens":
        if layer is None:
            raise MMFlowError("a lens reads each layer by itself: layer=... says which (-1 is the embeddings).")
        table = table[table["site"] == "resid"]
    if kind == "contributions":
        table = table[table["head"] == -1]
    if "generated" in table:  # rows of the target alone; result.token(k) is of one generated token
        table = table[table["generated"] == -1]
    if layer is not None:
        table = of_layer(table, layer)
    if kind == "flow":
        return _of_flow(prompt, table, layer, column)
    grouped = table.groupby("position")[column].sum()
    where = "summed over layers" if layer is None else f"layer {layer}"
    label = f"{kind}, {column.replace('_', ' ')}, {where}"
    _check_tokens(prompt, table)
    return {int(str(position)): float(value) for position, value in grouped.items()}, label


def _of_maps(prompt: Prompt, maps: AttentionResult, layer: int | None) -> tuple[dict[int, float], str]:
    """The attention that a target gives each source: mean over targets and heads."""
    if not maps.is_of(prompt):
        raise MMFlowError("these attention maps are of another prompt: mmf.attention(graph, prompt, ...) again.")
    weights = maps.weights.mean(0) if layer is None else maps.at(layer)
    mean = weights.mean((0, 1))
    where = "mean over layers" if layer is None else f"layer {layer}"
    return dict(zip(maps.sources, mean.tolist(), strict=True)), f"attention weight, {where}, mean over heads"


def of_prompt(table: pd.DataFrame, prompt: Prompt) -> pd.DataFrame:
    """The rows of a prompt: those of its key, or all where the table is of one prompt, which has no other key."""
    names = list(dict.fromkeys(table["prompt"]))
    if prompt.key not in names and (len(names) > 1 or (prompt.key and names != ["0"])):
        raise MMFlowError(
            f"the result is of {len(names)} prompt(s) ({', '.join(map(str, names[:4]))}), none of this key."
            " Ask with one of their prompts, and give each a key of its own: graph.prompt(..., key='first')."
        )
    return table[table["prompt"] == (prompt.key if prompt.key in names else names[0])]


def of_layer(table: pd.DataFrame, layer: int) -> pd.DataFrame:
    """The rows of a layer."""
    there = sorted({int(number) for number in table["layer"]})
    if layer not in there:
        raise MMFlowError(f"layer {layer} is not in the result; it has {there[0]} to {there[-1]}.")
    return table[table["layer"] == layer]


def _of_flow(prompt: Prompt, table: pd.DataFrame, layer: int | None, column: str) -> tuple[dict[int, float], str]:
    """The effect of each edge's source on each of its tokens, for edges with sources that do not overlap."""
    value_at: dict[int, float] = {}
    for edge, value in table.groupby("edge", sort=False)[column].min().items():
        source = str(edge).split("->")[0]
        held = [int(source.removeprefix("token_"))] if source.startswith("token_") else list(prompt.spans[source])
        twice = sorted(set(held) & set(value_at))
        if twice:
            raise MMFlowError(f"several edges of the result say something of position {twice[0]}: one value a token.")
        value_at.update(dict.fromkeys(held, float(value)))
    where = "lowest over layers" if layer is None else f"centre layer {layer}"
    return value_at, f"knockout, {column.replace('_', ' ')}, {where}"


def _check_tokens(prompt: Prompt, table: pd.DataFrame) -> None:
    for row in table.drop_duplicates("position").itertuples():
        position, token = int(str(row.position)), str(row.token)
        there = prompt.spans.tokens[position] if position < len(prompt) else None
        if there != token:
            raise MMFlowError(
                f"the result has {token!r} at position {position}, this prompt {there!r}: another prompt."
            )
