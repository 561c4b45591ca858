"""Patch: the activations at some positions are replaced, by those of another run, a mean, zeros or noise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow.bridge.site_names import site_named
from nnsight_mmflow.inside.forwards import Held, each_forward, held_whole
from nnsight_mmflow.inside.sites import SITES, Site, read_site, write_site
from nnsight_mmflow.model.edits import HOOK_POINTS, HookEdit, held_by, row_length
from nnsight_mmflow.model.pattern import Pattern, check_computed, layer_list
from nnsight_mmflow.patterns.values import FromRun, MeanOf, Noise, Zeros, resolve_value
from nnsight_mmflow.spans.edges import resolve

if TYPE_CHECKING:
    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.values import Value
    from nnsight_mmflow.prompts.prompt import Batch, Prompt
    from nnsight_mmflow.spans.row_spans import Spans
    from nnsight_mmflow.spans.span import Span

AT = ("resid", "attn", "mlp", "embed")


@dataclass(frozen=True, kw_only=True)
class Patch(Pattern):
    """Writes activations at a span.

    Attributes:
        at: the span that is written, as a name, an expression such as "image.tile[0]", or a Span.
        site: "resid" (the residual stream after a layer), "attn" or "mlp" (what they add to it), or "embed" (the
            merged embedding: what really enters the first layer, image features included); TransformerLens' names are
            taken too: "hook_resid_post", "hook_mlp_out", or with its layer "blocks.3.hook_out".
        layers: one layer or several; "embed" has none.
        value: of `mmf.values`: from_run(prompt), mean_of(prompts), zeros() or noise(scale); or a tensor that broadcasts
            to (layers, rows, positions, width).
        heads: with site "attn", the heads whose share is written; None for all.

    Raises:
        NoEffectError: when run, if what is written stands there already, in every layer.
        MMFlowError: when run, if lengths, rows or shapes do not fit.

    In a generation it acts wherever the prompt's positions are computed: once, or with no cache in each forward.

    Source: Understanding Information Storage and Transfer in MLLMs (arXiv 2406.04236), section on causal tracing.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> sample = mmf.nano.samples(1)[0]
        >>> prompt = graph.prompt(sample.image, sample.question)
        >>> with graph.trace(prompt, mmf.Patch(at="image", site="mlp", layers=range(3), value=mmf.values.zeros())):
        ...     logits = graph.unembed.output.save()
    """

    at: str | Span
    value: Value = field(repr=False)
    site: str = "resid"
    layers: int | Iterable[int] | None = None
    heads: tuple[int, ...] | range | list[int] | None = None
    ready: list[list[torch.Tensor]] | Zeros | Noise | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Keeps layers that come as an iterator, which could be read only once; takes TransformerLens' names."""
        from nnsight_mmflow.arguments.checked import check_fields  # here: it need not travel

        check_fields(self)
        if self.site not in AT:
            layers = [self.layers] if isinstance(self.layers, int) else self.layers
            site, named_layers = site_named(self.site, None if layers is None else list(layers), AT)
            if self.site.endswith("attn.hook_z") and self.heads is None:
                raise MMFlowError(f"{self.site!r} is by head: give heads, such as heads=[3].")
            object.__setattr__(self, "site", site)
            object.__setattr__(self, "layers", named_layers)

    def check(self, graph: Graph, rows: tuple[Spans, ...], form: Form | None) -> None:
        """Refuses, before any forward, what cannot be done."""
        if self.site == "embed" and self.layers is not None:
            raise MMFlowError("site='embed' is before the first layer: leave layers out.")
        if self.site != "embed" and self.layers is None:
            raise MMFlowError(f"site={self.site!r} needs layers, such as layers=range({graph.n_layers}).")
        if self.heads is not None and self.site != "attn":
            raise MMFlowError(f"heads belong to site='attn', not to {self.site!r}.")
        wrong = [head for head in self.heads or () if not 0 <= head < graph.n_heads]
        if wrong or (self.heads is not None and not len(self.heads)):
            raise MMFlowError(f"heads={self.heads!r}: there are {graph.n_heads} heads, counted from 0.")
        if not isinstance(self.value, FromRun | MeanOf | Zeros | Noise | torch.Tensor):
            raise MMFlowError(
                f"value={self.value!r} is none of what Patch takes: a tensor, mmf.values.from_run(prompt),"
                " mmf.values.mean_of(prompts), mmf.values.zeros() or mmf.values.noise(scale)."
            )
        self._layers(graph)
        for row, span in enumerate(resolve(self.at, rows, "at")):
            if not len(span):
                raise NoEffectError(f"{self} would change nothing: {span.name!r} holds no position of row {row}.")
            if form is not None:
                check_computed(str(self), span, form)
                if isinstance(self.value, Noise) and form.parts(rows[row]["all"].row[1]):
                    raise MMFlowError(
                        f"{self}: noise is scaled by all that stands at the span, so the prompt must come whole: leave"
                        " prefill_chunk_size and past_key_values out."
                    )

    def prepared(self, graph: Graph, rows: tuple[Spans, ...]) -> Patch:
        """The same with its values at hand: runs what they come from. `graph.trace` and `graph.generate` do this."""
        targets = resolve(self.at, rows, "at")
        ready = resolve_value(self.value, graph, targets, self._site, self._layers(graph), self.at)
        return replace(self, ready=ready)

    def inside(self, graph: Graph, rows: tuple[Spans, ...], part: str) -> list[int]:
        """What a part adds can be written where it is left out; the heads' results are not there."""
        parts = () if self.site in ("resid", "embed") else ("layer",) if self.heads is None else ("layer", "attn")
        return self.layer_list(graph) if part in parts else []

    def run(self, graph: Graph, rows: tuple[Spans, ...]) -> int:
        """Does it inside the edit that `graph.trace` makes; apart from the model's process, in a generation too.

        In a trace of the user's, values that come from other runs must be at hand: `patch.prepared(graph,
        prompt.rows())` before it.
        """
        return self._write_here(graph, rows)

    def run_each(self, graph: Graph, rows: tuple[Spans, ...]) -> None:
        """Does it inside the edit that `graph.generate` makes, in each forward that holds positions of the span."""
        sites, positions, values = self._all(graph, rows)
        length, columns, done = row_length(rows), self._columns(graph), {"changed": 0}

        def act(held: Held) -> bool:
            if any(held.local(at) for at in positions):
                done["changed"] += write_all(sites, positions, values, columns, held)
            if held.end >= length and not done["changed"]:
                raise NoEffectError(self._nothing)
            return held.past_prompt

        each_forward(graph.decoder, len(rows), length, act)

    def edits(self, graph: Graph, rows: tuple[Spans, ...], prompt: Prompt | Batch | None) -> list[HookEdit]:
        """What it writes at each hook point of a TransformerLens bridge."""
        patch = self if self.ready is not None else self.prepared(graph, rows)
        assert patch.ready is not None
        return [self._edit(graph, rows, layer, number, patch.ready) for number, layer in enumerate(self._layers(graph))]

    def _edit(
        self,
        graph: Graph,
        rows: tuple[Spans, ...],
        layer: int,
        number: int,
        values: list[list[torch.Tensor]] | Zeros | Noise,
    ) -> HookEdit:
        positions, length = [list(span) for span in resolve(self.at, rows, "at")], row_length(rows)

        def change(tensor: torch.Tensor) -> tuple[torch.Tensor | None, int]:
            held = held_by(tensor, len(rows), length)
            if not any(held.local(at) for at in positions):
                return None, 0
            after, changed = written(tensor.flatten(2), positions, values, number, self._columns(graph), held)
            return after.reshape(tensor.shape), changed

        return HookEdit(HOOK_POINTS[self._site].format(layer), change)

    def _columns(self, graph: Graph) -> list[int] | None:
        """The columns of the chosen heads' results; None for the whole width."""
        if self.heads is None:
            return None
        each = graph.head_width
        return [head * each + i for head in self.heads for i in range(each)]

    @property
    def _site(self) -> str:
        return "heads" if self.heads is not None else self.site

    def _layers(self, graph: Graph) -> list[int]:
        return [0] if self.layers is None else layer_list(self.layers, graph.n_layers)

    def _all(
        self, graph: Graph, rows: tuple[Spans, ...]
    ) -> tuple[list[Site], list[list[int]], list[list[torch.Tensor]] | Zeros | Noise]:
        """The sites, each prompt's positions, and what is written."""
        if self.ready is None and not isinstance(self.value, Zeros | Noise | torch.Tensor):
            raise MMFlowError(
                "this Patch takes its values from other runs, which cannot be run inside a trace: call"
                " patch.prepared(graph, prompt.rows()) before it, or hand the patch to graph.trace."
            )
        patch = self if self.ready is not None else self.prepared(graph, rows)
        assert patch.ready is not None
        sites = [SITES[self._site](graph, layer) for layer in self._layers(graph)]
        return sites, [list(span) for span in resolve(self.at, rows, "at")], patch.ready

    def _write_here(self, graph: Graph, rows: tuple[Spans, ...]) -> int:
        """In the forward that runs now, which holds the whole prompt."""
        sites, positions, values = self._all(graph, rows)
        changed = write_all(sites, positions, values, self._columns(graph), None, row_length(rows))
        if not changed:
            raise NoEffectError(self._nothing)
        return changed

    @property
    def _nothing(self) -> str:
        return (
            f"{self} would change nothing: what it writes stands there already in every one of its layers. Is it"
            " the same run, or a site that the change has not reached?"
        )


