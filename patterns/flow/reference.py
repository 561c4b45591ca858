"""The slow reference of a sweep: one whole forward, from the pixels, for each window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nnsight
import torch

from nnsight_mmflow.inside.rows import answer_numbers
from nnsight_mmflow.patterns.knockout import Knockout

if TYPE_CHECKING:
    from nnsight_mmflow.inside.plan import Plan
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt


def run_by_forwards(graph: Graph, plan: Plan, prompt: Prompt, token: torch.Tensor) -> torch.Tensor:
    """The same numbers for a token, one full forward from the pixels for each different window."""
    seen: dict[tuple[int, int], torch.Tensor] = {}
    for cell, place in zip(plan.cells, plan.row_of, strict=True):
        if place in seen:
            continue
        source, _, target = cell[0].partition("->")
        rows = plan.chunks[place[0]]
        pattern = Knockout(source=source.strip(), target=target.strip(), layers=range(*rows.windows[place[1]]))
        with torch.no_grad(), graph.trace(prompt, pattern, use_cache=False, logits_to_keep=1):
            numbers = nnsight.save(answer_numbers(graph.model.output.logits[:, -1], token))
        seen[place] = numbers[0]
    return torch.stack([seen[place] for place in plan.row_of])
