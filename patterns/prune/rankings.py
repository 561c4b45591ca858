"""Rankings of image tokens by attention: from what is seen to a number per image token. Ships by value."""

from __future__ import annotations

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.pruning import Seen, attention_to_image


def from_instruction(seen: Seen) -> torch.Tensor:
    """Attention that a token receives from the instruction (HiMAP's shallow criterion, equation 8)."""
    return attention_to_image(seen, seen.after).sum(0)


def from_image(seen: Seen) -> torch.Tensor:
    """Attention that a token receives from the image tokens that are left, itself included (HiMAP's deep criterion)."""
    return attention_to_image(seen, seen.image).sum(0)


def to_image(seen: Seen) -> torch.Tensor:
    """Attention that a token pays to the image tokens that are left (equation 9 as it is printed)."""
    return attention_to_image(seen, seen.image).sum(1)


def from_last(seen: Seen) -> torch.Tensor:
    """Attention that a token receives from the last position (FastV's code, PyramidDrop)."""
    return attention_to_image(seen, seen.after[-1:]).sum(0)


def from_all(seen: Seen) -> torch.Tensor:
    """Attention that a token receives on average (FastV's paper)."""
    return attention_to_image(seen, list(range(seen.hidden.shape[0]))).mean(0)


def from_raters(seen: Seen) -> torch.Tensor:
    """Attention from the raters (SparseVLM): text tokens behind the image that are more like it than average.

    Likeness is the mean over the prompt's image tokens of the softmax over text tokens of their embeddings' products.
    """
    image = set(seen.prompt_image)
    here = {where: local for local, where in enumerate(seen.positions) if where > min(image) and where not in image}
    text = list(here)
    products = seen.entered[seen.prompt_image].float() @ seen.entered[text].float().T
    likeness = products.softmax(-1).mean(0)
    raters = [here[text[i]] for i in (likeness >= likeness.mean()).nonzero().flatten().tolist()]
    return attention_to_image(seen, raters).mean(0)


def share_of(name: str, value: float) -> float:
    """The value, if it is a share.

    Raises:
        MMFlowError: it lies outside 0 to 1.
    """
    if not 0 <= value <= 1:
        raise MMFlowError(f"{name} is the share of tokens that leave, 0 to 1, not {value}.")
    return value
