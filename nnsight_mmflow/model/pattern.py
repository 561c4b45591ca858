"""The base of all patterns. A pattern is a frozen dataclass that names spans and layers; it knows no architecture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._errors import MMFlowError, ModelError
from nnsight_mmflow._kinds import came, layers_of
from nnsight_mmflow._later import later
from nnsight_mmflow.model.intervention import Intervention

if TYPE_CHECKING:
    from typing import Self

    from transformer_lens.model_bridge import TransformerBridge

    from nnsight_mmflow.inside.apart import Layout
    from nnsight_mmflow.model.edits import Edit
    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Batch, Prompt
    from nnsight_mmflow.spans.row_spans import Spans
    from nnsight_mmflow.spans.span import Span


CLOSES, RANKS, TAKES, WRITES = range(4)  # patterns that meet in a layer act in this order
FORWARD = "one forward of a prompt"


class Pattern(Intervention):
    """What every intervention shares. An intervention is a frozen, keyword-only dataclass on it, and a few methods.

    It must write `check` (what is refused before any forward), `run` (one forward of the whole prompt), `run_each` (a
    generation) and `edits` (a TransformerLens bridge). What other patterns and the graph ask of it has an answer here,
    which it changes where it differs.

    Attributes:
        order: when it acts, of those that meet in a layer: CLOSES, RANKS (by attention), TAKES (weights away), WRITES.
        shared: whether it is right on a model that is split over processes (tensor parallel).
        attends: whether it attends by itself in a generation whose blocks run apart from the model's process.
        can_leave: whether it is the same pattern in fewer layers, where another leaves some out of the model.
        when: in a generation, "prefill", "decode" or "all".
        heads: the heads in which it acts; None for all.
    """

    order: ClassVar[int] = WRITES
    shared: ClassVar[bool] = False
    attends: ClassVar[bool] = False
    can_leave: ClassVar[bool] = False
    when: str = "prefill"
    heads: tuple[int, ...] | range | list[int] | None = None
    layers: int | Iterable[int] | None = None

    def __post_init__(self) -> None:
        """Refuses what is no span or layer; keeps layers that come as an iterator, which could be read only once."""
        from nnsight_mmflow.arguments.checked import check_fields  # here: it need not travel

        check_fields(self)

    def check(self, graph: Graph, rows: tuple[Spans, ...], form: Form | None) -> None:
        """Refuses, before any forward, what cannot be done or would change nothing; `form`: of a generation."""
        raise self._lacks("check(graph, rows, form)", "any form")

    def prepared(self, graph: Graph, rows: tuple[Spans, ...]) -> Self:
        """The pattern with all that it needs from other runs at hand; itself if it needs none."""
        return self

    def run(self, graph: Graph, rows: tuple[Spans, ...]) -> int:
        """Does it inside a trace that was checked, one forward of the whole prompt; returns how much it changed.

        Raises:
            NoEffectError: it changed nothing.
        """
        raise self._lacks("run(graph, rows)", FORWARD)

    def run_each(self, graph: Graph, rows: tuple[Spans, ...]) -> None:
        """Does it inside a generation that was checked, in each forward that holds what it acts on."""
        raise self._lacks("run_each(graph, rows)", "a generation")

    def run_apart(self, graph: Graph, rows: tuple[Spans, ...], layout: Layout) -> None:
        """Does it in a generation whose blocks run apart from the model's process, where no layer's input is read."""
        self.run(graph, rows)

    def edits(self, graph: Graph, rows: tuple[Spans, ...], prompt: Prompt | Batch | None) -> Sequence[Edit]:
        """What it does on a TransformerLens bridge."""
        raise ModelError(f"{type(self).__name__} cannot act on a TransformerLens bridge: use graph.trace.")

    def check_written(self, form: Form | None) -> None:
        """Refuses, before any forward, a form for which the pattern has written no method.

        Raises:
            ModelError: the pattern has no method for this form.
        """
        kind = type(self)
        if form is None and kind.run is Pattern.run:
            raise self._lacks("run(graph, rows)", FORWARD)
        if form is not None and kind.run_each is Pattern.run_each:
            raise self._lacks("run_each(graph, rows)", "a generation")

    def _lacks(self, method: str, where: str) -> ModelError:
        return ModelError(f"{type(self).__name__} cannot act in {where}: its class writes no {method}.")

    def apply(self, graph: Graph, spans: Spans | tuple[Spans, ...]) -> int:
        """Does it inside a trace that the user has opened, and returns how much it changed.

        Layers are met in order, so two patterns on the same layers cannot be applied one after the other in one trace:
        hand both to graph.trace, which runs them side by side.

        Args:
            graph: the graph whose model the trace runs.
            spans: `prompt.spans`, or `batch.spans`.
        """
        rows = rows_of(graph, spans)
        self.check(graph, rows, None)
        return self.run(graph, rows)

    def hooks(self, bridge: TransformerBridge, spans: Spans | tuple[Spans, ...]) -> list[tuple]:
        """The same as `fwd_hooks` for a TransformerLens bridge: `bridge.run_with_hooks(ids, fwd_hooks=...)`.

        See `graph.hooks` for more than one forward, and for families whose attention TransformerLens does not compute.
        """
        return later("hooks_of")(self, bridge, spans)

    def layer_list(self, graph: Graph) -> list[int]:
        """The layers that it names, as sorted numbers from 0; none if it names none."""
        return [] if self.layers is None else layer_list(self.layers, graph.n_layers)

    def inside(self, graph: Graph, rows: tuple[Spans, ...], part: str) -> list[int]:
        """The layers in whose part ("layer", "attn" or "mlp") it changes or reads what is computed."""
        return self.layer_list(graph) if part in ("layer", "attn") else []

    def left_out(self, graph: Graph) -> tuple[str, list[int]] | None:
        """Which part of which layers it leaves out of the model, for every position; None for none."""
        return None

    def reads(self, graph: Graph, rows: tuple[Spans, ...]) -> list[int]:
        """The layers by whose attention it decides something."""
        return []

    def leaves_from(self, graph: Graph, rows: tuple[Spans, ...]) -> int | None:
        """The first layer from which on tokens are gone, or closed for all that follow; None where there is none."""
        return None

    def drops_from(self, graph: Graph, rows: tuple[Spans, ...]) -> int | None:
        """The first layer without some of the tokens; None where the sequence stays as it is."""
        return None

    def taken(self, rows: tuple[Spans, ...]) -> list[tuple[set[int], set[int]]]:
        """For each prompt the (targets, sources) whose weights it takes away after the softmax; [] for none."""
        return []

    def _repr_html_(self) -> str:
        return later("pattern_html")(self)


def rows_of(graph: object, spans: Spans | tuple[Spans, ...]) -> tuple[Spans, ...]:
    """The spans of each row, as `apply` is given them: `prompt.spans`, or `batch.spans`.

    Raises:
        MMFlowError: something else came, or no graph.
    """
    rows = spans if isinstance(spans, tuple) else (spans,)
    if not hasattr(graph, "n_layers") or not rows or not all(hasattr(row, "having") for row in rows):
        raise MMFlowError(
            f"apply(graph, prompt.spans) or apply(graph, batch.spans), but {came(graph)}, {came(spans)} came."
        )
    return rows


def layer_list(layers: int | Iterable[int], n_layers: int) -> list[int]:
    """The layers as sorted numbers from 0; negative ones count from the end.

    Raises:
        MMFlowError: no layer, or one that the model does not have.
    """
    layers = layers_of("layers", layers)
    asked = [layers] if isinstance(layers, int) else list(layers)
    if not asked:
        raise MMFlowError(f"layers={layers!r} names no layer; there are {n_layers}, counted from 0.")
    wrong = [layer for layer in asked if not -n_layers <= layer < n_layers]
    if wrong:
        raise MMFlowError(f"layers {wrong} do not exist; there are {n_layers}, counted from 0.")
    return sorted({layer % n_layers for layer in asked})


def check_computed(what: str, span: Span, form: Form) -> None:
    """Refuses positions that a generation does not compute: a cache given by the user holds them already.

    Raises:
        MMFlowError: there are such.
    """
    there = [position for position in span if position < form.past]
    if there:
        raise MMFlowError(
            f"{what} acts at position(s) {there[:5]}, but past_key_values holds the first {form.past} positions"
            " already, computed without it. Leave past_key_values out, or fill it in a run with the pattern."
        )


def check_whole(what: str, rows: tuple[Spans, ...], form: Form) -> None:
    """Refuses a generation in which no forward holds the whole prompt.

    Raises:
        MMFlowError: a cache holds some of it already, or it comes in parts.
    """
    if form.parts(rows[0]["all"].row[1]):
        came = f"past_key_values with {form.past} positions" if form.past else f"prefill_chunk_size={form.chunk}"
        raise MMFlowError(
            f"{what} needs the whole prompt in one forward, but {came} came: leave it out"
            f"{' (or set prefill_chunk_size=None)' if form.chunk else ''}."
        )
