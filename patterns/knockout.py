"""Knockout: some positions may not read some others, in chosen layers and heads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnsight_mmflow._apart import own_mask, read_attention, write_attention
from nnsight_mmflow._edits import MaskEdit, closing
from nnsight_mmflow._errors import MMFlowError, ModelError, NoEffectError
from nnsight_mmflow._masks import close, kept_keys, layer_mask
from nnsight_mmflow._pattern import check_edge, layer_list, resolve, rows_of
from nnsight_mmflow._split import whole_here

if TYPE_CHECKING:
    import torch
    from nnsight import Envoy
    from transformer_lens.model_bridge import TransformerBridge

    from nnsight_mmflow._apart import Layout
    from nnsight_mmflow._graph import Graph
    from nnsight_mmflow._prompt import Batch, Prompt
    from nnsight_mmflow._row_spans import Spans
    from nnsight_mmflow._spans import Span

BACKENDS = ("sdpa", "eager")  # those that add a mask of four dimensions; flash attention ignores it
WHEN = ("prefill", "decode", "all")
CLOSED_ALREADY = "every one of its edges was closed already, by padding, a sliding window or another pattern."


@dataclass(frozen=True, kw_only=True)
class Knockout:
    """Closes the attention edges from source (key) to target (query).

    The remaining weights of a target renormalise, as if the sources were not there. `source == target == "last"`
    closes the diagonal.

    Attributes:
        source: the span that may not be read, as a name, an expression such as "image - text('x')", or a Span.
        target: the span that may not read it.
        layers: one layer or several; negative numbers count from the end.
        heads: the heads in which; None for all.
        when: in generation, "prefill" (the prompt's forward alone), "decode" (the steps after it) or "all". In a
            decode step the one query is the newest token; it counts as a target if `target` holds the last position
            of the prompt. Sources stay the prompt's positions.

    Raises:
        NoEffectError: when run, if no edge was open (the source lies behind the target, say).
        MMFlowError: when run, if a target would keep no key at all, or the attention backend takes no mask.

    Source: Cross-modal Information Flow in MLLMs (arXiv 2411.18620), section on attention knockout.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> sample = mmf.nano.samples(1)[0]
        >>> prompt = graph.prompt(sample.image, sample.question)
        >>> with graph.trace(prompt, mmf.Knockout(source="image", target="last", layers=range(4))):
        ...     logits = graph.unembed.output.save()
    """

    source: str | Span
    target: str | Span
    layers: int | Iterable[int]
    heads: tuple[int, ...] | range | list[int] | None = None
    when: str = "prefill"

    def __post_init__(self) -> None:
        """Refuses what is no span or layer; keeps layers that come as an iterator, which could be read only once."""
        from nnsight_mmflow._arguments import check_fields  # here: it need not travel

        check_fields(self)

    def _repr_html_(self) -> str:
        from nnsight_mmflow._shown_patterns import pattern_html

        return pattern_html(self)

    def apply(self, graph: Graph, spans: Spans | tuple[Spans, ...]) -> int:
        """Does it inside a trace that the user has opened, and returns how many edges it closed.

        Layers are met in order, so two patterns on the same layers cannot be applied one after the other in one trace:
        hand both to graph.trace, which runs them side by side.

        Args:
            graph: the graph whose model the trace runs.
            spans: `prompt.spans`, or `batch.spans`.
        """
        rows = rows_of(graph, spans)
        self.check(graph, rows, steps=False)
        return self._close_now(graph, rows)

    def check(self, graph: Graph, rows: tuple[Spans, ...], steps: bool) -> None:
        """Refuses, before any forward, what cannot be done or would change nothing."""
        layer_list(self.layers, graph.n_layers)
        if self.when not in WHEN:
            raise MMFlowError(f"when must be one of {', '.join(WHEN)}, not {self.when!r}.")
        if self.when != "prefill" and not steps:
            raise MMFlowError(
                f'when="{self.when}" needs graph.generate(..., {type(self).__name__}(...)): a trace is one forward, the'
                " prefill."
            )
        wrong = [head for head in self.heads or () if not 0 <= head < graph.n_heads]
        if wrong or (self.heads is not None and not len(self.heads)):
            raise MMFlowError(f"heads={self.heads!r}: there are {graph.n_heads} heads, counted from 0.")
        if self.heads is not None:
            whole_here(graph, str(self))
        if graph.backend not in BACKENDS:
            raise MMFlowError(
                f"the model runs {graph.backend!r} attention, which ignores a mask of four dimensions, so a knockout"
                ' would do nothing. Load it with attn_implementation="sdpa" (or "eager").'
            )
        targets, sources = resolve(self.target, rows, "target"), resolve(self.source, rows, "source")
        for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
            what = f"{self}, row {row}" if len(rows) > 1 else str(self)
            check_edge(what, source, target, graph.adapter.bidirectional(rows[row]))
            if self.when != "prefill" and target.row[1] - 1 not in target:
                raise NoEffectError(
                    f'{self} would change nothing after the prefill: with when="{self.when}" the newest token is the'
                    f" target, and stands for the prompt's last position, which {target.name!r} does not hold."
                    ' Use when="prefill", or a target with "| last".'
                )

    def prepared(self, graph: Graph, rows: tuple[Spans, ...]) -> Knockout:
        """Itself: it needs nothing from other runs."""
        return self

    def run(self, graph: Graph, rows: tuple[Spans, ...]) -> None:
        """Does it inside the edit that `graph.trace` or `graph.generate` makes."""
        if self.when == "prefill":
            self._close_now(graph, rows)
        else:
            self._close_each_step(graph, rows)

    def run_apart(self, graph: Graph, rows: tuple[Spans, ...], layout: Layout) -> None:
        """Does it in a generation whose blocks run apart from the model's process."""
        if self.when == "prefill":
            self._close_now(graph, rows, layout)
        else:
            self._close_each_step(graph, rows, layout)

    def hooks(self, bridge: TransformerBridge, spans: Spans | tuple[Spans, ...]) -> list[tuple]:
        """The same as `fwd_hooks` for a TransformerLens bridge: `bridge.run_with_hooks(ids, fwd_hooks=...)`.

        See `graph.hooks` for more than one forward, and for families whose attention TransformerLens does not compute.
        """
        from nnsight_mmflow._bridge_hooks import hooks_of

        return hooks_of(self, bridge, spans)

    def edits(self, graph: Graph, rows: tuple[Spans, ...], prompt: Prompt | Batch | None) -> list[MaskEdit]:
        """What it does to each layer's mask, for a TransformerLens bridge."""
        if self.when != "prefill" and graph.adapter.sliding_window() is not None:
            raise ModelError(
                f'{self}: on a bridge, when="{self.when}" cannot follow a sliding window, whose cache forgets: use'
                " graph.generate."
            )
        edges, ends = self._edges(rows), [spans["all"].row[1] for spans in rows]
        steps = [
            ([0] if end - 1 in targets else [], sources) for end, (targets, sources) in zip(ends, edges, strict=True)
        ]
        first = edges if self.when in ("prefill", "all") else []
        heads = None if self.heads is None else list(self.heads)
        return [
            closing(layer, first, None if self.when == "prefill" else steps, ends[0], heads, graph.n_heads)
            for layer in layer_list(self.layers, graph.n_layers)
        ]

    def _close_now(self, graph: Graph, rows: tuple[Spans, ...], layout: Layout | None = None) -> int:
        changed = self._close(graph, rows, 0, layout)
        if not changed:
            raise NoEffectError(f"{self} would change nothing: {CLOSED_ALREADY}")
        return changed

    def _close_each_step(self, graph: Graph, rows: tuple[Spans, ...], layout: Layout | None = None) -> None:
        """Waits for each step of a generation; when none comes any more, nnsight throws into the wait."""
        from nnsight.intervention.interleaver import OutOfOrderError
        from nnsight.intervention.iterator import Iterations

        done = changed = 0
        try:
            for step in Iterations()[0 if self.when == "all" else 1 :]:
                changed += self._close(graph, rows, step, layout)
                done += 1
        except OutOfOrderError:
            if not done:
                raise NoEffectError(
                    f"{self} would change nothing: the generation ended before a step came that it acts on."
                    " Raise max_new_tokens."
                ) from None
            if not changed:
                raise NoEffectError(f"{self} would change nothing in any of {done} steps: {CLOSED_ALREADY}") from None

    def _edges(self, rows: tuple[Spans, ...]) -> list[tuple[list[int], list[int]]]:
        """For each row, the target and the source positions."""
        targets, sources = resolve(self.target, rows, "target"), resolve(self.source, rows, "source")
        return [(list(target), list(source)) for target, source in zip(targets, sources, strict=True)]

    def _close(self, graph: Graph, rows: tuple[Spans, ...], step: int, layout: Layout | None) -> int:
        edges = self._edges(rows)
        if step:
            ends = [spans["all"].row[1] for spans in rows]
            edges = [
                ([0] if end - 1 in targets else [], sources)
                for end, (targets, sources) in zip(ends, edges, strict=True)
            ]
        heads = None if self.heads is None else list(self.heads)
        layers = layer_list(self.layers, graph.n_layers)
        if layout is not None:
            attentions = {layer: graph.attention(layer) for layer in layers}
            return close_edges_apart(attentions, edges, heads, graph.n_heads, layout, step)
        return close_edges(graph.layers, layers, edges, heads, graph.n_heads, graph.causal)


def close_edges(
    layers: Envoy,
    chosen: list[int],
    edges: list[tuple[list[int], list[int]]],
    heads: list[int] | None,
    n_heads: int,
    causal: bool = True,
) -> int:
    """Inside a trace: closes the edges in the chosen layers, and returns how many open ones it closed.

    Args:
        layers: the decoder layers.
        chosen: which, in ascending order.
        edges: for each row of the batch its target queries and source keys.
        heads: the heads, None for all.
        n_heads: how many there are.
        causal: what a layer does that is handed no mask.
    """
    total = 0
    seen: torch.Tensor | None = None
    built: torch.Tensor | None = None
    for layer in chosen:
        arguments, named = layers[layer].inputs
        hidden, mask = arguments[0], named.get("attention_mask")
        cache = named.get("past_key_values")
        past, dropped = kept_keys(cache, layer)
        # Layers mostly share one mask: then the closed copy is shared too.
        if (
            built is None
            or mask is not seen
            or built.device != hidden.device
            or built.shape[-1] != past + hidden.shape[1]
        ):
            there = [(targets, [key - dropped for key in sources if key >= dropped]) for targets, sources in edges]
            built, changed, starved = close(layer_mask(mask, hidden, past, causal), there, heads, n_heads)
            seen = mask
            check_starved(starved, layer)
        total += changed
        layers[layer].inputs = (arguments, {**named, "attention_mask": built})
    return total


def close_edges_apart(
    attentions: dict[int, Envoy],
    edges: list[tuple[list[int], list[int]]],
    heads: list[int] | None,
    n_heads: int,
    layout: Layout,
    step: int,
) -> int:
    """Inside a generation whose blocks run apart from the model: as `close_edges`, attending by itself.

    Args:
        attentions: of the chosen layers, in ascending order.
        edges: as there.
        heads: as there.
        n_heads: as there.
        layout: what positions may read.
        step: how many tokens came since the prompt, this one included.
    """
    total = 0
    for layer, attention in attentions.items():
        query, key, value = read_attention(attention, layout)
        end, held = layout.length + step, key.shape[-2]
        dropped = end - held  # by a sliding window
        mask = own_mask(layout, layer, range(end - query.shape[2], end), range(dropped, end), query)
        there = [(targets, [key - dropped for key in sources if key >= dropped]) for targets, sources in edges]
        built, changed, starved = close(mask, there, heads, n_heads)
        check_starved(starved, layer)
        total += changed
        write_attention(attention, query, key, value, built, layout)
    return total


def check_starved(starved: int, layer: int) -> None:
    """Refuses a mask in which a position has no key left."""
    if starved:
        raise MMFlowError(
            f"the patterns together leave {starved} position(s) of layer {layer} nothing to read, and softmax needs a"
            " key. Leave the first position out of one source."
        )
