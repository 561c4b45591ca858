"""Tensors as text, bit for bit: what a journal keeps of them."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def packed(tensors: Mapping[str, torch.Tensor]) -> str:
    """The tensors by name, as safetensors in base64: their type, shape and every bit.

    Example:
        >>> import torch
        >>> unpacked(packed({"ones": torch.ones(2)}))
        {'ones': tensor([1., 1.])}
    """
    from safetensors.torch import save

    return b64encode(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})).decode()


def unpacked(text: str) -> dict[str, torch.Tensor]:
    """The tensors of such a text."""
    from safetensors.torch import load

    return load(b64decode(text))
