"""TransformerLens activations by span: an axis of spans where positions were."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import NoEffectError

if TYPE_CHECKING:
    from jaxtyping import Float
    from transformer_lens.model_bridge import TransformerBridge

    from nnsight_mmflow.spans.row_spans import Spans

PARTS = ("prefix", "image", "question", "suffix", "last")
NO_POSITIONS = ("hook_cos", "hook_sin", "vision_")
WEIGHTS = ("hook_pattern",)
SCORES = ("hook_attn_scores",)  # sums of scores mean nothing


@dataclass(frozen=True)
class SpanCache(Mapping[str, torch.Tensor]):
    """Activations by hook name, with a span axis.

    Attributes:
        spans: what the axis counts.
        held: by hook name: (batch, span, ...) the mean over a span's positions; for hook_pattern (batch, head, span of
            queries, span of keys): what a query of the one span gives to the other in all, mean over queries.

    A name is a hook's, or ("pattern", 3) and the like, as in ActivationCache.
    """

    spans: tuple[str, ...]
    held: dict[str, torch.Tensor] = field(repr=False)

    def __getitem__(self, name: str | tuple) -> torch.Tensor:
        if isinstance(name, tuple):
            from transformer_lens.utilities import get_act_name

            name = get_act_name(*name)
        if name not in self.held:
            raise KeyError(f"{name!r} is not among the {len(self.held)} activations that are held.")
        return self.held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


def span_masks(
    rows: tuple[Spans, ...], spans: Sequence[str]
) -> tuple[tuple[str, ...], Float[torch.Tensor, "batch span positions"]]:
    """(names, (batch, span, positions) weights that sum to 1 over a span's positions)."""
    names = tuple(spans) or tuple(name for name in PARTS if all(len(row[name]) for row in rows))
    masks = torch.zeros(len(rows), len(names), rows[0]["all"].row[1])
    for i, row in enumerate(rows):
        for j, name in enumerate(names):
            positions = list(row[name])
            if not positions:
                raise NoEffectError(f"the span {name!r} holds no position of row {i}: there is nothing to read.")
            masks[i, j, positions] = 1 / len(positions)
    return names, masks


def has_positions(name: str, tensor: torch.Tensor, masks: torch.Tensor) -> bool:
    """Whether an activation has the prompt's rows and positions where they are expected."""
    if name.startswith("vision_") or name.endswith((*NO_POSITIONS, *SCORES)) or not tensor.is_floating_point():
        return False
    batch, _, positions = masks.shape
    if name.endswith(WEIGHTS):
        return tensor.ndim == 4 and tensor.shape[0] == batch and tensor.shape[2:] == (positions, positions)
    return tensor.ndim >= 2 and tensor.shape[:2] == (batch, positions)


def reduced(
    name: str, tensor: Float[torch.Tensor, "batch ..."], masks: Float[torch.Tensor, "batch span positions"]
) -> Float[torch.Tensor, "batch ..."]:
    """The activation with its positions reduced to spans, in float32."""
    masks = masks.to(tensor.device)
    if name.endswith(WEIGHTS):
        whole = (masks > 0).float().transpose(1, 2)[:, None]
        return masks[:, None] @ tensor.float() @ whole
    return (masks @ tensor.float().reshape(*tensor.shape[:2], -1)).reshape(len(masks), -1, *tensor.shape[2:])


def run_reduced(
    bridge: TransformerBridge,
    rows: tuple[Spans, ...],
    tokens: torch.Tensor,
    given: dict[str, object],
    names_filter: Callable[[str], bool] | Sequence[str] | str | None,
    spans: Sequence[str],
) -> tuple[torch.Tensor, SpanCache]:
    """(logits, SpanCache) of one run, each activation reduced when its hook fires; `given` is what goes with tokens."""
    names, masks = span_masks(rows, spans)
    if names_filter is None or callable(names_filter):
        wanted = names_filter or _of_the_language_model
        chosen = [name for name in bridge.hook_dict if wanted(name) and _is_on(bridge, name)]
    else:
        from nnsight_mmflow.bridge.checks import check_names

        chosen = [names_filter] if isinstance(names_filter, str) else list(names_filter)
        check_names(bridge, chosen)
    held: dict[str, torch.Tensor] = {}
    names_at = _by_point(bridge, chosen)

    def keep(own: list[str]) -> Callable[..., None]:
        def run(tensor: torch.Tensor, hook: object) -> None:
            if isinstance(tensor, torch.Tensor) and has_positions(own[0], tensor, masks):
                held.update(dict.fromkeys(own, reduced(own[0], tensor.detach(), masks)))

        return run

    logits = bridge.run_with_hooks(tokens, fwd_hooks=[(point, keep(own)) for point, own in names_at.items()], **given)
    held = {name: held[name] for name in chosen if name in held}
    if not held:
        raise NoEffectError(f"none of the {len(chosen)} chosen hook points has positions to reduce: {chosen[:3]}.")
    return logits, SpanCache(names, held)


def _of_the_language_model(name: str) -> bool:
    return not name.startswith("vision_")


def _is_on(bridge: TransformerBridge, name: str) -> bool:
    """Whether a hook point is in use: some are only after a setting such as set_use_attn_result(True)."""
    try:
        bridge.check_hooks_to_add(bridge.hook_dict[name], name, _of_the_language_model)
    except ValueError:
        return False
    return True


def _by_point(bridge: TransformerBridge, names: list[str]) -> dict[str, list[str]]:
    """The names by the hook point that they stand for: many have an alias, which need not be reduced twice.

    hook_embed is taken from what enters the first layer: the merged embedding, as in BoundBridge.run_with_cache.
    """
    first: dict[int, str] = {}
    names_of: dict[str, list[str]] = {}
    for name in names:
        real = "blocks.0.hook_in" if name == "hook_embed" else name
        point = first.setdefault(id(bridge.hook_dict[real]), real)
        names_of.setdefault(point, []).append(name)
    return names_of
