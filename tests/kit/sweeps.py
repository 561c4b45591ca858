"""A sweep as experiments run it, its numbers as tensors; what the layers are handed, read in a forward of its own."""

from dataclasses import dataclass

import nnsight
import torch

from nnsight_mmflow.inside.rows import clean_inputs
from nnsight_mmflow.runs.sweep import run_sweep


@dataclass
class Swept:
    """Of one prompt: the answer's tokens, (log-probability, id) of its first, and (cells, 2) by rows, or None."""

    tokens: list[int]
    base: float
    token: torch.Tensor
    cells: torch.Tensor | None


def swept(graph, prompt, plan=None, max_new_tokens=1):
    """The clean run, and the plan's cells if there is one."""
    start = len(prompt) - 1 if plan is None else min(chunk.start for chunk in plan.chunks)
    result = run_sweep(graph, plan, prompt, start, max_new_tokens, None)
    base, token = result["numbers"][0]
    cells = None if plan is None else torch.tensor(result["cells"], dtype=torch.float64)
    return Swept(result["tokens"], base, torch.tensor(int(token)), cells)


def layer_inputs(graph, prompt, start):
    """What each layer is handed from position `start` on."""
    n_layers, enters_after, causal = graph.n_layers, graph.enters_after, graph.causal
    with torch.no_grad(), graph.trace(prompt, use_cache=False, logits_to_keep=1):
        inputs = nnsight.save(clean_inputs(graph.layers, n_layers, start, enters_after, causal))
    return inputs
