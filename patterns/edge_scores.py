"""What Knockout and Bias share: a number added to the scores of attention edges, in the masks of layers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._errors import MMFlowError, ModelError, NoEffectError
from nnsight_mmflow.inside.edges import PromptEdges, change_edges, edges_in
from nnsight_mmflow.inside.forwards import Held
from nnsight_mmflow.inside.layer_inputs import LayerInputs
from nnsight_mmflow.model.edits import MaskEdges, MaskEdit, adding, row_length
from nnsight_mmflow.model.pattern import Pattern, check_computed, layer_list
from nnsight_mmflow.model.split import whole_here
from nnsight_mmflow.spans.edges import resolve

if TYPE_CHECKING:
    from typing import Self

    from nnsight_mmflow.inside.passage import Passage
    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Batch, Prompt
    from nnsight_mmflow.spans.row_spans import Spans
    from nnsight_mmflow.spans.span import Span

BACKENDS = ("sdpa", "eager")  # those that add a mask of four dimensions; flash attention ignores it
WHEN = ("prefill", "decode", "all")


@dataclass(frozen=True, kw_only=True)
class EdgeScores(Pattern):
    """Adds a number to the attention scores of the edges from source (key) to target (query).

    A pattern on it says by `amount` what is added, by `check_edges` which edges of a prompt it takes, and by `idle` why
    it may have changed nothing.
    """

    shared: ClassVar[bool] = True
    attends: ClassVar[bool] = True
    can_leave: ClassVar[bool] = True
    idle: ClassVar[str] = "every one of its edges was closed already, by padding, a sliding window or another pattern."

    source: str | Span
    target: str | Span
    layers: int | Iterable[int]
    heads: tuple[int, ...] | range | list[int] | None = None
    when: str = "prefill"

    @property
    def amount(self) -> float:
        """What is added to the scores, in nats; -inf closes the edges."""
        return -math.inf

    def check_edges(self, what: str, source: Span, target: Span, blocks: tuple[tuple[int, int], ...]) -> None:
        """Refuses the edges of one prompt where none is open; `what` names the pattern and the row."""
        raise NotImplementedError

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
                f"the model runs {graph.backend!r} attention, which ignores a mask of four dimensions, so a"
                f' {type(self).__name__.lower()} would do nothing. Load it with attn_implementation="sdpa" (or'
                ' "eager").'
            )
        targets, sources = resolve(self.target, rows, "target"), resolve(self.source, rows, "source")
        for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
            what = f"{self}, row {row}" if len(rows) > 1 else str(self)
            self.check_edges(what, source, target, graph.adapter.bidirectional(rows[row]))
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
        passage = LayerInputs(graph, len(rows), row_length(rows))
        held = passage.held_at(layer_list(self.layers, graph.n_layers)[0])
        there = edges_in(held, self._edges(rows), self.when)
        if there is None:
            raise NoEffectError(
                f"{self} would change nothing: this forward holds positions {held.first} to {held.end - 1}, and none of"
                " its targets is among them."
            )
        changed = self._change(graph, passage, held, there)
        self._check_done(1, changed)
        return changed

    def run_each(self, graph: Graph, rows: tuple[Spans, ...], passage: Passage) -> None:
        """Does it inside the edit that `graph.generate` makes, in each forward that holds targets."""
        edges, length = self._edges(rows), row_length(rows)
        done = {"forwards": 0, "edges": 0}

        def act(held: Held) -> bool:
            there = edges_in(held, edges, self.when)
            if there is not None:
                done["edges"] += self._change(graph, passage, held, there)
                done["forwards"] += 1  # behind it: apart from the model, a generation's end is met in waiting
            over = self.when == "prefill" and held.end >= length
            if over and not done["edges"]:
                raise NoEffectError(f"{self} would change nothing: {self.idle}")
            return over and held.cached

        passage.each(act)
        self._check_done(done["forwards"], done["edges"])

    def edits(self, graph: Graph, rows: tuple[Spans, ...], prompt: Prompt | Batch | None) -> list[MaskEdit]:
        """What it does to each layer's mask, for a TransformerLens bridge."""
        if self.when != "prefill" and graph.adapter.sliding_window() is not None:
            raise ModelError(
                f'{self}: on a bridge, when="{self.when}" cannot follow a sliding window, whose cache forgets: use'
                " graph.generate."
            )
        edges, length = self._edges(rows), row_length(rows)

        def there(held: Held) -> list[tuple[list[int], list[int]]] | None:
            return edges_in(held, edges, self.when)

        return [
            adding(layer, there, len(rows), length, self._heads, graph.n_heads, self.amount)
            for layer in layer_list(self.layers, graph.n_layers)
        ]

    def over_answer(self, spans: Spans) -> Self:
        """Its targets go on over an answer behind the prompt."""
        return self.extended("target", spans)

    def mask_edges(self, graph: Graph, rows: tuple[Spans, ...]) -> list[MaskEdges] | None:
        """Its edges in its layers; None where it acts on new tokens."""
        if self.when != "prefill":
            return None
        edges = tuple((tuple(targets), tuple(sources)) for targets, sources, _ in self._edges(rows))
        heads = None if self.heads is None else tuple(self.heads)
        return [MaskEdges(tuple(layer_list(self.layers, graph.n_layers)), edges, self.amount, heads)]

    def _change(self, graph: Graph, passage: Passage, held: Held, there: list[tuple[list[int], list[int]]]) -> int:
        layers = layer_list(self.layers, graph.n_layers)
        return change_edges(passage, held, layers, there, self.amount, self._heads, graph.n_heads)

    def _check_done(self, forwards: int, changed: int) -> None:
        if not forwards:
            raise NoEffectError(
                f"{self} would change nothing: the generation ended before a step came that it acts on."
                " Raise max_new_tokens."
            )
        if not changed:
            told = f" in any of {forwards} forwards" if forwards > 1 else ""
            raise NoEffectError(f"{self} would change nothing{told}: {self.idle}")

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
