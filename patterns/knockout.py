"""Knockout: some positions may not read some others, in chosen layers and heads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._errors import MMFlowError, ModelError, NoEffectError
from nnsight_mmflow.inside.closed_edges import PromptEdges, close_edges, close_edges_apart, edges_in
from nnsight_mmflow.inside.forwards import Held, each_forward, factor_of
from nnsight_mmflow.inside.masks import kept_keys
from nnsight_mmflow.inside.names import cache_in
from nnsight_mmflow.model.edits import MaskEdges, MaskEdit, closing, row_length
from nnsight_mmflow.model.pattern import CLOSES, Pattern, check_computed, layer_list
from nnsight_mmflow.model.split import whole_here
from nnsight_mmflow.spans.edges import check_edge, resolve

if TYPE_CHECKING:
    from nnsight_mmflow.inside.apart import Layout
    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Batch, Prompt
    from nnsight_mmflow.spans.row_spans import Spans
    from nnsight_mmflow.spans.span import Span

BACKENDS = ("sdpa", "eager")  # those that add a mask of four dimensions; flash attention ignores it
WHEN = ("prefill", "decode", "all")
CLOSED_ALREADY = "every one of its edges was closed already, by padding, a sliding window or another pattern."


@dataclass(frozen=True, kw_only=True)
class Knockout(Pattern):
    """Closes the attention edges from source (key) to target (query).

    The remaining weights of a target renormalise, as if the sources were not there. `source == target == "last"`
    closes the diagonal.

    Attributes:
        source: the span that may not be read, as a name, an expression such as "image - text('x')", or a Span.
        target: the span that may not read it.
        layers: one layer or several; negative numbers count from the end.
        heads: the heads in which; None for all.
        when: in generation, "prefill" (the prompt's forward alone), "decode" (the steps after it) or "all". In a
            decode step the queries are new tokens; they count as targets if `target` holds the last position of the
            prompt. Sources stay the prompt's positions. With no cache, new tokens are computed anew in each step, as
            targets each time.

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

    order: ClassVar[int] = CLOSES
    shared: ClassVar[bool] = True
    attends: ClassVar[bool] = True
    can_leave: ClassVar[bool] = True

    source: str | Span
    target: str | Span
    layers: int | Iterable[int]
    heads: tuple[int, ...] | range | list[int] | None = None
    when: str = "prefill"

    def check(self, graph: Graph, rows: tuple[Spans, ...], form: Form | None) -> None:
        """Refuses, before any forward, what cannot be done or would change nothing."""
        layer_list(self.layers, graph.n_layers)
        if self.when not in WHEN:
            raise MMFlowError(f"when must be one of {', '.join(WHEN)}, not {self.when!r}.")
        if self.when != "prefill" and form is None:
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
            if form is not None and self.when != "decode":
                check_computed(what, target, form)

    def run(self, graph: Graph, rows: tuple[Spans, ...]) -> int:
        """Does it inside the edit that `graph.trace` makes; in a trace of the user's, on what its forward holds."""
        return self._close_here(graph, rows)

    def run_each(self, graph: Graph, rows: tuple[Spans, ...]) -> None:
        """Does it inside the edit that `graph.generate` makes, in each forward that holds targets."""
        edges, length = self._edges(rows), rows[0]["all"].row[1]
        layers, heads = layer_list(self.layers, graph.n_layers), self._heads
        done = {"forwards": 0, "edges": 0}

        def act(held: Held) -> bool:
            there = edges_in(held, edges, self.when)
            if there is not None:
                done["forwards"] += 1
                done["edges"] += close_edges(graph.layers, layers, there, heads, graph.n_heads, graph.causal)
            over = self.when == "prefill" and held.end >= length
            if over and not done["edges"]:
                raise NoEffectError(f"{self} would change nothing: {CLOSED_ALREADY}")
            return over and held.cached

        each_forward(graph.decoder, len(rows), length, act)
        self._check_done(done["forwards"], done["edges"])

    def run_apart(self, graph: Graph, rows: tuple[Spans, ...], layout: Layout) -> None:
        """Does it in a generation whose blocks run apart from the model's process.

        What a forward holds cannot be read there (with it goes the cache), but the settings were checked: the first
        holds the whole prompt, and each later one a new token.
        """
        from nnsight.intervention.interleaver import OutOfOrderError
        from nnsight.intervention.iterator import Iterations

        edges, layers = self._edges(rows), layer_list(self.layers, graph.n_layers)
        attentions = {layer: graph.attention(layer) for layer in layers}
        done = changed = 0
        start, stop = (1 if self.when == "decode" else 0), (1 if self.when == "prefill" else None)
        try:
            for step in Iterations()[start:stop]:
                count = 1 if step else layout.length
                held = Held(layout.length - 1 + step if step else 0, count, layout.length, layout.factor, True)
                there = edges_in(held, edges, self.when)
                assert there is not None  # checked: a target stands for every step
                changed += close_edges_apart(attentions, there, self._heads, graph.n_heads, layout, step)
                done += 1
        except OutOfOrderError:  # the generation has ended
            pass
        self._check_done(done, changed)

    def edits(self, graph: Graph, rows: tuple[Spans, ...], prompt: Prompt | Batch | None) -> list[MaskEdit]:
        """What it does to each layer's mask, for a TransformerLens bridge."""
        if self.when != "prefill" and graph.adapter.sliding_window() is not None:
            raise ModelError(
                f'{self}: on a bridge, when="{self.when}" cannot follow a sliding window, whose cache forgets: use'
                " graph.generate."
            )
        edges, length = self._edges(rows), row_length(rows)
        return [
            closing(layer, lambda held: edges_in(held, edges, self.when), len(rows), length, self._heads, graph.n_heads)
            for layer in layer_list(self.layers, graph.n_layers)
        ]

    def mask_edges(self, graph: Graph, rows: tuple[Spans, ...]) -> list[MaskEdges] | None:
        """Its edges, closed, in its layers; None where it acts on new tokens."""
        if self.when != "prefill":
            return None
        edges = tuple((tuple(targets), tuple(sources)) for targets, sources, _ in self._edges(rows))
        heads = None if self.heads is None else tuple(self.heads)
        return [MaskEdges(tuple(layer_list(self.layers, graph.n_layers)), edges, heads=heads)]

    def _close_here(self, graph: Graph, rows: tuple[Spans, ...]) -> int:
        """In the forward that runs now, whatever it holds."""
        layers, length = layer_list(self.layers, graph.n_layers), rows[0]["all"].row[1]
        arguments, named = graph.layers[layers[0]].inputs
        count, cache = arguments[0].shape, cache_in(named)
        held = Held(sum(kept_keys(cache, layers[0])), count[1], length, factor_of(count[0], len(rows)))
        there = edges_in(held, self._edges(rows), self.when)
        if there is None:
            raise NoEffectError(
                f"{self} would change nothing: this forward holds positions {held.first} to {held.end - 1}, and none of"
                " its targets is among them."
            )
        changed = close_edges(graph.layers, layers, there, self._heads, graph.n_heads, graph.causal)
        self._check_done(1, changed)
        return changed

    def _check_done(self, forwards: int, changed: int) -> None:
        if not forwards:
            raise NoEffectError(
                f"{self} would change nothing: the generation ended before a step came that it acts on."
                " Raise max_new_tokens."
            )
        if not changed:
            told = f" in any of {forwards} forwards" if forwards > 1 else ""
            raise NoEffectError(f"{self} would change nothing{told}: {CLOSED_ALREADY}")

    @property
    def _heads(self) -> list[int] | None:
        return None if self.heads is None else list(self.heads)

    def _edges(self, rows: tuple[Spans, ...]) -> list[PromptEdges]:
        """For each prompt, the target and the source positions, and whether new tokens are targets too."""
        targets, sources = resolve(self.target, rows, "target"), resolve(self.source, rows, "source")
        return [
            (list(target), list(source), target.row[1] - 1 in target)
            for target, source in zip(targets, sources, strict=True)
        ]
