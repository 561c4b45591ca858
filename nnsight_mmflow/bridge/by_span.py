"""The activations of a bound bridge by span, in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._kinds import came
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.bridge.span_cache import SpanCache, has_positions, reduced, span_masks

if TYPE_CHECKING:
    from transformer_lens import ActivationCache

    from nnsight_mmflow.prompts.prompt import Batch, Prompt


@checked
def cache_by_span(
    cache: ActivationCache | Mapping[str, torch.Tensor], prompt: Prompt | Batch, spans: Sequence[str] = ()
) -> SpanCache:
    """A TransformerLens cache with spans instead of positions, as a `SpanCache`.

    What has no positions of the prompt (the vision tower, rotary tables) and raw scores are left out.

    Args:
        cache: what run_with_cache returned, with its batch axis.
        prompt: the prompt or batch that was run.
        spans: names or expressions; the prompt's parts unless given.

    Raises:
        NoEffectError: a span that holds no position.
        MMFlowError: the cache is of another prompt.
    """
    if not hasattr(cache, "items") or not all(isinstance(activation, torch.Tensor) for _, activation in cache.items()):
        raise MMFlowError(f"cache is what run_with_cache returned, tensors by name, but {came(cache)} came.")
    names, masks = span_masks(prompt.rows(), spans)
    held = {name: reduced(name, tensor, masks) for name, tensor in cache.items() if has_positions(name, tensor, masks)}
    if not held:
        raise MMFlowError(
            f"no activation of this cache has {len(prompt.rows())} rows of {masks.shape[-1]} positions: is it of"
            " another prompt, or without its batch axis?"
        )
    return SpanCache(names, held)
