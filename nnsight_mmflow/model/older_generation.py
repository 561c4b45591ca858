"""Forms of generation that older releases of transformers get wrong themselves, without a sign; refused there.

From 5.18 on (5.17 does not) a generation encodes pictures once, before it runs the prompt. Before that pictures go with
every forward of the prompt, so parts of a prompt get the features of its first image tokens, and several rows a prompt
get its pictures in another order than their tokens. Each was seen to write other tokens than the plain form. And before
5.22 guessed tokens cannot be taken back from the cache of a layer that was left out: a TypeError.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.model.generation_settings import merged_settings

if TYPE_CHECKING:
    import torch

    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.model.loaded import Loaded


def check_pictures(graph: Loaded, settings: Mapping[str, object], inputs: Mapping[str, torch.Tensor]) -> None:
    """Refuses a generation whose pictures the transformers installed would mix up.

    Args:
        graph: the model.
        settings: as `graph.generate` takes them.
        inputs: the prompt's tensors.

    Raises:
        MMFlowError: a prompt in parts, several rows a prompt with several pictures, or PaliGemma without a cache.
    """
    kind = type(graph.adapter.model)
    pictures = [tensor for name, tensor in inputs.items() if name in graph.adapter.image_names]
    if "mm_encoder_outputs" in signature(kind.forward).parameters or not pictures:
        return
    merged, _ = merged_settings(graph, settings)
    rows, length = inputs["input_ids"].shape
    if 0 < (merged.prefill_chunk_size or 0) < length:
        raise _wrong(f"prefill_chunk_size={merged.prefill_chunk_size} with a picture", "leave it out")
    several = max(merged.num_beams or 1, merged.num_return_sequences or 1) > 1
    orders_itself = "_expand_inputs_for_generation" in vars(kind)  # Qwen's
    if several and not orders_itself and any(len(tensor) != rows for tensor in pictures):
        counts = f"num_beams={merged.num_beams}, num_return_sequences={merged.num_return_sequences}"
        raise _wrong(f"{counts} with several pictures or tiles a prompt", "set both to 1")
    if merged.use_cache is False and not graph.causal:
        raise _wrong(
            f"use_cache=False of {graph.family}, whose prompt reads itself backwards and forwards", "leave it out"
        )


def check_left_out(pattern: str, form: Form | None) -> None:
    """Refuses to leave layers out where the transformers installed would take guessed tokens back from their caches.

    Args:
        pattern: what leaves them out, in words.
        form: how the generation runs; None for a trace.

    Raises:
        MMFlowError: guessed tokens (an assistant model, prompt lookup), and a cache that cannot shrink while empty.
    """
    if form is None or not form.several or empty_caches_shrink():
        return
    import transformers

    raise MMFlowError(
        f"{pattern} leaves the caches of its layers empty, and {form.several} takes back tokens that were guessed"
        f" wrong: transformers {transformers.__version__} ends there with a TypeError (5.22 and later do not). Leave"
        f" {form.several} out, or install a later release."
    )


def empty_caches_shrink() -> bool:
    """Whether the transformers installed takes tokens back from a layer whose cache holds none."""
    from transformers.cache_utils import DynamicLayer

    try:
        DynamicLayer().crop(-1)
    except TypeError:
        return False
    return True


def _wrong(form: str, instead: str) -> MMFlowError:
    import transformers

    return MMFlowError(
        f"transformers {transformers.__version__} writes wrong tokens for {form}, without a sign (5.18 and later do"
        f" not): {instead}, or install a later release."
    )
