"""The base of all patterns. A pattern is a frozen dataclass that names spans and layers; it knows no architecture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._errors import ModelError
from nnsight_mmflow._later import later
from nnsight_mmflow.inside.changes import change_each, change_here
from nnsight_mmflow.inside.own_functions import changed_by, layer_argument
from nnsight_mmflow.model.changing import change_edits, check_change, check_together_there, take_site
from nnsight_mmflow.model.intervention import Intervention
from nnsight_mmflow.model.named import check_computed as check_computed
from nnsight_mmflow.model.named import check_whole as check_whole
from nnsight_mmflow.model.named import layer_list as layer_list
from nnsight_mmflow.model.named import rows_of as rows_of
from nnsight_mmflow.spans.edges import through_answer

if TYPE_CHECKING:
    from typing import Self

    import torch
    from jaxtyping import Float
    from transformer_lens.model_bridge import TransformerBridge

    from nnsight_mmflow.inside.passage import Passage
    from nnsight_mmflow.inside.places import Place
    from nnsight_mmflow.inside.roles import Roles
    from nnsight_mmflow.model.edits import Edit, MaskEdges
    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Batch, Prompt
    from nnsight_mmflow.spans.row_spans import Spans
    from nnsight_mmflow.spans.span import Span


CLOSES, BIASES, RANKS, TAKES, WRITES = range(5)  # patterns that meet in a layer act in this order
FORWARD = "one forward of a prompt"


class Pattern(Intervention):
    """What every intervention shares. An intervention is a frozen, keyword-only dataclass on it, and a method or a few.

    One that changes activations has the fields `at`, `layers` and `site` and writes one method, `change`: traces,
    batches, generations, servers and TransformerLens bridges come with it. Another writes `check` (what is refused
    before any forward), `run` (one forward of the whole prompt), `run_each` (a generation) and `edits` (a bridge). What
    other patterns and the graph ask of it has an answer here, which it changes where it differs.

    Attributes:
        order: when it acts, of those that meet in a layer: CLOSES, BIASES, RANKS (by attention), TAKES (weights away),
            WRITES.
        shared: whether it is right on a model that is split over processes (tensor parallel).
        attends: whether it attends by itself in a generation whose blocks run apart from the model's process.
        can_leave: whether it is the same pattern in fewer layers, where another leaves some out of the model.
        by_position: whether `change` does at a position what it would do there without the others, so that a prompt may
            come in parts.
        unchanged: what is said of a `change` that changes nothing.
        when: in a generation, "prefill", "decode" or "all".
        heads: the heads in which it acts; None for all.
        at: the span, as a name, an expression or a Span.
        site: of `change`: "resid" (the residual stream after a layer), "attn" or "mlp" (what they add to it) or "embed"
            (the merged embedding).

    Example:
        >>> import nnsight_mmflow as mmf
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Halved(mmf.Pattern):
        ...     at: str
        ...     layers: range
        ...     def change(self, values, layer):  # (positions, width) of one row
        ...         return values / 2
        >>> graph = mmf.load("nano")
        >>> with graph.trace(mmf.nano.prompts(graph, 1)[0], Halved(at="image", layers=range(2, 5))):
        ...     logits = graph.unembed.output.save()
    """

    order: ClassVar[int] = WRITES
    shared: ClassVar[bool] = False
    attends: ClassVar[bool] = False
    can_leave: ClassVar[bool] = False
    by_position: ClassVar[bool] = False
    unchanged: ClassVar[str] = "its `change` gives back the numbers that it is given, in every one of its layers."
    when: str = "prefill"
    heads: tuple[int, ...] | range | list[int] | None = None
    layers: int | Iterable[int] | None = None
    at: str | Span | None  # no default, which fields of that name would inherit
    site: str = "resid"

    def __init__(self, **fields: object) -> None:
        """Refuses a class that is no dataclass: those write an `__init__` of their own."""
        raise ModelError(
            f"{type(self).__name__} is no dataclass, so it has no fields: write @dataclass(frozen=True, kw_only=True)"
            " above its class."
        )

    def __post_init__(self) -> None:
        """Refuses what is no span or layer; keeps layers that come as an iterator, which could be read only once."""
        from nnsight_mmflow.arguments.checked import check_fields  # here: it need not travel

        self.check_class()
        check_fields(self)
        if self.changes:
            take_site(self)

    def check_class(self) -> None:
        """Refuses a class that does nothing, or whose `change` cannot be called.

        Raises:
            ModelError: it writes no method that acts.
            MMFlowError: its `change` takes something else than values and a layer.
        """
        kind = type(self)
        acts = (kind.run, kind.run_each, kind.edits)
        if not self.changes and acts == (Pattern.run, Pattern.run_each, Pattern.edits):
            raise ModelError(
                f"{kind.__name__} does nothing: write `def change(self, values, layer): return ...`, from the values"
                " (positions, width) of one row at its span to as many (beside the fields at, layers and site); or"
                " check, run, run_each and edits."
            )
        if self.changes and not hasattr(self, "at"):
            raise ModelError(f"{kind.__name__} says not where it acts: its class needs a field `at: str`, a span.")
        if kind.change is not Pattern.change:
            layer_argument(f"{kind.__name__}.change", self.change)

    @property
    def changes(self) -> bool:
        """Whether it changes activations at a span, by a `change` of its own."""
        return (type(self).change, type(self).change_at) != (Pattern.change, Pattern.change_at)

    def change(
        self, values: Float[torch.Tensor, "positions width"], layer: int
    ) -> Float[torch.Tensor, "positions width"]:
        """Inside a trace: what shall stand where `values` stand; what it gives is cast to their type.

        Args:
            values: (positions, width): one row's activations at the span, in one layer. In a step of a generation each
                new token comes by itself, (1, width). With `heads`, those heads' results, one after another.
            layer: its number, from 0; 0 for the embedding.
        """
        raise self._lacks("change(values, layer)", "any form")

    def change_at(
        self, values: Float[torch.Tensor, "positions width"], place: Place
    ) -> Float[torch.Tensor, "positions width"]:
        """The same where it must be known whose values they are: by `change`, unless the class says otherwise."""
        some = values if place.columns is None else values[:, place.columns]
        made = changed_by(self.change, some, place.layer, place.prompt, str(self))
        if place.columns is None:
            return made
        whole = values.clone()
        whole[:, place.columns] = made
        return whole

    def check(self, graph: Graph, rows: tuple[Spans, ...], form: Form | None) -> None:
        """Refuses, before any forward, what cannot be done or would change nothing; `form`: of a generation."""
        if not self.changes:
            raise self._lacks("check(graph, rows, form)", "any form")
        spans = check_change(graph, self, rows, form)
        if form is not None and self.when != "decode":
            for span in spans:
                check_computed(str(self), span, form)
            if not self.by_position:
                check_together_there(self, spans, form)

    def prepared(self, graph: Graph, rows: tuple[Spans, ...]) -> Self:
        """The pattern with all that it needs from other runs at hand; itself if it needs none."""
        return self

    def run(self, graph: Graph, rows: tuple[Spans, ...]) -> int:
        """Does it inside a trace that was checked, one forward of the whole prompt; returns how much it changed.

        Raises:
            NoEffectError: it changed nothing.
        """
        if not self.changes:
            raise self._lacks("run(graph, rows)", FORWARD)
        return change_here(self, graph, rows)

    def run_each(self, graph: Graph, rows: tuple[Spans, ...], passage: Passage) -> None:
        """Does it inside a generation that was checked, in each forward that holds what it acts on.

        Args:
            graph: the model.
            rows: the spans of each row.
            passage: gives the forwards (`passage.each`) and their layers, wherever the blocks run.
        """
        if not self.changes:
            raise self._lacks("run_each(graph, rows, passage)", "a generation")
        change_each(self, graph, rows, passage)

    def edits(self, graph: Graph, rows: tuple[Spans, ...], prompt: Prompt | Batch | None) -> Sequence[Edit]:
        """What it does on a TransformerLens bridge."""
        if not self.changes:
            raise ModelError(f"{type(self).__name__} cannot act on a TransformerLens bridge: use graph.trace.")
        return change_edits(graph, self, rows)

    def over_answer(self, spans: Spans) -> Self:
        """The pattern while an answer stands behind the prompt (`spans["answer"]`), as in a generation with when="all".

        If it acts at the prompt's last position, it goes on over the answer's tokens; else it stays as it is.
        """
        return self.extended("at", spans) if self.changes else self

    def extended(self, name: str, spans: Spans) -> Self:
        """The pattern with the answer's tokens in one of its spans, if that holds the prompt's last position."""
        named = getattr(self, name)
        if named is None or len(spans.tokens) == spans["all"].row[1]:
            return self
        span = spans[named] if isinstance(named, str) else named
        longer = through_answer(spans, span)
        return self if longer is span else replace(self, **{name: longer})  # type: ignore[type-var]

    def mask_edges(self, graph: Graph, rows: tuple[Spans, ...]) -> Sequence[MaskEdges] | None:
        """All that it does to one forward of the prompt, where that is numbers added to the scores of edges; else None.

        Nothing is run: what can be said so can be measured by rows, many patterns in one forward.
        """
        return None

    def check_written(self, form: Form | None) -> None:
        """Refuses, before any forward, a form for which the pattern has written no method.

        Raises:
            ModelError: the pattern has no method for this form.
        """
        kind = type(self)
        if self.changes:
            return
        if form is None and kind.run is Pattern.run:
            raise self._lacks("run(graph, rows)", FORWARD)
        if form is not None and kind.run_each is Pattern.run_each:
            raise self._lacks("run_each(graph, rows, passage)", "a generation")

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

    def layer_list(self, graph: Roles) -> list[int]:
        """The layers that it names, as sorted numbers from 0; none if it names none."""
        return [] if self.layers is None else layer_list(self.layers, graph.n_layers)

    def inside(self, graph: Graph, rows: tuple[Spans, ...], part: str) -> list[int]:
        """The layers in whose part ("layer", "attn" or "mlp") it changes or reads what is computed."""
        if not self.changes:
            return self.layer_list(graph) if part in ("layer", "attn") else []
        # what a part adds can be changed where it is left out; the heads' results are not there
        parts = () if self.site in ("resid", "embed") else ("layer",) if self.heads is None else ("layer", "attn")
        return self.layer_list(graph) if part in parts else []

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
