"""Knockout: some positions may not read some others, in chosen layers and heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow.model.pattern import CLOSES
from nnsight_mmflow.patterns.edge_scores import EdgeScores
from nnsight_mmflow.spans.edges import check_edge

if TYPE_CHECKING:
    from nnsight_mmflow.spans.span import Span


@dataclass(frozen=True, kw_only=True)
class Knockout(EdgeScores):
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

    def check_edges(self, what: str, source: Span, target: Span, blocks: tuple[tuple[int, int], ...]) -> None:
        """Some must be open, and every target keep a key."""
        check_edge(what, source, target, blocks)
