"""What must be added to an MLP's output for the model to answer otherwise, found by gradients. Ships by value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import nnsight
import torch
from transformers import DynamicCache

from nnsight_mmflow.inside.names import cache_of, cached
from nnsight_mmflow.inside.row_masks import Rows
from nnsight_mmflow.inside.rows import LayerInput, clean_inputs, crop_cache, enter_layer, prepared

if TYPE_CHECKING:
    from nnsight import Envoy, TransformersModel


@dataclass(frozen=True)
class Search:
    """How a change is found: the part of EditSettings that travels.

    Attributes:
        learning_rate: the step size of Adam.
        steps: at most so many.
        stop_at: stop when the new answer is this probable; None: never.
        clip: the longest change, as a multiple of the clean output's norm; None: no limit.
        norm_penalty: times the change's share of the output, added to the loss.
    """

    learning_rate: float
    steps: int
    stop_at: float | None
    clip: float | None
    norm_penalty: float


def optimised(
    model: TransformersModel,
    all_layers: Envoy,
    outs: dict[int, Envoy],
    given: dict[str, torch.Tensor],
    rows: Rows,
    ids: list[int],
    position: int,
    settings: Search,
    width: int,
    enters_after: int,
    causal: bool,
) -> tuple[list[torch.Tensor], list[float], list[float]]:
    """Inside a session: what `Found` holds; the whole optimisation is one request on a server.

    Args:
        model: the model.
        all_layers: its decoder layers.
        outs: by layer, whose output is changed.
        given: the prompt's tensors, with the answer behind it.
        rows: its tail, as one row.
        ids: of the new answer.
        position: where the change is added.
        settings: how it is found.
        width: of the residual stream.
        enters_after: of the model.
        causal: of the model.
    """
    start, n_layers = rows.start, rows.windows[0][1]
    with torch.no_grad(), model.trace(**given, **cached(model, DynamicCache()), use_cache=True, logits_to_keep=1):
        clean = nnsight.save(clean_inputs(all_layers, n_layers, start, enters_after, causal))
        cache = nnsight.save(cache_of(model.output))
    inputs, nowhere, opened = prepared(clean, 0, rows)
    device = inputs[0].hidden.device
    changes = [torch.zeros(width, device=device, requires_grad=True) for _ in outs]
    adam = torch.optim.Adam(changes, lr=settings.learning_rate)
    spots = torch.arange(start, start + rows.tail, device=device)[None]
    targets, norms, probabilities = torch.tensor(ids, device=device), [0.0] * len(changes), []
    for step in range(settings.steps + 1):
        crop_cache(cache, start)
        for layer in cache.layers:  # the last step's gradients must not reach into this one
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        with model.trace(
            inputs_embeds=inputs[0].hidden,
            position_ids=spots,
            attention_mask=opened[0][None, None],
            **cached(model, cache),
            use_cache=True,
            logits_to_keep=len(ids),
        ):
            seen = nnsight.save(add_changes(all_layers, outs, rows, inputs, opened, nowhere, changes, position - start))
            result = nnsight.save(loss_and_gradients(model.output.logits[0], targets, changes))
        log, gradients = result
        norms = norms if step else [float(norm) for norm in seen]
        probabilities.append(float(torch.tensor(log).exp()))
        if step == settings.steps or (settings.stop_at is not None and probabilities[-1] > settings.stop_at):
            break
        for change, gradient, norm in zip(changes, gradients, norms, strict=True):
            change.grad = gradient
            length = float(change.detach().norm())
            if settings.norm_penalty and length:
                change.grad = gradient + settings.norm_penalty * change.detach() / (length * norm**2)
        adam.step()
        if settings.clip is not None:
            with torch.no_grad():
                for change, norm in zip(changes, norms, strict=True):
                    change.mul_(min(1.0, settings.clip * norm / float(change.norm())))
    return [change.detach() for change in changes], norms, probabilities


def add_changes(
    layers: Envoy,
    outs: dict[int, Envoy],
    rows: Rows,
    inputs: list[LayerInput],
    opened: list[torch.Tensor],
    nowhere: torch.Tensor,
    changes: list[torch.Tensor],
    position: int,
) -> list[torch.Tensor]:
    """Inside a trace: runs the tail with the changes added, and returns the norms of what they were added to."""
    present = 0
    norms: list[torch.Tensor] = []
    for layer in range(len(inputs)):
        present = enter_layer(layers, layer, rows, inputs, opened, nowhere, present)
        if layer in outs:
            before = outs[layer].output
            after = before.clone()
            after[0, position] = before[0, position] + changes[len(norms)].to(before)
            outs[layer].output = after
            norms.append(before[0, position].detach().float().norm())
    return norms


def loss_and_gradients(
    logits: torch.Tensor, targets: torch.Tensor, changes: list[torch.Tensor]
) -> tuple[float, list[torch.Tensor]]:
    """Inside a trace: the log-probability of the answer, and the gradient of minus it by each change."""
    log = logits.float().log_softmax(-1).gather(1, targets.to(logits.device)[:, None]).sum()
    gradients = torch.autograd.grad(-log, changes)
    return float(log.detach()), [gradient.detach() for gradient in gradients]
