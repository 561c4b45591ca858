"""Skip: a layer, its attention or its MLP is left out, for every position or for one span."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from nnsight_mmflow.patterns.sites import SITES, read_site, write_site

from nnsight_mmflow._edits import HOOK_POINTS, HookEdit, row_length
from nnsight_mmflow._errors import MMFlowError, ModelError, NoEffectError
from nnsight_mmflow._pattern import layer_list, resolve, rows_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from nnsight_mmflow._graph import Graph
    from nnsight_mmflow._prompt import Batch, Prompt
    from nnsight_mmflow._row_spans import Spans
    from nnsight_mmflow._spans import Span

PARTS = ("layer", "attn", "mlp")


@dataclass(frozen=True, kw_only=True)
class Skip:
    """Leaves layers out: what enters such a layer leaves it as it came.

    Without `at` the layer (or its attention, or its MLP) is not run at all, in a generation not in any step: compute is
    really saved. With `at`, the span's positions pass it unchanged while the others go through it and may still read
    them; in a generation this acts on the prompt's forward.

    Attributes:
        layers: one layer or several.
        at: the span that passes unchanged; None for every position.
        part: "layer", "attn" (its attention adds nothing) or "mlp" (its MLP adds nothing).

    Raises:
        NoEffectError: when run with `at`, if nothing changes (the span is empty, or these layers add nothing there).
            Without `at` what a layer would add is not known: it is not run.
        ModelError: in a generation without layer 0, whose cache counts positions.

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

    def __post_init__(self) -> None:
        """Refuses what is no span or layer; keeps layers that come as an iterator, which could be read only once."""
        from nnsight_mmflow._arguments import check_fields  # here: it need not travel

        check_fields(self)

    def _repr_html_(self) -> str:
        from nnsight_mmflow._shown_patterns import pattern_html

        return pattern_html(self)

    def check(self, graph: Graph, rows: tuple[Spans, ...], steps: bool) -> None:
        """Refuses, before any forward, what cannot be done or would change nothing."""
        layers = layer_list(self.layers, graph.n_layers)
        if self.part not in PARTS:
            raise MMFlowError(f"part must be one of {', '.join(PARTS)}, not {self.part!r}.")
        if steps and self.at is None and self.part != "mlp" and 0 in layers:
            raise ModelError(
                f"{self}: a generation counts its positions by layer 0's cache, which stays empty where layer 0 (or its"
                " attention) is left out. Skip later layers, or trace the prompt alone."
            )
        if self.at is None:
            return
        for row, span in enumerate(resolve(self.at, rows, "at")):
            if not len(span):
                raise NoEffectError(f"{self} would change nothing: {span.name!r} holds no position of row {row}.")

    def prepared(self, graph: Graph, rows: tuple[Spans, ...]) -> Skip:
        """Itself: it needs nothing from other runs."""
        return self

    def apply(self, graph: Graph, spans: Spans | tuple[Spans, ...]) -> None:
        """Does it inside a trace that the user has opened (one forward)."""
        rows = rows_of(graph, spans)
        self.check(graph, rows, steps=False)
        self._once(graph, rows)

    def run(self, graph: Graph, rows: tuple[Spans, ...]) -> None:
        """Does it inside the edit that `graph.trace` or `graph.generate` makes."""
        from nnsight.intervention.interleaver import OutOfOrderError
        from nnsight.intervention.iterator import Iterations

        self._once(graph, rows)
        if self.at is not None:
            return
        try:
            for _ in Iterations()[1:]:
                self._leave_out(graph)
        except OutOfOrderError:  # a trace has one step, and a generation ends
            pass

    def hooks(self, bridge: TransformerBridge, spans: Spans | tuple[Spans, ...]) -> list[tuple]:
        """The same as `fwd_hooks` for a TransformerLens bridge: `bridge.run_with_hooks(ids, fwd_hooks=...)`."""
        from nnsight_mmflow._bridge_hooks import hooks_of

        return hooks_of(self, bridge, spans)

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
            if tensor.shape[1] != length:  # a step of a generation
                return None, 0
            after = tensor.clone()
            for row, at in enumerate(positions):
                after[row, at] = passing[row, at]
            return after, int((after != tensor).sum())

        out = HookEdit(HOOK_POINTS["resid" if self.part == "layer" else self.part].format(layer), leave)
        return [HookEdit(f"blocks.{layer}.hook_in", enter), out] if self.part == "layer" else [out]

    def _once(self, graph: Graph, rows: tuple[Spans, ...]) -> None:
        if self.at is None:
            self._leave_out(graph)
            return
        changed = 0
        positions = [list(span) for span in resolve(self.at, rows, "at")]
        for layer in layer_list(self.layers, graph.n_layers):
            site = SITES["resid" if self.part == "layer" else self.part](graph, layer)
            # not the layer's own inputs: with them its cache is read, which a process apart from the model gets copied
            entering = graph.layers[layer].input_layernorm.input if self.part == "layer" else None
            before = read_site(site)
            after = before.clone()
            for row, at in enumerate(positions):
                passing = torch.zeros_like(after[row, at]) if entering is None else entering[row, at].to(after)
                changed += int((after[row, at] != passing).sum())
                after[row, at] = passing
            write_site(site, after)
        if not changed:
            raise NoEffectError(f"{self} would change nothing: these layers add nothing there.")

    def _leave_out(self, graph: Graph) -> None:
        for layer in layer_list(self.layers, graph.n_layers):
            entering = graph.layers[layer].inputs[0][0]
            if self.part == "layer":
                graph.layers[layer].skip(entering)
                continue
            module, is_tuple = graph.joining(self.part, layer)
            nothing = torch.zeros_like(entering)
            module.skip((nothing, None) if is_tuple else nothing)
