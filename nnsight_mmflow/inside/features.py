"""Activations of chosen positions, pooled where they are, so that only little leaves the forward. Ships by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nnsight_mmflow.inside.sites import read_site

if TYPE_CHECKING:  # the tests check the shapes; a server need not have jaxtyping
    from jaxtyping import Float

    from nnsight_mmflow.inside.sites import Site


def read_features(
    sites: list[Site], positions: list[list[int]], pool: str | None
) -> list[Float[torch.Tensor, "layers kept width"]]:
    """Inside a trace: for each row what stands at its positions, in each layer.

    Args:
        sites: one per layer, in order.
        positions: for each row of the batch.
        pool: "mean" (in float32, or in double where the model is), "last" (of the positions), or None: all of them.
    """
    found: list[list[torch.Tensor]] = [[] for _ in positions]
    with torch.no_grad():  # the caller's does not travel
        for site in sites:
            whole = read_site(site).detach()
            for row, at in enumerate(positions):
                held = whole[row, at[-1:] if pool == "last" else at]
                if pool == "mean":
                    wide = held if held.dtype == torch.float64 else held.float()
                    held = wide.mean(0, keepdim=True)
                found[row].append(held.cpu())
    return [torch.stack(one) for one in found]
