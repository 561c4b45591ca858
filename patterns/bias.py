"""Bias: some positions read some others more, or less, in chosen layers and heads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow._kinds import number
from nnsight_mmflow.model.pattern import BIASES
from nnsight_mmflow.patterns.edge_scores import EdgeScores
from nnsight_mmflow.spans.edges import check_readable

if TYPE_CHECKING:
    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.spans.row_spans import Spans
    from nnsight_mmflow.spans.span import Span


@dataclass(frozen=True, kw_only=True)
class Bias(EdgeScores):
    """Adds a number to the attention scores from source (key) to target (query): the edge is read more, or less.

    Before the softmax, so that a target's weights still sum to one: with `value=math.log(2)` each source weighs twice
    as much against what is no source. `Knockout` is its limit, a value of minus infinity. Families that squeeze their
    scores (Gemma 2) do so before: the number is added as their mask is, behind the cap. Biases that meet on an edge
    add up; an edge that a Knockout closes stays closed.

    Attributes:
        source: the span that is read more or less, as a name, an expression such as "image - text('x')", or a Span.
        target: the span that reads it.
        layers: one layer or several; negative numbers count from the end.
        value: what is added, in nats: finite, not 0.
        heads: the heads in which; None for all.
        when: in generation, "prefill", "decode" or "all", as for `Knockout`.

    Raises:
        NoEffectError: when run, if no edge was open, if targets read nothing but sources (the softmax does not tell),
            or if value is 0, or rounded to that by the scores' type.
        MMFlowError: when made, if value is no finite number; when run, if it is beyond half of what the scores' type
            holds, or the attention backend takes no mask.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> prompt = mmf.nano.prompts(graph, 1)[0]
        >>> with graph.trace(prompt, mmf.Bias(source="image", target="last", layers=range(4), value=-2.0)):
        ...     logits = graph.unembed.output.save()
    """

    order: ClassVar[int] = BIASES
    idle: ClassVar[str] = (
        "every one of its edges was closed, by padding, a sliding window or another pattern, or its targets read"
        " nothing else."
    )

    value: int | float

    def __post_init__(self) -> None:
        """Refuses a value that is no finite number."""
        from nnsight_mmflow.arguments.checked import check_fields  # here: it need not travel

        check_fields(self)
        if isinstance(self.value, float) and math.isinf(self.value):
            raise MMFlowError(
                f"value={self.value}: a Bias adds a finite number of nats. Knockout closes edges; to have sources alone"
                " read, close the rest."
            )
        object.__setattr__(self, "value", float(number("value", self.value)))

    @property
    def amount(self) -> float:
        """Its value."""
        return float(self.value)

    def check_edges(self, what: str, source: Span, target: Span, blocks: tuple[tuple[int, int], ...]) -> None:
        """Some must be open, and some target read what is no source."""
        ends, sources = check_readable(what, source, target, blocks), set(source)
        if all(sources.issuperset(range(source.row[0], end)) for end in ends.values()):
            raise NoEffectError(
                f"{what} would change nothing: its source holds all that its targets read, and a number added to all"
                " scores is nothing to the softmax. Take what shall be read less out of the source."
            )

    def check(self, graph: Graph, rows: tuple[Spans, ...], form: Form | None) -> None:
        """As a Knockout; and the value must be one that the scores' type can hold and tell from 0."""
        dtype = graph.adapter.model.get_input_embeddings().weight.dtype
        if not float(torch.tensor(self.value, dtype=dtype)):
            raise NoEffectError(f"{self} would change nothing: value={self.value} is 0 in {dtype}.")
        if abs(self.value) >= torch.finfo(dtype).max / 2:
            raise MMFlowError(
                f"{self}: the scores are {dtype}, which holds numbers up to {torch.finfo(dtype).max:.3g}; a Bias may go"
                " to half of that. Take a smaller value; to close edges, use Knockout."
            )
        EdgeScores.check(self, graph, rows, form)
