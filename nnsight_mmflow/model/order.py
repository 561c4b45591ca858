"""Patterns that meet in one layer: in which order they act, and which cannot act there both."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow.model.pattern import BIASES, CLOSES

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.spans.row_spans import Spans


def side_by_side(graph: Graph, patterns: tuple[Pattern, ...], rows: tuple[Spans, ...]) -> tuple[Pattern, ...]:
    """The patterns in the order in which they act, whatever that in which they came.

    What closes edges comes before what adds to the scores of others, and both before what reads attention (a pruning
    method ranks by it, ZeroWeights takes a part of it away), and what writes values comes last, in the order given.
    Layers that another pattern leaves out have no attention, so a Knockout or Bias acts in the rest of its layers.

    Raises:
        NoEffectError: a Knockout in layers that are all left out.
        MMFlowError: two that cannot both act in a layer.
    """
    _check_taken(graph, patterns, rows)
    _check_ranked(graph, patterns, rows)
    there = patterns
    for leaving in patterns:
        if leaving.left_out(graph) is not None:
            there = tuple(each if each is leaving else _beside(graph, each, leaving, rows) for each in there)
    return tuple(sorted(there, key=lambda pattern: pattern.order))


def _beside(graph: Graph, other: Pattern, leaving: Pattern, rows: tuple[Spans, ...]) -> Pattern:
    """The other pattern, in what one that leaves layers (or parts of them) out leaves of the model."""
    part, gone = leaving.left_out(graph) or ("", [])
    inside = [layer for layer in other.inside(graph, rows, part) if layer in gone]
    if not inside:
        return other
    what = "" if part == "layer" else f"the {part} of "
    if not other.can_leave:
        raise MMFlowError(
            f"{leaving} leaves {what}layer(s) {inside[:5]} out, and {other} acts on what is computed inside. Give them"
            " different layers."
        )
    rest = [layer for layer in other.layer_list(graph) if layer not in gone]
    if not rest:
        raise NoEffectError(f"{other} would change nothing: {leaving} leaves {what}all of its layers out.")
    return replace(other, layers=rest)  # type: ignore[type-var]


def _check_taken(graph: Graph, patterns: tuple[Pattern, ...], rows: tuple[Spans, ...]) -> None:
    """Refuses weights that two patterns take away: each takes away what they were."""
    taking = [pattern for pattern in patterns if pattern.taken(rows)]
    for first, second in combinations(taking, 2):
        layers = set(first.layer_list(graph)) & set(second.layer_list(graph))
        both = zip(first.taken(rows), second.taken(rows), strict=True)
        if layers and any(targets & also and sources & too for (targets, sources), (also, too) in both):
            raise MMFlowError(
                f"{first} and {second} name the same weights in layer(s) {sorted(layers)[:5]}, which would be taken"
                ' away twice. Write one pattern, its spans joined with "|", or spans that share nothing'
                ' ("question - last").'
            )


def _check_ranked(graph: Graph, patterns: tuple[Pattern, ...], rows: tuple[Spans, ...]) -> None:
    """Refuses edges changed in some heads of a layer by whose attention tokens are ranked: all are read as one."""
    read = {layer: pattern for pattern in patterns for layer in pattern.reads(graph, rows)}
    for pattern in patterns:
        if pattern.order in (CLOSES, BIASES) and pattern.heads is not None:
            both = [layer for layer in pattern.layer_list(graph) if layer in read]
            if both:
                raise MMFlowError(
                    f"{read[both[0]]} ranks image tokens by the attention of layer {both[0]}, in which {pattern}"
                    " changes edges in some heads: a ranking reads one mask for all heads. Leave one of them out."
                )
