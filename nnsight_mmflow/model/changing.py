"""Patterns that change activations at a span: what is refused before any forward, and what they do on a bridge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow._kinds import came, choice
from nnsight_mmflow.inside.changes import acts_in, changed, places_of, site_of
from nnsight_mmflow.model.edits import HOOK_POINTS, HookEdit, held_by
from nnsight_mmflow.model.site_names import site_named
from nnsight_mmflow.spans.edges import resolve

if TYPE_CHECKING:
    import torch

    from nnsight_mmflow.inside.changing import Changing
    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.model.loaded import Loaded
    from nnsight_mmflow.spans.row_spans import Spans
    from nnsight_mmflow.spans.span import Span

AT = ("resid", "attn", "mlp", "embed")
WHEN = ("prefill", "decode", "all")


def take_site(pattern: Changing) -> None:
    """Takes TransformerLens' names for a pattern's site, which may name its layer too.

    Raises:
        MMFlowError: there is no such site.
    """
    if not isinstance(pattern.site, str):
        raise MMFlowError(f"site must be one of {', '.join(AT)}, but {came(pattern.site)} came.")
    if pattern.site in AT:
        return
    layers = [pattern.layers] if isinstance(pattern.layers, int) else pattern.layers
    site, named_layers = site_named(pattern.site, None if layers is None else list(layers), AT)
    if pattern.site.endswith("attn.hook_z") and pattern.heads is None:
        raise MMFlowError(f"{pattern.site!r} is by head: give heads, such as heads=[3].")
    object.__setattr__(pattern, "site", site)
    object.__setattr__(pattern, "layers", named_layers)


def check_change(graph: Loaded, pattern: Changing, rows: tuple[Spans, ...], form: Form | None) -> list[Span]:
    """The span in each row; refuses, before any forward, what cannot be changed.

    Raises:
        MMFlowError: no such site, layer, head or span, or settings that do not go together.
        NoEffectError: an empty span, or one that new tokens do not count to.
    """
    kind = type(pattern).__name__
    if pattern.at is None:
        raise MMFlowError(f"{kind}(at=None) names no span: give one, such as at='image'.")
    choice("site", pattern.site, AT)
    if pattern.site == "embed" and pattern.layers is not None:
        raise MMFlowError("site='embed' is before the first layer: leave layers out.")
    if pattern.site != "embed" and pattern.layers is None:
        raise MMFlowError(f"site={pattern.site!r} needs layers, such as layers=range({graph.n_layers}).")
    if pattern.heads is not None and pattern.site != "attn":
        raise MMFlowError(f"heads belong to site='attn', not to {pattern.site!r}.")
    wrong = [head for head in pattern.heads or () if not 0 <= head < graph.n_heads]
    if wrong or (pattern.heads is not None and not len(pattern.heads)):
        raise MMFlowError(f"heads={pattern.heads!r}: there are {graph.n_heads} heads, counted from 0.")
    choice("when", pattern.when, WHEN)
    if pattern.when != "prefill" and form is None:
        raise MMFlowError(
            f'when="{pattern.when}" needs graph.generate(..., {kind}(...)): a trace is one forward, the prefill.'
        )
    pattern.layer_list(graph)
    spans = resolve(pattern.at, rows, "at")
    for row, span in enumerate(spans):
        if not len(span):
            raise NoEffectError(f"{pattern} would change nothing: {span.name!r} holds no position of row {row}.")
        if pattern.when != "prefill" and span.row[1] - 1 not in span:
            raise NoEffectError(
                f'{pattern} would change nothing after the prefill: with when="{pattern.when}" the newest token stands'
                f' for the prompt\'s last position, which {span.name!r} does not hold. Use when="prefill", or a span'
                ' with "| last".'
            )
    return spans


def check_together_there(pattern: Changing, spans: list[Span], form: Form) -> None:
    """Refuses a span whose positions a generation computes in several forwards.

    Raises:
        MMFlowError: a prompt in chunks cuts it.
    """
    for row, span in enumerate(spans):
        parts = {(position - form.past) // form.chunk for position in span} if form.chunk else {0}
        if len(parts) > 1:
            raise MMFlowError(
                f"{pattern}: prefill_chunk_size={form.chunk} hands the {len(span)} positions of {span.name!r} over"
                f" (row {row}) in {len(parts)} parts, and what it does at one may hang on the others. Leave"
                " prefill_chunk_size out."
            )


def change_edits(graph: Loaded, pattern: Changing, rows: tuple[Spans, ...]) -> list[HookEdit]:
    """What it does at each hook point of a TransformerLens bridge."""
    places = places_of(pattern, graph, rows)

    def edit(number: int, layer: int) -> HookEdit:
        def change(tensor: torch.Tensor) -> tuple[torch.Tensor | None, int]:
            held = held_by(tensor, len(rows), places.length)
            if not acts_in(pattern, places, held):
                return None, 0
            after, count = changed(pattern, tensor.flatten(2), places, number, held)
            return after.reshape(tensor.shape), count

        return HookEdit(HOOK_POINTS[site_of(pattern)].format(layer), change)

    return [edit(number, layer) for number, layer in enumerate(places.layers)]
