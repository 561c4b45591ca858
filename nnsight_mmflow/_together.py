"""Several patterns in one trace: each an edit of its own, and those that do not go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError, PromptError
from nnsight_mmflow._pattern import layer_list
from nnsight_mmflow._prompt import Batch, Prompt

if TYPE_CHECKING:
    import torch
    from nnsight import TransformersModel

    from nnsight_mmflow._graph import Graph
    from nnsight_mmflow._pattern import Pattern
    from nnsight_mmflow._row_spans import Spans


def edited(
    graph: Graph, prompt: Prompt | Batch | Mapping[str, torch.Tensor], patterns: tuple[Pattern, ...], steps: bool
) -> TransformersModel:
    """A copy of the nnsight model that replays the patterns; the original stays as it is.

    Raises:
        PromptError: tensors without spans.
        NoEffectError, MMFlowError: a pattern that would change nothing, or cannot be done.
    """
    model = graph.model
    if not patterns:
        return model
    if not isinstance(prompt, Prompt | Batch):
        raise PromptError("patterns need spans: pass what graph.prompt or graph.batch returned, not tensors.")
    rows = prompt.rows()
    if len(patterns) > 1:
        check_together(graph, patterns, rows)
    for pattern in patterns:
        pattern.check(graph, rows, steps)
        if steps:
            check_crossing(graph, pattern)
        pattern = pattern.prepared(graph, rows)
        with model.edit() as (_, changed):
            pattern.run(graph, rows)
        model = changed
    return model


def check_crossing(graph: Graph, pattern: Pattern) -> None:
    """Refuses, in a generation on a server, a pattern that would give layers a copy of their cache.

    NDIF runs ordinary keys' blocks in a process beside the model's: what is read there is a copy, and is written back.
    A layer whose inputs are read so fills a copy of its cache, and later tokens do not see it, without a sign.

    Raises:
        ModelError: it would.
    """
    from nnsight_mmflow._errors import ModelError

    if graph.remote in (False, "local") or graph.trusted or not getattr(pattern, "hands_inputs", False):
        return
    raise ModelError(
        f"{pattern} changes what layers are handed, their cache with it. In a generation on NDIF ordinary keys get a"
        " copy of that cache, and the tokens after the first would be wrong without a sign. Use graph.trace (one"
        " forward is right there), or, with a key that NDIF trusts, graph.at(True, trusted=True)."
    )


def check_together(graph: Graph, patterns: tuple[Pattern, ...], rows: tuple[Spans, ...]) -> None:
    """Refuses patterns that name positions of layers in which another has dropped tokens from the sequence.

    Raises:
        MMFlowError: there are such.
    """
    starts = [_drops_from(graph, pattern, rows) for pattern in patterns]
    for dropping, first in zip(patterns, starts, strict=True):
        for other, start in zip(patterns, starts, strict=True):
            if first is None or other is dropping:
                continue
            layers = getattr(other, "layers", None)
            touched = [] if layers is None else layer_list(layers, graph.n_layers)
            if start is not None or (touched and touched[-1] >= first):
                raise MMFlowError(
                    f"{type(dropping).__name__} drops tokens before layer {first}, so positions mean something else"
                    f" from there on, and {other} acts there too. Take mode='mask' for the first: kept tokens get the"
                    " same results, and every position stays."
                )


def _drops_from(graph: Graph, pattern: Pattern, rows: tuple[Spans, ...]) -> int | None:
    """The first layer without some of the tokens; None where a pattern leaves the sequence as it is."""
    plan = getattr(pattern, "plan", None)
    if plan is None or getattr(pattern, "mode", "") != "drop":
        return None
    return min((stage.layer for spans in rows for stage in plan(graph, spans)), default=None)
