"""An edit of a matrix, added inside a trace where the matrix lies on a server. Ships by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nnsight_mmflow.inside.called import matrix_of

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
                keys, outputs = out.input, out.output
                added = keys.to(right.dtype) @ right.to(keys.device).T @ left.to(keys.device).T
                out.output = outputs + added.to(outputs)
    except OutOfOrderError:  # a trace has one step, and a generation ends
        pass


def digests_of(outs: dict[int, Envoy]) -> dict[int, str]:
    """Inside a trace: by layer, in the order in which they run, the fingerprint of a projection's matrix."""
    keys = {layer: out.input for layer, out in outs.items()}
    return {layer: digest_of(matrix_of(outs[layer], key.shape[-1], key)[0]) for layer, key in keys.items()}


def digest_of(weight: torch.Tensor) -> str:
    """A short fingerprint of a matrix."""
    from hashlib import sha256

    plain = weight.detach().float().cpu().contiguous() + 0.0  # -0.0 is 0.0
    return sha256(plain.numpy().tobytes()).hexdigest()[:16]
