"""An edit of a matrix, added inside a trace where the matrix lies on a server. Ships by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from nnsight import Envoy


def add_updates(outs: list[Envoy], parts: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Inside an edit: adds to each projection's output what its update gives for its input, in every step.

    Args:
        outs: the projections, in the order in which they run.
        parts: their updates, as (out, facts) and (facts, in).
    """
    from nnsight.intervention.interleaver import OutOfOrderError
    from nnsight.intervention.iterator import Iterations

    try:
        for _ in Iterations()[0:]:
            for out, (left, right) in zip(outs, parts, strict=True):
                keys, given = out.input, out.output
                added = keys.to(right.dtype) @ right.to(keys.device).T @ left.to(keys.device).T
                out.output = given + added.to(given)
    except OutOfOrderError:  # a trace has one step, and a generation ends
        pass


def digests_of(outs: dict[int, Envoy]) -> dict[int, str]:
    """Inside a trace: by layer, the fingerprint of a projection's matrix."""
    return {layer: digest_of(out._module.weight) for layer, out in outs.items()}


def digest_of(weight: torch.Tensor) -> str:
    """A short fingerprint of a matrix."""
    from hashlib import sha256

    return sha256(weight.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
