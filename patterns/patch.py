"""Patch: the activations at some positions are replaced, by those of another run, a mean, zeros or noise."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.changes import change_here, site_of
from nnsight_mmflow.model.changing import check_together_there
from nnsight_mmflow.model.pattern import Pattern
from nnsight_mmflow.patterns.through import Through
from nnsight_mmflow.patterns.values import FromRun, MeanOf, Noise, Zeros, resolve_value
from nnsight_mmflow.spans.edges import resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float

    from nnsight_mmflow.inside.places import Place
    from nnsight_mmflow.model.edits import Edit
    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.values import Value
    from nnsight_mmflow.prompts.prompt import Batch, Prompt
    from nnsight_mmflow.spans.row_spans import Spans
    from nnsight_mmflow.spans.span import Span


@dataclass(frozen=True, kw_only=True)
class Patch(Pattern):
    """Writes activations at a span.

    Attributes:
        at: the span that is written, as a name, an expression such as "image.tile[0]", or a Span.
        site: "resid" (the residual stream after a layer), "attn" or "mlp" (what they add to it), or "embed" (the
            merged embedding: what really enters the first layer, image features included); TransformerLens' names are
            taken too: "hook_resid_post", "hook_mlp_out", or with its layer "blocks.3.hook_out".
        layers: one layer or several; "embed" has none.
        value: of `mmf.values`: from_run(prompt), mean_of(prompts), zeros(), noise(scale), or through(encoder, decoder,
            edit) for what an autoencoder finds; or a tensor that broadcasts to (layers, rows, positions, width).
        heads: with site "attn", the heads whose share is written; None for all.
        when: in generation, "prefill" (wherever the prompt's positions are computed), "decode" (each new token, if `at`
            holds the prompt's last position: what is written there is written at each of them) or "all".

    Raises:
        NoEffectError: when run, if what is written stands there already, in every layer.
        MMFlowError: when run, if lengths, rows or shapes do not fit.

    Source: Understanding Information Storage and Transfer in MLLMs (arXiv 2406.04236), section on causal tracing.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> sample = mmf.nano.samples(1)[0]
        >>> prompt = graph.prompt(sample.image, sample.question)
        >>> with graph.trace(prompt, mmf.Patch(at="image", site="mlp", layers=range(3), value=mmf.values.zeros())):
        ...     logits = graph.unembed.output.save()
    """

    by_position: ClassVar[bool] = True  # but for what `check` tells apart
    unchanged: ClassVar[str] = (
        "what it writes stands there already in every one of its layers. Is it the same run, or a site that the change"
        " has not reached?"
    )

    at: str | Span
    value: Value = field(repr=False)
    site: str = "resid"
    layers: int | Iterable[int] | None = None
    heads: tuple[int, ...] | range | list[int] | None = None
    when: str = "prefill"
    ready: list[list[torch.Tensor]] | Zeros | Noise | Through | None = field(default=None, repr=False)

    def check(self, graph: Graph, rows: tuple[Spans, ...], form: Form | None) -> None:
        """Refuses, before any forward, what cannot be done."""
        if not isinstance(self.value, FromRun | MeanOf | Zeros | Noise | Through | torch.Tensor):
            raise MMFlowError(
                f"value={self.value!r} is none of what Patch takes: a tensor, mmf.values.from_run(prompt),"
                " mmf.values.mean_of(prompts), mmf.values.zeros(), mmf.values.noise(scale) or"
                " mmf.values.through(encoder, decoder, edit)."
            )
        Pattern.check(self, graph, rows, form)
        if form is None or self.when == "decode":
            return
        if isinstance(self.value, Noise) and form.parts(rows[0]["all"].row[1]):
            raise MMFlowError(
                f"{self}: noise is scaled by all that stands at the span, so the prompt must come whole: leave"
                " prefill_chunk_size and past_key_values out."
            )
        if isinstance(self.value, Through):
            check_together_there(self, resolve(self.at, rows, "at"), form)

    def prepared(self, graph: Graph, rows: tuple[Spans, ...]) -> Patch:
        """The same with its values at hand: runs what they come from. `graph.trace` and `graph.generate` do this."""
        targets, layers = resolve(self.at, rows, "at"), [0] if self.layers is None else self.layer_list(graph)
        patch = copy(self)  # not replace(), which makes it anew: what looks at fields does not travel
        object.__setattr__(patch, "ready", resolve_value(self.value, graph, targets, site_of(self), layers, self.at))
        return patch

    def over_answer(self, spans: Spans) -> Patch:
        """Itself: it writes the values of the prompt's positions."""
        return self

    def run(self, graph: Graph, rows: tuple[Spans, ...]) -> int:
        """Does it inside the edit that `graph.trace` makes.

        In a trace of the user's, values that come from other runs must be at hand: `patch.prepared(graph,
        prompt.rows())` before it.
        """
        patch = self
        if self.ready is None:
            if self.needs_runs:
                raise MMFlowError(
                    "this Patch takes its values from other runs, which cannot be run inside a trace: call"
                    " patch.prepared(graph, prompt.rows()) before it, or hand the patch to graph.trace."
                )
            patch = self.prepared(graph, rows)
        return change_here(patch, graph, rows)

    def edits(self, graph: Graph, rows: tuple[Spans, ...], prompt: Prompt | Batch | None) -> Sequence[Edit]:
        """What it writes at each hook point of a TransformerLens bridge."""
        return Pattern.edits(self if self.ready is not None else self.prepared(graph, rows), graph, rows, prompt)

    @property
    def needs_runs(self) -> bool:
        """Whether its values come from other runs."""
        value = self.value.edit if isinstance(self.value, Through) else self.value
        return isinstance(value, FromRun | MeanOf)

    def change_at(
        self, values: Float[torch.Tensor, "positions width"], place: Place
    ) -> Float[torch.Tensor, "positions width"]:
        """The values that are written, those of a new token as at the span's last position."""
        ready = self.ready
        assert ready is not None  # prepared
        if isinstance(ready, Through):
            return ready.at(values, place, str(self))
        if isinstance(ready, Zeros):
            written = torch.zeros_like(values)
        elif isinstance(ready, Noise):
            written = noisy(ready, values, place)
        else:
            written = ready[place.number][place.prompt].to(values)[place.there]
        if place.columns is not None:
            kept = values.clone()
            kept[:, place.columns] = written[:, place.columns] if written.shape == values.shape else written
            written = kept
        if written.shape != values.shape:
            raise MMFlowError(f"the value has width {written.shape[-1]}, the site {values.shape[-1]}.")
        return written


def noisy(
    noise: Noise, values: Float[torch.Tensor, "positions width"], place: Place
) -> Float[torch.Tensor, "positions width"]:
    """Inside a trace: the values with noise; each new token has the same draw, scaled by what stands there itself."""
    seed = noise.seed + 1000003 * place.number + place.prompt + (7919000003 if place.new else 0)
    drawn = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed)).to(values)
    return values + drawn * (noise.scale * values.float().std().to(values))
