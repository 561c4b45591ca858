"""What may be drawn as an attention map, brought to one form: attention mass between groups, head by head."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.bridge.span_cache import SpanCache
from nnsight_mmflow.inside.maps import received_by
from nnsight_mmflow.patterns.attention.result import AttentionResult
from nnsight_mmflow.prompts.prompt import Prompt
from nnsight_mmflow.spans.groups import Group, Grouping, groups_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float


@dataclass(frozen=True)
class DrawnAttention:
    """Attention mass between groups, the same groups down and across.

    Attributes:
        mass: (heads, groups, groups): mean over a row group's targets of the sum over a column group's sources; 0 in
            rows without targets.
        heads: the heads, counted from 0.
        groups: the groups, in order, with all their drawn positions.
        targets: how many targets each row stands for; None where it is not known.
        sources: how many sources each column stands for; None where it is not known.
        sinks: by group, its positions that are attention sinks; None where they cannot be told.
        model: its name, if known.
        notes: what else must be said of it.
    """

    mass: Float[torch.Tensor, "heads groups groups"] = field(repr=False)
    heads: tuple[int, ...]
    groups: tuple[Group, ...]
    targets: tuple[int | None, ...]
    sources: tuple[int | None, ...]
    sinks: tuple[tuple[int, ...], ...] | None
    model: str = ""
    notes: tuple[str, ...] = ()


def drawn_attention(
    what: AttentionResult | SpanCache | torch.Tensor,
    layer: int,
    prompt: Prompt | None,
    by: Grouping,
    heads: Sequence[int] | None,
) -> DrawnAttention:
    """The attention mass between groups in one layer.

    Raises:
        MMFlowError: something else came, or in another shape; the message says what is taken.
        SpanError: groups that do not partition what is drawn.
    """
    if isinstance(what, AttentionResult):
        if prompt is not None and not what.is_of(prompt):
            raise MMFlowError("prompt= is another prompt than the maps are of: leave it out, the maps hold theirs.")
        return _of_maps(what, layer, by, heads)
    if isinstance(what, SpanCache):
        return _of_cache(what, layer, prompt, by, heads)
    if isinstance(what, torch.Tensor):
        return _of_maps(_as_maps(what, layer, prompt), layer, by, heads)
    raise MMFlowError(
        "mmf.show.attention takes AttentionResult (mmf.attention(graph, prompt)), a SpanCache (run_with_span_cache), or"
        f" a tensor (heads, queries, keys) with prompt=, but a {type(what).__name__} came."
        " Saliency and contributions hold a number per source token: mmf.show.tokens, or their on_image."
    )


def _of_maps(maps: AttentionResult, layer: int, by: Grouping, heads: Sequence[int] | None) -> DrawnAttention:
    chosen = _chosen(heads, maps.heads)
    maps.at(layer)  # says which layers there are
    prompt = maps.shown_prompt()
    groups = groups_of(prompt.spans, by, sorted({*maps.targets, *maps.sources}))
    pooled, names = maps.part([layer], chosen).by_span(by), [group.name for group in groups]
    mass = torch.zeros(len(chosen), len(groups), len(groups))
    rows = [names.index(row.name) for row in pooled.rows]
    columns = [names.index(column.name) for column in pooled.columns]
    mass[:, torch.tensor(rows)[:, None], torch.tensor(columns)[None]] = pooled.weights[0]
    down = {row.name: len(row.positions) for row in pooled.rows}
    across = {column.name: len(column.positions) for column in pooled.columns}
    sinks = set(maps.sinks(layer))
    notes = [f"under {pattern}" for pattern in maps.patterns]
    if len(maps.sources) < len(prompt):
        notes.append(f"only {len(maps.sources)} of {len(prompt)} positions are drawn as sources: rows sum to less")
    return DrawnAttention(
        mass,
        chosen,
        groups,
        tuple(down.get(name, 0) for name in names),
        tuple(across.get(name, 0) for name in names),
        tuple(tuple(position for position in group.positions if position in sinks) for group in groups),
        maps.model,
        tuple(notes),
    )


def _of_cache(
    cache: SpanCache, layer: int, prompt: Prompt | None, by: Grouping, heads: Sequence[int] | None
) -> DrawnAttention:
    if by != "span":
        raise MMFlowError(
            f"a SpanCache is pooled already, by {', '.join(cache.spans)}: by={by!r} would need every position. Give"
            " run_with_span_cache those spans, or draw mmf.attention(graph, prompt)."
        )
    name = f"blocks.{layer}.attn.hook_pattern"
    if name not in cache:
        there = [key for key in cache if key.endswith("hook_pattern")]
        raise MMFlowError(f"this SpanCache holds no {name}; it holds {', '.join(there[:6]) or 'no patterns at all'}.")
    pattern = cache[name]
    if len(pattern) != 1:
        raise MMFlowError(f"this SpanCache is of {len(pattern)} prompts; one is drawn: run it with one prompt.")
    chosen = _chosen(heads, tuple(range(pattern.shape[1])))
    spans = [prompt.spans[span].positions if prompt else () for span in cache.spans]
    counts = tuple(len(positions) if prompt else None for positions in spans)
    shared = len({position for positions in spans for position in positions}) < sum(map(len, spans))
    notes = ["spans overlap: what two of them share is counted in both"] if shared or "last" in cache.spans else []
    notes += [] if prompt else ["give prompt= to see how many positions each span holds"]
    groups = tuple(Group(span, positions) for span, positions in zip(cache.spans, spans, strict=True))
    return DrawnAttention(pattern[0, list(chosen)].cpu(), chosen, groups, counts, counts, None, "", tuple(notes))


def _as_maps(weights: torch.Tensor, layer: int, prompt: Prompt | None) -> AttentionResult:
    """A tensor with its prompt, as maps of one layer."""
    shape = tuple(weights.shape)
    if prompt is None:
        raise MMFlowError(
            f"a tensor {shape} came without its prompt: mmf.show.attention(weights, layer, prompt=prompt), so that rows"
            " and columns can be named."
        )
    wanted = f"(heads, queries, keys) = (heads, {len(prompt)}, {len(prompt)}) of this prompt"
    if weights.ndim != 3:
        cause = {4: " Its first axis is the batch's: take weights[0].", 2: " Of one head: take weights[None]."}
        raise MMFlowError(f"expected {wanted}, but {shape} came.{cause.get(weights.ndim, '')}")
    if shape[1] != len(prompt) or shape[2] != len(prompt):
        raise MMFlowError(
            f"expected {wanted}, but {shape} came: rows and columns would be misnamed. Are the weights of another"
            " prompt, of a generation step, or cut? mmf.attention(graph, prompt, target=...) knows what it cut."
        )
    held = weights.detach().float().cpu()
    if not bool(held.isfinite().all()) or float(held.min()) < 0:
        raise MMFlowError(
            f"attention weights are 0 or more, but these go from {float(held.min()):.3g} to {float(held.max()):.3g}:"
            " are they scores before the softmax?"
        )
    positions = tuple(range(len(prompt)))
    received = received_by(held.mean(0), (held > 0).any(0).sum(-1))
    heads = tuple(range(shape[0]))
    return AttentionResult.of(held[None], (layer,), heads, positions, positions, received[None], prompt)


def _chosen(heads: Sequence[int] | None, there: tuple[int, ...]) -> tuple[int, ...]:
    chosen = there if heads is None else tuple(sorted(set(heads)))
    wrong = sorted(set(chosen) - set(there))
    if wrong or not chosen:
        raise MMFlowError(f"heads {wrong or 'none'} were asked for; there are {', '.join(map(str, there))}.")
    return chosen
