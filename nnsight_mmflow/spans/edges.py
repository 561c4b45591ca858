"""Edges "source->target" between spans: what an expression means in each row, and edges that cannot be closed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow._kinds import expression

if TYPE_CHECKING:
    from nnsight_mmflow.spans.row_spans import Spans
    from nnsight_mmflow.spans.span import Span


def edge_positions(
    spans: Spans, edge: str, blocks: tuple[tuple[int, int], ...] = ()
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The source and target positions of an edge "source->target"; `blocks` as in `make_plan`.

    Raises:
        MMFlowError: it is not of that form, or leaves a target without any key.
        NoEffectError: no source is open to any target.
    """
    source_name, arrow, target_name = edge.partition("->")
    if not arrow:
        raise MMFlowError(f'an edge is "source->target", such as "image->question", not {edge!r}.')
    source, target = spans[source_name.strip()], through_answer(spans, spans[target_name.strip()])
    check_edge(repr(edge), source, target, blocks)
    return source.positions, target.positions


def through_answer(spans: Spans, target: Span) -> Span:
    """The target with the tokens of a teacher-forced answer, if it holds the prompt's last position.

    They stand behind the row, where a generation's new tokens would: so an edge to `last` stays closed while the whole
    answer is read, as with `when="all"`. Without such tokens it is the target itself.
    """
    behind = range(target.row[1], len(spans.tokens))
    if not behind or target.row[1] - 1 not in target:
        return target
    return replace(target, positions=tuple(sorted({*target.positions, *behind})))


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
            why = ": an answer of one token has nothing behind the prompt" if span.name == "answer" else ""
            told = f"its {name} {span.name!r} holds no position of this row{why}."
            raise NoEffectError(f"{what} would change nothing: {told}")
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
        blocks: (first, end) of positions that read each other both ways.

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
