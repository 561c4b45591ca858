"""ZeroWeights: attention weights set to zero after the softmax, so that the rest is not scaled up (unlike Knockout)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from nnsight_mmflow._errors import NoEffectError
from nnsight_mmflow.inside.forwards import Held, factor_of, held_whole
from nnsight_mmflow.inside.heads import attention_weights
from nnsight_mmflow.inside.layer_inputs import LayerInputs
from nnsight_mmflow.model.edits import HookEdit, held_by, row_length
from nnsight_mmflow.model.pattern import TAKES, Pattern, check_whole, layer_list
from nnsight_mmflow.spans.edges import check_readable, resolve

if TYPE_CHECKING:
    from typing import Self

    from nnsight import Envoy

    from nnsight_mmflow.inside.passage import Passage
    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Batch, Prompt
    from nnsight_mmflow.spans.row_spans import Spans
    from nnsight_mmflow.spans.span import Span


@dataclass(frozen=True, kw_only=True)
class ZeroWeights(Pattern):
    """Sets the weights from source to target to zero after the softmax; the target's others stay as they are.

    What the sources gave is subtracted from the heads' results, so that the attention implementation stays as it is.

    Attributes:
        source: the span that is not read.
        target: the span that does not read it.
        layers: one layer or several.

    In a generation it acts on the prompt's positions, wherever they are computed.

    Raises:
        NoEffectError: when run, if no source is open to any target.

    Source: Lifting the Veil on Visual Information Flow (arXiv 2503.13108), section 4 (its code closes before the
    softmax).

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> prompt = mmf.nano.prompts(graph, 1)[0]
        >>> with graph.trace(prompt, mmf.ZeroWeights(source="image", target="last", layers=range(3))):
        ...     logits = graph.unembed.output.save()
    """

    order: ClassVar[int] = TAKES
    attends: ClassVar[bool] = True

    source: str | Span
    target: str | Span
    layers: int | Iterable[int]

    def check(self, graph: Graph, rows: tuple[Spans, ...], form: Form | None) -> None:
        """Refuses, before any forward, what cannot be done or would change nothing."""
        layer_list(self.layers, graph.n_layers)
        if form is not None:
            check_whole(str(self), rows, form)
        targets, sources = resolve(self.target, rows, "target"), resolve(self.source, rows, "source")
        for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
            check_readable(f"{self}, row {row}", source, target, graph.adapter.bidirectional(rows[row]))

    def edits(self, graph: Graph, rows: tuple[Spans, ...], prompt: Prompt | Batch | None) -> list[HookEdit]:
        """What it does to each layer's weights on a TransformerLens bridge."""
        edges, length = self._edges(rows), row_length(rows)

        def change(weights: torch.Tensor) -> tuple[torch.Tensor | None, int]:
            held = held_by(weights.transpose(1, 2), len(rows), length)  # (rows, queries, heads, keys)
            if not any(held.local(target) for target, _ in edges):
                return None, 0
            after = weights.clone()
            for row, (target, source) in enumerate(held.by_row(edges)):
                after[row, :, torch.tensor(held.local(target))[:, None], torch.tensor(source)] = 0
            return after, int((after != weights).sum())

        return [
            HookEdit(f"blocks.{layer}.attn.hook_pattern", change) for layer in layer_list(self.layers, graph.n_layers)
        ]

    def over_answer(self, spans: Spans) -> Self:
        """Its targets go on over an answer behind the prompt."""
        return self.extended("target", spans)

    def run(self, graph: Graph, rows: tuple[Spans, ...]) -> int:
        """Does it inside the edit that `graph.trace` makes; returns of how many edges."""
        edges, layers, length = self._edges(rows), self.layer_list(graph), row_length(rows)
        passage = LayerInputs(graph, len(rows), length)
        held = held_whole(passage.layer(layers[0]).hidden().shape, len(rows), length)
        self._told(self._zero(graph, passage, held, edges))
        return len(layers) * sum(len(target) * len(source) for target, source in edges)

    def taken(self, rows: tuple[Spans, ...]) -> list[tuple[set[int], set[int]]]:
        """For each prompt the targets and sources of its weights."""
        return [(set(target), set(source)) for target, source in self._edges(rows)]

    def run_each(self, graph: Graph, rows: tuple[Spans, ...], passage: Passage) -> None:
        """Does it inside the edit that `graph.generate` makes, in each forward that holds the prompt."""
        edges = self._edges(rows)

        def act(held: Held) -> bool:
            if held.first == 0:  # checked: the prompt comes whole
                self._told(self._zero(graph, passage, held, edges))
            return held.past_prompt

        passage.each(act)

    def _edges(self, rows: tuple[Spans, ...]) -> list[tuple[list[int], list[int]]]:
        """For each prompt the target and the source positions."""
        targets, sources = resolve(self.target, rows, "target"), resolve(self.source, rows, "source")
        return [(list(target), list(source)) for target, source in zip(targets, sources, strict=True)]

    def _zero(self, graph: Graph, passage: Passage, held: Held, edges: list[tuple[list[int], list[int]]]) -> float:
        """In a forward that holds the whole prompt; returns the largest share that was taken away, summed."""
        cap, changed = getattr(graph.text_config, "attn_logit_softcapping", None), 0.0
        for number in self.layer_list(graph):
            layer = passage.layer(number, held)
            query, key, value = layer.looks()
            mask = layer.square(query[:, 0]).expand(len(query), -1, -1, -1)
            scale = graph.attention(number)._module.scaling
            changed += subtract(graph.attention_out(number), edges, (query, key, value, mask), scale, cap)
        return changed

    def _told(self, changed: float) -> None:
        if not changed:
            raise NoEffectError(f"{self} would change nothing: these weights are zero already.")


def subtract(
    out: Envoy,
    edges: list[tuple[list[int], list[int]]],
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    scale: float,
    cap: float | None,
) -> float:
    """Inside a trace: takes from the heads' results what targets got from sources; returns the largest part of it.

    Args:
        out: the output projection, whose input holds the heads' results.
        edges: for each prompt its targets and sources.
        parts: query, key, value (rows, heads, positions, width), and the mask (rows, 1 or heads, positions, positions).
        scale: of the scores.
        cap: where the family squeezes its scores, the cap.
    """
    query, key, value, mask = parts
    given, more = out.inputs
    results, changed = given[0].clone(), 0.0
    factor = factor_of(len(results), len(edges))
    for row in range(len(results)):
        target, source = edges[row // factor]
        weights = attention_weights(query[row, :, target], key[row], mask[row, :, target], scale, cap)[:, :, source]
        share = torch.einsum("hqk,hkd->qhd", weights, value[row, :, source].float()).flatten(1)
        changed += float(share.detach().abs().max())
        results[row, target] = results[row, target] - share.to(results)
    out.inputs = ((results, *given[1:]), more)
    return changed
