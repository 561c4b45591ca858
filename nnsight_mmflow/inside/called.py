"""The matrix of a linear module, found by calling it: where a block runs there may be no weights to read.

NDIF runs ordinary keys' blocks in a process whose modules are empty; a module that is called there runs where the
weights are. Unit vectors give the columns of its matrix, and nothing is rounded: every sum has one term that is not
zero. A quantised module gives the matrix that it really multiplies with. Ships to servers by value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # the tests check the shapes; a server need not have jaxtyping
    from collections.abc import Callable

    from jaxtyping import Float

NUMBERS_AT_ONCE = 1 << 24  # of what a call gives; each call crosses between two processes


def matrix_of(
    module: Callable[[torch.Tensor], torch.Tensor], width: int, like: torch.Tensor, rows: slice = slice(None)
) -> tuple[Float[torch.Tensor, "outputs inputs"], torch.Tensor]:
    """Inside a trace: some rows of a linear module's matrix, and its bias (outputs,) there, zeros for none.

    Args:
        module: what maps (positions, inputs) to (positions, outputs): an envoy.
        width: its inputs.
        like: gives the type and the device of what it takes.
        rows: which of its outputs.
    """
    nothing = module(like.new_zeros(1, width)).detach()
    bias = nothing[0, rows].clone()
    # A bias is rounded away beside large numbers; float16, which has none, keeps a bit of it in its last digit.
    size = 1.0 if not bool(bias.any()) else 2.0**10 if like.dtype == torch.float16 else 2.0**40
    at_once = max(1, NUMBERS_AT_ONCE // nothing.shape[1])
    columns = []
    for first in range(0, width, at_once):
        unit = like.new_zeros(min(at_once, width - first), width)
        unit.diagonal(first).fill_(size)
        column = module(unit)[:, rows].detach()
        if size != 1.0:
            column = ((column.double() - module(-unit)[:, rows].detach().double()) / (2 * size)).to(column)
        columns.append(column.clone())  # a view would hold all that was made
    return torch.cat(columns).T, bias
