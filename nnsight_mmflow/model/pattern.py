"""What every pattern can do. A pattern is a frozen dataclass that names spans and layers; it knows no architecture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow._kinds import came, expression, layers_of

if TYPE_CHECKING:
    from nnsight_mmflow.model.edits import Edit
    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Batch, Prompt
    from nnsight_mmflow.spans.row_spans import Spans
    from nnsight_mmflow.spans.span import Span


class Pattern(Protocol):
    """An intervention that `graph.trace` and `graph.generate` take."""

    def check(self, graph: Graph, rows: tuple[Spans, ...], form: Form | None) -> None:
        """Refuses, before any forward, what cannot be done or would change nothing; `form`: of a generation."""
        ...

    def prepared(self, graph: Graph, rows: tuple[Spans, ...]) -> Pattern:
        """The pattern with all that it needs from other runs at hand; itself if it needs none."""
        ...

    def run(self, graph: Graph, rows: tuple[Spans, ...]) -> None:
        """Does it, inside a trace that was checked: one forward of the whole prompt."""
        ...

    def run_each(self, graph: Graph, rows: tuple[Spans, ...]) -> None:
        """Does it, inside a generation that was checked, in each forward that holds what it acts on."""
        ...

    def edits(self, graph: Graph, rows: tuple[Spans, ...], prompt: Prompt | Batch | None) -> Sequence[Edit]:
        """What it does on a TransformerLens bridge."""
        ...


def resolve(what: str | Span, rows: tuple[Spans, ...], role: str) -> list[Span]:
    """The span that an expression means in each row; a Span stands for itself in a single row."""
    expression(role, what)
    if isinstance(what, str):
        return [spans[what] for spans in rows]
    if len(rows) != 1:
        raise MMFlowError(
            f"{role} is the Span {what.name!r}, but the batch has {len(rows)} rows, each with its own positions."
            f" Give {role} as an expression, such as {role}={what.name.split('.')[0]!r}."
        )
    if what.row != rows[0]["all"].row:
        raise MMFlowError(
            f"{role} is a span of a row at {what.row}, the prompt's row is at {rows[0]['all'].row}:"
            " take the span from the prompt that is run."
        )
    return [what]


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


def check_readable(what: str, source: Span, target: Span, blocks: tuple[tuple[int, int], ...] = ()) -> dict[int, int]:
    """Refuses an edge that is not open anywhere; returns for each target where it stops reading.

    Args:
        what: the edge or pattern, for the message.
        source: the positions that are read.
        target: the positions that read.
        blocks: (first, end) of stretches whose positions read one another backwards and forwards.

    Raises:
        NoEffectError: no source is open to any target: one is empty, or every source lies behind every target.
    """
    for name, span in (("source", source), ("target", target)):
        if not len(span):
            raise NoEffectError(f"{what} would change nothing: its {name} {span.name!r} holds no position of this row.")
    # behind itself, or at the end of its block
    ends = {
        position: max([position + 1, *(end for first, end in blocks if first <= position < end)]) for position in target
    }
    if source.positions[0] >= max(ends.values()):
        raise NoEffectError(
            f"{what} would change nothing: its first source is position {source.positions[0]}, its last target"
            f" {target.positions[-1]}. Attention flows from source to target, and a position reads only itself and"
            " earlier ones: are source and target swapped?"
        )
    return ends


def check_edge(what: str, source: Span, target: Span, blocks: tuple[tuple[int, int], ...] = ()) -> None:
    """Refuses to close an edge that is not open anywhere, or that a target cannot do without.

    Args:
        what: the edge or pattern, for the message.
        source: the positions that may not be read.
        target: the positions that may not read them.
        blocks: as in `check_readable`.

    Raises:
        NoEffectError: no source is open to any target.
        MMFlowError: a target would keep no key at all.
    """
    ends = check_readable(what, source, target, blocks)
    barred = set(source)
    starved = [position for position, end in ends.items() if barred.issuperset(range(source.row[0], end))]
    if starved:
        raise MMFlowError(
            f"{what} leaves position(s) {starved[:5]} nothing to read, and softmax needs a key. Take the first position"
            " out of the source, which every later position reads."
        )


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
