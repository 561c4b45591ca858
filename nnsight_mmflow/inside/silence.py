"""Attention or MLPs silenced at some positions, layer by layer, inside a trace. Ships by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nnsight_mmflow.inside.rows import LayerInput, Rows, enter_layer

if TYPE_CHECKING:
    from nnsight import Envoy


def silence(module: Envoy, positions: list[int], is_tuple: bool) -> float:
    """Inside a trace: sets a module's output to zero at the positions, and returns the largest value there was."""
    output = module.output
    values = (output[0] if is_tuple else output).clone()
    largest = float(values[:, positions].abs().max())
    values[:, positions] = 0
    module.output = (values, *output[1:]) if is_tuple else values
    return largest


def run_silenced(
    layers: Envoy,
    rows: Rows,
    clean: list[LayerInput],
    opened: list[torch.Tensor],
    closed: torch.Tensor,
    silenced: dict[int, tuple[Envoy, bool]],
    positions: list[int],
) -> float:
    """Inside a trace of one row: hands each layer what it had in the clean run, and silences a module in some.

    Returns:
        The largest value that was set to zero.
    """
    present, largest = 0, 0.0
    for layer in range(len(clean)):
        present = enter_layer(layers, layer, rows, clean, opened, closed, present)
        if layer in silenced:
            module, is_tuple = silenced[layer]
            largest = max(largest, silence(module, positions, is_tuple))
    return largest