def write_all(
    sites: list[Site],
    positions: list[list[int]],
    values: list[list[torch.Tensor]] | Zeros | Noise,
    columns: list[int] | None,
    held: Held | None = None,
    length: int = 0,
) -> int:
    """Inside a trace: writes the values at the sites, in order, and returns how many activations changed.

    Args:
        sites: one per layer.
        positions: for each prompt those that are written.
        values: for each layer and prompt (positions, width), or what is made on the spot.
        columns: which columns of the width; None for all.
        held: what the forward holds; None: the whole prompt, as its shape must show.
        length: of the padded prompt, for that.
    """
    changed = 0
    for number, site in enumerate(sites):
        before = read_site(site)
        here = held_whole(before.shape, len(positions), length) if held is None else held
        after, more = written(before, positions, values, number, columns, here)
        changed += more
        write_site(site, after)
    return changed


def written(
    before: torch.Tensor,
    positions: list[list[int]],
    values: list[list[torch.Tensor]] | Zeros | Noise,
    number: int,
    columns: list[int] | None,
    held: Held,
) -> tuple[torch.Tensor, int]:
    """(what stands at a site once the values are written, how many numbers changed).

    Args:
        before: (rows, positions, width) what stands there now.
        positions: for each prompt those that are written.
        values: for each layer and prompt (positions, width), or what is made on the spot.
        number: the site's, among those that are written.
        columns: which columns of the width; None for all.
        held: what the forward holds: of which prompt each row is, and which positions.
    """
    changed, after = 0, before.clone()
    for row, (prompt, at) in enumerate(held.by_row(list(enumerate(positions)))):
        local = held.local(at)
        if not local:
            continue
        old = before[row, local]
        if isinstance(values, Zeros):
            new = torch.zeros_like(old)
        elif isinstance(values, Noise):
            generator = torch.Generator().manual_seed(values.seed + 1000003 * number + prompt)
            drawn = torch.randn(old.shape, generator=generator).to(old)
            new = old + drawn * (values.scale * old.float().std().to(old))
        else:
            there = [i for i, position in enumerate(at) if held.has(position)]
            new = values[number][prompt].to(old)[there]
        if columns is not None:
            kept = old.clone()
            kept[:, columns] = new[:, columns] if new.shape == old.shape else new
            new = kept
        if new.shape != old.shape:
            raise MMFlowError(f"the value has width {new.shape[-1]}, the site {old.shape[-1]}.")
        changed += int((new != old).sum())
        after[row, local] = new
    return after, changed
