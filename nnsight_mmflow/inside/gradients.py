"""What the heads give, and the gradients there, read inside a trace. Ships by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from nnsight import Envoy


def heads_and_gradients(
    first: Envoy, outs: list[Envoy], model: Envoy, token: int
) -> tuple[float, list[torch.Tensor], list[torch.Tensor]]:
    """Inside a trace: the token's log-probability, the heads' results of every layer, and its gradients by them."""
    arguments, named = first.inputs
    entering = arguments[0].detach().requires_grad_(True)  # so that there is a gradient where the weights take none
    first.inputs = ((entering, *arguments[1:]), named)
    heads = [out.inputs[0][0] for out in outs]
    log = model.output.logits[0, -1].float().log_softmax(-1)[token]
    gradients = torch.autograd.grad(log, heads)
    return float(log.detach()), [rows[0].detach() for rows in heads], [rows[0] for rows in gradients]
