"""Several patterns in one trace: each an edit of its own, in an order of our own, and those that do not go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError, ModelError, PromptError
from nnsight_mmflow.arguments.things import patterns_of
from nnsight_mmflow.inside.layer_inputs import LayerInputs
from nnsight_mmflow.inside.layer_operations import LayerOperations
from nnsight_mmflow.model.layout import layout_of
from nnsight_mmflow.model.order import side_by_side
from nnsight_mmflow.model.split import whole_here
from nnsight_mmflow.prompts.prompt import Batch, Prompt
from nnsight_mmflow.remote.own_modules import register_own

if TYPE_CHECKING:
    import torch
    from nnsight import TransformersModel

    from nnsight_mmflow.inside.passage import Passage
    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.spans.row_spans import Spans


def edited(
    graph: Graph, prompt: Prompt | Batch | Mapping[str, torch.Tensor], patterns: tuple[Pattern, ...], form: Form | None
) -> TransformersModel:
    """A copy of the nnsight model that replays the patterns; the original stays as it is.

    Args:
        graph: the model.
        prompt: what will be run.
        patterns: what is done to it.
        form: of the generation; None for a trace, which is one forward of the whole prompt.

    Raises:
        PromptError: tensors without spans.
        NoEffectError, MMFlowError: a pattern that would change nothing, or cannot be done.
    """
    model = graph.model
    patterns_of(patterns)
    if not patterns:
        return model
    if not isinstance(prompt, Prompt | Batch):
        raise PromptError("patterns need spans: pass what graph.prompt or graph.batch returned, not tensors.")
    rows = prompt.rows()
    if len(patterns) > 1:
        check_together(graph, patterns, rows)
        if form is not None:
            check_counted(graph, patterns, rows)
    if form is not None:
        check_blocks(graph, form, rows)
    passage = None if form is None else passage_of(graph, form, rows)
    for pattern in patterns:
        if not pattern.shared:
            whole_here(graph, str(pattern))
        pattern.check_written(form)
        pattern.check(graph, rows, form)
    patterns = side_by_side(graph, patterns, rows)
    if graph.remote:
        register_own(patterns)
    if passage is not None and passage.apart:
        check_apart(graph, patterns, rows)
    for pattern in patterns:
        pattern = pattern.prepared(graph, rows)
        with model.edit() as (_, changed):
            if passage is None:
                pattern.run(graph, rows)
            else:
                pattern.run_each(graph, rows, passage)
        model = changed
    return model


def passage_of(graph: Graph, form: Form, rows: tuple[Spans, ...]) -> Passage:
    """The way by which patterns reach a generation's forwards."""
    # without a cache there is nothing that a process apart from the model's would be handed a copy of
    if graph.apart and form.cached:
        layout = layout_of(graph, rows, form.factor)
        return LayerOperations(graph, len(rows), layout.length, layout.unmasked, layout)
    return LayerInputs(graph, len(rows), rows[0]["all"].row[1])


def check_apart(graph: Graph, patterns: tuple[Pattern, ...], rows: tuple[Spans, ...]) -> None:
    """Refuses, in a generation whose blocks run apart from the model, patterns that would not see one another.

    Raises:
        ModelError: two of them attend by themselves in one layer, or tokens leave where image features are still added.
    """
    taken: dict[int, Pattern] = {}
    for pattern in patterns:
        if not pattern.attends:
            continue
        first = pattern.leaves_from(graph, rows)
        if first is not None and 0 < first <= graph.enters_after:
            raise ModelError(
                f"{pattern}: {graph.family} adds image features again behind its first {graph.enters_after} layers, so"
                f" in a generation on NDIF tokens can leave before layer {graph.enters_after + 1} or later, not before"
                f" {first}. A key that NDIF trusts has no such limit: graph.at(True, trusted=True)."
            )
        # A method that prunes attends by itself from its first stage on; its own `layers` are the stages alone.
        layers = pattern.layer_list(graph) if first is None else list(range(first, graph.n_layers))
        twice = [layer for layer in layers if layer in taken]
        if twice:
            raise ModelError(
                f"{taken[twice[0]]} and {pattern} both change the attention of layer(s) {twice[:5]}. In a generation on"
                " NDIF each attends by itself there, and one would undo the other: give them different layers, or one"
                " source with '|'. A key that NDIF trusts has no such limit: graph.at(True, trusted=True)."
            )
        taken |= dict.fromkeys(layers, pattern)


def check_blocks(graph: Graph, form: Form, rows: tuple[Spans, ...]) -> None:
    """Refuses a prompt in parts that cut through positions that read one another backwards and forwards.

    Raises:
        ModelError: they do; transformers would not say so, and answer otherwise.
    """
    length = rows[0]["all"].row[1]
    cuts = {form.past, *(range(form.past, length, form.chunk) if form.chunk else ())}
    for spans in rows:
        for first, end in graph.adapter.bidirectional(spans):
            inside = sorted(cut for cut in cuts if first < cut < end)
            if inside:
                came = f"prefill_chunk_size={form.chunk}" if form.chunk else f"past_key_values of {form.past} positions"
                raise ModelError(
                    f"positions {first} to {end - 1} of {graph.family} read one another backwards and forwards, but"
                    f" {came} cuts them at {inside[:3]}, so the first of them could not read the last. Leave it out."
                )


def check_counted(graph: Graph, patterns: tuple[Pattern, ...], rows: tuple[Spans, ...]) -> None:
    """Refuses, in a generation, patterns whose positions are counted by a cache that has lost tokens from layer 0 on.

    Raises:
        MMFlowError: there are such.
    """
    first = next((pattern for pattern in patterns if pattern.drops_from(graph, rows) == 0), None)
    others = [pattern for pattern in patterns if pattern is not first]
    if first is not None and others:
        raise MMFlowError(
            f"{type(first).__name__} drops tokens before layer 0, so in a generation the cache no longer tells which"
            f" positions a step holds, and {others[0]} needs them. Take mode='mask' for the first, or graph.trace."
        )


def check_together(graph: Graph, patterns: tuple[Pattern, ...], rows: tuple[Spans, ...]) -> None:
    """Refuses patterns that name positions of layers in which another has dropped tokens from the sequence.

    Raises:
        MMFlowError: there are such.
    """
    starts = [pattern.drops_from(graph, rows) for pattern in patterns]
    for dropping, first in zip(patterns, starts, strict=True):
        for other, start in zip(patterns, starts, strict=True):
            if first is None or other is dropping:
                continue
            touched, prunes = other.layer_list(graph), other.leaves_from(graph, rows) is not None
            if start is not None or prunes or (touched and touched[-1] >= first):
                raise MMFlowError(
                    f"{type(dropping).__name__} drops tokens before layer {first}, so positions mean something else"
                    f" from there on, and {other} acts there too. Take mode='mask' for the first: kept tokens get the"
                    " same results, and every position stays."
                )
