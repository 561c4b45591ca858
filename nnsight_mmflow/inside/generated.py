"""Whether a forward would write the tokens that it holds behind a prompt. Ships to servers by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # the tests check the shapes; a server need not have jaxtyping
    from jaxtyping import Float


def lag_of(logits: Float[torch.Tensor, "steps vocabulary"], ids: torch.Tensor) -> tuple[float, float]:
    """Inside a trace: (how far a token's logit lies below its step's largest, at most; the largest logit's size).

    Args:
        logits: of the steps that write the tokens.
        ids: (steps,): of the tokens.
    """
    steps = logits.detach().float()
    chosen = steps.gather(1, ids.to(steps.device)[:, None])[:, 0]
    return float((steps.amax(1) - chosen).max()), float(steps.abs().max())
