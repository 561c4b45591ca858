"""Fine-tuning of the same matrices: what an edit is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.model.twin import twin_graph
from nnsight_mmflow.patterns.edit.result import weight_path
from nnsight_mmflow.patterns.edit.value import MOST_LEARNED, Fact
from nnsight_mmflow.runs.answers import with_target

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph


def fine_tune(
    graph: Graph,
    facts: Sequence[Fact],
    layers: Sequence[int],
    *,
    learning_rate: float = 5e-4,
    steps: int = 300,
    stop_at: float = 0.95,
    bound: float | None = None,
    first_token: bool = False,
) -> Graph:
    """A second view of the model, the MLP output projections of these layers trained by Adam to give the new answers.

    Args:
        graph: the model; it stays as it is.
        facts: the facts that the model should answer with.
        layers: the layers in which the MLP's output matrix is trained.
        learning_rate: of Adam (ROME's fine-tuning baseline: 5e-4).
        steps: at most so many.
        stop_at: stop when every new answer is this probable.
        bound: no number may move further than this from where it was (L-infinity); None: no limit.
        first_token: learn the answer's first token alone.

    Source: the baselines of arXiv 2406.04236, section 5; their settings are ROME's.
    """
    if not 0 < learning_rate <= MOST_LEARNED:
        raise MMFlowError(f"learning_rate={learning_rate}: above 0, and at most {MOST_LEARNED}.")
    start = {weight_path(graph, layer): graph.mlp_out(layer)._module.weight.detach() for layer in layers}
    tuned = twin_graph(graph, {path: weight.clone() for path, weight in start.items()}, f"{graph.name}, fine-tuned")
    model = tuned.adapter.model
    weights = {path: model.get_parameter(path).requires_grad_(True) for path in start}
    adam = torch.optim.Adam(weights.values(), lr=learning_rate)
    work = []
    for fact in facts:
        longer, ids = with_target(graph, fact.prompt, fact.target, first_token)
        work.append((graph.checked(longer), torch.tensor(ids, device=graph.device)))
    for _ in range(steps):
        logs = []
        for inputs, ids in work:
            logits = model(**inputs, use_cache=False, logits_to_keep=len(ids)).logits[0].float()
            logs.append(logits.log_softmax(-1).gather(1, ids[:, None]).sum())
        if min(float(log.detach().exp()) for log in logs) > stop_at:
            break
        gradients = torch.autograd.grad(-torch.stack(logs).mean(), list(weights.values()))
        for weight, gradient in zip(weights.values(), gradients, strict=True):
            weight.grad = gradient
        adam.step()
        if bound is not None:
            with torch.no_grad():
                for path, weight in weights.items():
                    weight.copy_(weight.clamp(start[path] - bound, start[path] + bound))
    for path, weight in weights.items():
        weight.requires_grad_(False).grad = None
        if not bool(torch.isfinite(weight).all()):
            raise MMFlowError(f"fine-tuning made {path} NaN or infinite: learning_rate={learning_rate} is too large.")
    return tuned
