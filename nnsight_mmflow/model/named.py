"""What patterns name, looked at where the model is: rows, layers, and positions that a generation computes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._kinds import came, layers_of

if TYPE_CHECKING:
    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.spans.row_spans import Spans
    from nnsight_mmflow.spans.span import Span


def rows_of(graph: object, spans: Spans | tuple[Spans, ...]) -> tuple[Spans, ...]:
    """The spans of each row, as `apply` is given them: `prompt.spans`, or `batch.spans`.

    Raises:
        MMFlowError: something else came, or no graph.
    """
    rows = spans if isinstance(spans, tuple) else (spans,)
    if not hasattr(graph, "n_layers") or not rows or not all(hasattr(row, "having") for row in rows):
        raise MMFlowError(
            f"apply(graph, prompt.spans) or apply(graph, batch.spans), but {came(graph)}, {came(spans)} came."
        )
    return rows


def layer_list(layers: int | Iterable[int], n_layers: int) -> list[int]:
    """The layers as sorted numbers from 0; negative ones count from the end.

    Raises:
        MMFlowError: no layer, or one that the model does not have.
    """
    layers = layers_of("layers", layers)
    asked = [layers] if isinstance(layers, int) else list(layers)
    if not asked:
        raise MMFlowError(f"layers={layers!r} names no layer; there are {n_layers}, counted from 0.")
    wrong = [layer for layer in asked if not -n_layers <= layer < n_layers]
    if wrong:
        raise MMFlowError(f"layers {wrong} do not exist; there are {n_layers}, counted from 0.")
    return sorted({layer % n_layers for layer in asked})


def check_computed(what: str, span: Span, form: Form) -> None:
    """Refuses positions that a generation does not compute: a cache given by the user holds them already.

    Raises:
        MMFlowError: there are such.
    """
    there = [position for position in span if position < form.past]
    if there:
        raise MMFlowError(
            f"{what} acts at position(s) {there[:5]}, but past_key_values holds the first {form.past} positions"
            " already, computed without it. Leave past_key_values out, or fill it in a run with the pattern."
        )


def check_whole(what: str, rows: tuple[Spans, ...], form: Form) -> None:
    """Refuses a generation in which no forward holds the whole prompt.

    Raises:
        MMFlowError: a cache holds some of it already, or it comes in parts.
    """
    if form.parts(rows[0]["all"].row[1]):
        came = f"past_key_values with {form.past} positions" if form.past else f"prefill_chunk_size={form.chunk}"
        raise MMFlowError(
            f"{what} needs the whole prompt in one forward, but {came} came: leave it out"
            f"{' (or set prefill_chunk_size=None)' if form.chunk else ''}."
        )
