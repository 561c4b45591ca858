"""Zeroed: attention weights set to zero after the softmax, so that the rest is not scaled up (unlike Knockout)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._edits import HookEdit
from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow._masks import layer_mask
from nnsight_mmflow._pattern import check_readable, layer_list, resolve
from nnsight_mmflow._qk import QueryKeyReader, attention_weights

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from nnsight_mmflow._graph import Graph
    from nnsight_mmflow._prompt import Batch, Prompt
    from nnsight_mmflow._row_spans import Spans
    from nnsight_mmflow._spans import Span


@dataclass(frozen=True, kw_only=True)
class Zeroed:
    """Sets the weights from source to target to zero after the softmax; the target's others stay as they are.

    What the sources gave is subtracted from the heads' results, so that the attention implementation stays as it is.

    Attributes:
        source: the span that is not read.
        target: the span that does not read it.
        layers: one layer or several.

    Raises:
        NoEffectError: when run, if no source is open to any target.

    Source: Lifting the Veil on Visual Information Flow (arXiv 2503.13108), section 4 (its code closes before the
    softmax).

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> prompt = mmf.nano.prompts(graph, 1)[0]
        >>> with graph.trace(prompt, mmf.Zeroed(source="image", target="last", layers=range(3))):
        ...     logits = graph.unembed.output.save()
    """

    source: str | Span
    target: str | Span
    layers: int | Iterable[int]

    def __post_init__(self) -> None:
        """Refuses what is no span or layer; keeps layers that come as an iterator, which could be read only once."""
        from nnsight_mmflow._arguments import check_fields  # here: it need not travel

        check_fields(self)

    def _repr_html_(self) -> str:
        from nnsight_mmflow._shown_patterns import pattern_html

        return pattern_html(self)

    def check(self, graph: Graph, rows: tuple[Spans, ...], steps: bool) -> None:
        """Refuses, before any forward, what cannot be done or would change nothing."""
        layer_list(self.layers, graph.n_layers)
        if steps:
            raise MMFlowError("Zeroed acts in one forward: use graph.trace, or Knockout in a generation.")
        targets, sources = resolve(self.target, rows, "target"), resolve(self.source, rows, "source")
        for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
            check_readable(f"{self}, row {row}", source, target, graph.adapter.bidirectional(rows[row]))

    def prepared(self, graph: Graph, rows: tuple[Spans, ...]) -> Zeroed:
        """Itself: it needs nothing from other runs."""
        return self

    def hooks(self, bridge: TransformerBridge, spans: Spans | tuple[Spans, ...]) -> list[tuple]:
        """The same as `fwd_hooks` for a TransformerLens bridge: `bridge.run_with_hooks(ids, fwd_hooks=...)`."""
        from nnsight_mmflow._bridge_hooks import hooks_of

        return hooks_of(self, bridge, spans)

    def edits(self, graph: Graph, rows: tuple[Spans, ...], prompt: Prompt | Batch | None) -> list[HookEdit]:
        """What it does to each layer's weights on a TransformerLens bridge."""
        targets, sources = resolve(self.target, rows, "target"), resolve(self.source, rows, "source")
        edges = [(list(target), list(source)) for target, source in zip(targets, sources, strict=True)]

        def change(weights: torch.Tensor) -> tuple[torch.Tensor, int]:
            after = weights.clone()
            for row, (target, source) in enumerate(edges):
                after[row, :, torch.tensor(target)[:, None], torch.tensor(source)] = 0
            return after, int((after != weights).sum())

        return [
            HookEdit(f"blocks.{layer}.attn.hook_pattern", change) for layer in layer_list(self.layers, graph.n_layers)
        ]

    def run(self, graph: Graph, rows: tuple[Spans, ...]) -> None:
        """Does it inside the edit that `graph.trace` makes."""
        targets, sources = resolve(self.target, rows, "target"), resolve(self.source, rows, "source")
        edges = [(list(target), list(source)) for target, source in zip(targets, sources, strict=True)]
        cap = getattr(graph.text_config, "attn_logit_softcapping", None)
        reader, changed = QueryKeyReader(graph), 0.0
        for layer in layer_list(self.layers, graph.n_layers):
            arguments, named = graph.layers[layer].inputs
            hidden = arguments[0]
            query, key = reader.read(layer, "previous", hidden, named["position_embeddings"])
            value = reader.value(layer)
            mask = layer_mask(named.get("attention_mask"), hidden, 0, graph.causal).expand(len(edges), -1, -1, -1)
            scale = graph.attention(layer)._module.scaling
            out = graph.attention_out(layer)
            given, more = out.inputs
            results = given[0].clone()
            for row, (target, source) in enumerate(edges):
                weights = attention_weights(query[row, :, target], key[row], mask[row, 0, target], scale, cap)[
                    :, :, source
                ]
                share = torch.einsum("hqk,hkd->qhd", weights, value[row, :, source].float()).flatten(1)
                changed += float(share.detach().abs().max())
                results[row, target] = results[row, target] - share.to(results)
            out.inputs = ((results, *given[1:]), more)
        if not changed:
            raise NoEffectError(f"{self} would change nothing: these weights are zero already.")
