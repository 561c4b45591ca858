"""Skip: a layer, its attention or its MLP is left out, for every position or for one span."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError, ModelError, NoEffectError
from nnsight_mmflow.inside.forwards import Held, held_whole
from nnsight_mmflow.inside.sites import SITES, read_site, write_site
from nnsight_mmflow.model.edits import HOOK_POINTS, HookEdit, held_by, row_length
from nnsight_mmflow.model.pattern import Pattern, check_computed, layer_list, rows_of
from nnsight_mmflow.spans.edges import resolve

if TYPE_CHECKING:
    from typing import Self

    from nnsight_mmflow.inside.passage import Passage
    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Batch, Prompt
    from nnsight_mmflow.spans.row_spans import Spans
    from nnsight_mmflow.spans.span import Span

PARTS = ("layer", "attn", "mlp")
ADDS_NOTHING = "these layers add nothing there."


@dataclass(frozen=True, kw_only=True)
class Skip(Pattern):
    """Leaves layers out: what enters such a layer leaves it as it came.

    Without `at` the layer (or its attention, or its MLP) is not run at all, in a generation not in any step: compute is
    really saved. With `at`, the span's positions pass it unchanged while the others go through it and may still read
    them; in a generation this acts wherever those positions are computed.

    Attributes:
        layers: one layer or several.
        at: the span that passes unchanged; None for every position.
        part: "layer", "attn" (its attention adds nothing) or "mlp" (its MLP adds nothing).

    Raises:
        NoEffectError: when run with `at`, if nothing changes (the span is empty, or these layers add nothing there).
            Without `at` what a layer would add is not known: it is not run.
        ModelError: in a generation with a cache without layer 0, whose cache counts positions.
        MMFlowError: where transformers before 5.22 would take guessed tokens back from the cache of a layer left out.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> prompt = mmf.nano.prompts(graph, 1)[0]
        >>> with graph.trace(prompt, mmf.Skip(layers=[7, 8], at="image")):
        ...     logits = graph.unembed.output.save()
    """

    layers: int | Iterable[int]
    at: str | Span | None = None
    part: str = "layer"

    def check(self, graph: Graph, rows: tuple[Spans, ...], form: Form | None) -> None:
        """Refuses, before any forward, what cannot be done or would change nothing."""
        layers = layer_list(self.layers, graph.n_layers)
        if self.part not in PARTS:
            raise MMFlowError(f"part must be one of {', '.join(PARTS)}, not {self.part!r}.")
        if form is not None and form.cached and self.at is None and self.part != "mlp" and 0 in layers:
            raise ModelError(
                f"{self}: a generation counts its positions by layer 0's cache, which stays empty where layer 0 (or its"
                " attention) is left out. Skip later layers, set use_cache=False, or trace the prompt alone."
            )
        if self.at is None:
            if self.part != "mlp":
                from nnsight_mmflow.model.older_generation import check_left_out  # here: it need not travel

                check_left_out(str(self), form)
            if form is not None and form.past:
                raise MMFlowError(
                    f"{self} leaves layers out for every position, but past_key_values holds the first {form.past}"
                    " positions already, computed with them. Leave past_key_values out, or give `at`."
                )
            return
        for row, span in enumerate(resolve(self.at, rows, "at")):
            if not len(span):
                raise NoEffectError(f"{self} would change nothing: {span.name!r} holds no position of row {row}.")
            if form is not None:
                check_computed(str(self), span, form)

    def apply(self, graph: Graph, spans: Spans | tuple[Spans, ...]) -> int:
        """Does it inside a trace that the user has opened, in the forward in which it is called."""
        rows = rows_of(graph, spans)
        self.check(graph, rows, None)
        return self._once(graph, rows)

    def left_out(self, graph: Graph) -> tuple[str, list[int]] | None:
        """Its part of its layers, where every position passes."""
        return (self.part, self.layer_list(graph)) if self.at is None else None

    def inside(self, graph: Graph, rows: tuple[Spans, ...], part: str) -> list[int]:
        """Its layers; of a layer that is left out in part, that part."""
        acts = ("layer", self.part) if self.at is None else ("layer",)
        return self.layer_list(graph) if part in acts else []

    def over_answer(self, spans: Spans) -> Self:
        """The tokens of an answer behind the prompt pass the layers too, if its last position does."""
        return self.extended("at", spans)

    def run(self, graph: Graph, rows: tuple[Spans, ...]) -> int:
        """Does it inside the edit that `graph.trace` makes."""
        return self._once(graph, rows)

    def run_each(self, graph: Graph, rows: tuple[Spans, ...], passage: Passage) -> None:
        """Does it inside the edit that `graph.generate` makes: everywhere, or where the span's positions are held."""
        at = self.at
        positions = [] if at is None else [list(span) for span in resolve(at, rows, "at")]
        length, done = row_length(rows), {"changed": 0}

        def act(held: Held) -> bool:
            if at is None:
                self._leave_out(graph)
                return False
            if any(held.local(span) for span in positions):
                done["changed"] += self._pass(graph, positions, held)
            if held.end >= length and not done["changed"]:
                raise NoEffectError(f"{self} would change nothing: {ADDS_NOTHING}")
            return held.past_prompt

        passage.each(act)

    def edits(self, graph: Graph, rows: tuple[Spans, ...], prompt: Prompt | Batch | None) -> list[HookEdit]:
        """What passes each layer of a TransformerLens bridge unchanged; TransformerLens runs the layer all the same."""
        return [edit for layer in layer_list(self.layers, graph.n_layers) for edit in self._edit(rows, layer)]

    def _edit(self, rows: tuple[Spans, ...], layer: int) -> list[HookEdit]:
        positions = None if self.at is None else [list(span) for span in resolve(self.at, rows, "at")]
        length, entered = row_length(rows), {}

        def enter(tensor: torch.Tensor) -> tuple[None, int]:
            entered["here"] = tensor
            return None, 0

        def leave(tensor: torch.Tensor) -> tuple[torch.Tensor | None, int]:
            passing = entered["here"] if self.part == "layer" else torch.zeros_like(tensor)
            if positions is None:
                return passing, int((passing != tensor).sum())
            held, after = held_by(tensor, len(rows), length), tensor.clone()
            for row, at in enumerate(held.by_row(positions)):
                local = held.local(at)
                after[row, local] = passing[row, local]
            return after, int((after != tensor).sum())

        out = HookEdit(HOOK_POINTS["resid" if self.part == "layer" else self.part].format(layer), leave)
        return [HookEdit(f"blocks.{layer}.hook_in", enter), out] if self.part == "layer" else [out]

    def _once(self, graph: Graph, rows: tuple[Spans, ...]) -> int:
        if self.at is None:
            self._leave_out(graph)
            return len(self.layer_list(graph))
        changed = self._pass(graph, [list(span) for span in resolve(self.at, rows, "at")], None, row_length(rows))
        if not changed:
            raise NoEffectError(f"{self} would change nothing: {ADDS_NOTHING}")
        return changed

    def _pass(self, graph: Graph, positions: list[list[int]], held: Held | None, length: int = 0) -> int:
        """In the forward that runs now: the positions pass unchanged; returns how many numbers that changed."""
        changed = 0
        for layer in layer_list(self.layers, graph.n_layers):
            site = SITES["resid" if self.part == "layer" else self.part](graph, layer)
            # not the layer's own inputs: with them its cache is read, which a process apart from the model gets copied
            entering = graph.layers[layer].input_layernorm.input if self.part == "layer" else None
            before = read_site(site)
            here = held_whole(before.shape, len(positions), length) if held is None else held
            after = before.clone()
            for row, at in enumerate(here.by_row(positions)):
                local = here.local(at)
                passing = torch.zeros_like(after[row, local]) if entering is None else entering[row, local].to(after)
                changed += int((after[row, local] != passing).sum())
                after[row, local] = passing
            write_site(site, after)
        return changed

    def _leave_out(self, graph: Graph) -> None:
        for layer in layer_list(self.layers, graph.n_layers):
            entering = graph.layers[layer].inputs[0][0]
            if self.part == "layer":
                graph.layers[layer].skip(entering)
                continue
            module, is_tuple = graph.joining(self.part, layer)
            nothing = torch.zeros_like(entering)
            module.skip((nothing, None) if is_tuple else nothing)
