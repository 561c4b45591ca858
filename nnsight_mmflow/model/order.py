"""Patterns that meet in one layer: in which order they act, and which cannot act there both."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow.model.pattern import layer_list, resolve
from nnsight_mmflow.patterns.knockout import Knockout
from nnsight_mmflow.patterns.patch import Patch
from nnsight_mmflow.patterns.skip import Skip
from nnsight_mmflow.patterns.zeroed import Zeroed

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.spans.row_spans import Spans


def side_by_side(graph: Graph, patterns: tuple[Pattern, ...], rows: tuple[Spans, ...]) -> tuple[Pattern, ...]:
    """The patterns in the order in which they act, whatever that in which they came.

    What closes edges comes before what reads attention (a pruning method ranks by it, Zeroed takes a part of it away),
    and what writes values comes last, in the order given. Layers that another pattern leaves out have no attention, so
    a Knockout acts in the rest of its layers.

    Raises:
        NoEffectError: a Knockout in layers that are all left out.
        MMFlowError: two that cannot both act in a layer.
    """
    _check_zeroed(graph, [one for one in patterns if isinstance(one, Zeroed)], rows)
    _check_ranked(graph, patterns, rows)
    there = patterns
    for skip in patterns:
        if isinstance(skip, Skip) and skip.at is None:
            there = tuple(one if one is skip else _beside(graph, one, skip, rows) for one in there)
    return tuple(sorted(there, key=_turn))


def _turn(pattern: Pattern) -> int:
    if isinstance(pattern, Knockout):
        return 0
    if hasattr(pattern, "plan"):
        return 1
    return 2 if isinstance(pattern, Zeroed) else 3


def _beside(graph: Graph, other: Pattern, skip: Skip, rows: tuple[Spans, ...]) -> Pattern:
    """The other pattern, in what a Skip of whole layers (or parts of them) leaves of the model."""
    gone = set(layer_list(skip.layers, graph.n_layers))
    inside = [layer for layer in _inside(graph, other, skip.part, rows) if layer in gone]
    if not inside:
        return other
    what = "" if skip.part == "layer" else f"the {skip.part} of "
    if not isinstance(other, Knockout):
        raise MMFlowError(
            f"{skip} leaves {what}layer(s) {inside[:5]} out, and {other} acts on what is computed inside. Give them"
            " different layers."
        )
    rest = [layer for layer in layer_list(other.layers, graph.n_layers) if layer not in gone]
    if not rest:
        raise NoEffectError(f"{other} would change nothing: {skip} leaves {what}all of its layers out.")
    return replace(other, layers=rest)


def _inside(graph: Graph, pattern: Pattern, part: str, rows: tuple[Spans, ...]) -> list[int]:
    """The layers in whose part ("layer", "attn" or "mlp") a pattern changes or reads what is computed."""
    parts: tuple[str, ...] = ()
    if hasattr(pattern, "plan"):
        return _read_layers(graph, pattern, rows) if part in ("layer", "attn") else []
    if isinstance(pattern, Knockout | Zeroed):
        parts = ("layer", "attn")
    elif isinstance(pattern, Patch):
        # what a part adds can be written where it is left out; the heads' results are not there
        parts = () if pattern.site in ("resid", "embed") else ("layer",) if pattern.heads is None else ("layer", "attn")
    elif isinstance(pattern, Skip):
        parts = ("layer", pattern.part) if pattern.at is None else ("layer",)
    return layer_list(getattr(pattern, "layers", ()), graph.n_layers) if part in parts else []


def _read_layers(graph: Graph, pattern: Pattern, rows: tuple[Spans, ...]) -> list[int]:
    """The layers whose attention a pruning method reads."""
    stages = [stage for spans in rows for stage in pattern.plan(graph, spans)]  # type: ignore[attr-defined]
    return sorted({stage.layer - (stage.reads == "previous") for stage in stages if stage.reads})


def _check_zeroed(graph: Graph, zeroed: list[Zeroed], rows: tuple[Spans, ...]) -> None:
    """Refuses weights that two patterns take away: each takes away what they were."""
    for one, other in combinations(zeroed, 2):
        layers = set(layer_list(one.layers, graph.n_layers)) & set(layer_list(other.layers, graph.n_layers))
        shared = [
            [set(span) & set(same) for span, same in zip(resolve(a, rows, what), resolve(b, rows, what), strict=True)]
            for what, a, b in (("target", one.target, other.target), ("source", one.source, other.source))
        ]
        if layers and any(targets and sources for targets, sources in zip(*shared, strict=True)):
            raise MMFlowError(
                f"{one} and {other} name the same weights in layer(s) {sorted(layers)[:5]}, which would be taken away"
                ' twice. Write one pattern, its spans joined with "|", or spans that share nothing ("question - last").'
            )


def _check_ranked(graph: Graph, patterns: tuple[Pattern, ...], rows: tuple[Spans, ...]) -> None:
    """Refuses edges closed in some heads of a layer by whose attention image tokens are ranked: all are read as one."""
    read = {layer: one for one in patterns if hasattr(one, "plan") for layer in _read_layers(graph, one, rows)}
    for pattern in patterns:
        if isinstance(pattern, Knockout) and pattern.heads is not None:
            both = [layer for layer in layer_list(pattern.layers, graph.n_layers) if layer in read]
            if both:
                raise MMFlowError(
                    f"{read[both[0]]} ranks image tokens by the attention of layer {both[0]}, in which {pattern} closes"
                    " edges in some heads: a ranking reads one mask for all heads. Leave heads out, or that layer."
                )
