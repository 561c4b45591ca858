"""The slow reference of a sweep: one whole forward, from the pixels, for each window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nnsight
import torch

from nnsight_mmflow.inside.reading import Reading, numbers_of
from nnsight_mmflow.patterns.knockout import Knockout
from nnsight_mmflow.spans.edges import through_answer

if TYPE_CHECKING:
    from nnsight_mmflow.inside.plan import Plan
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt


def run_by_forwards(
    graph: Graph, plan: Plan, prompt: Prompt, token: torch.Tensor | None, reading: Reading | None = None
) -> torch.Tensor:
    """The same numbers for a token, one full forward from the pixels for each different window.

    Args:
        graph: the model.
        plan: the sweep.
        prompt: with the spans that its edges name, and the answer behind it if that is read.
        token: the first token of the answer.
        reading: what is read instead of a token; then the clean run's numbers come first.
    """
    seen: dict[tuple[int, int], torch.Tensor] = {}
    keep = 1 if reading is None else reading.count
    for cell, place in zip(plan.cells, plan.row_of, strict=True):
        if place in seen:
            continue
        source, _, target = cell[0].partition("->")
        rows = plan.chunks[place[0]]
        closed = through_answer(prompt.spans, prompt.spans[target.strip()])
        pattern = Knockout(source=source.strip(), target=closed, layers=range(*rows.windows[place[1]]))
        with torch.no_grad(), graph.trace(prompt, pattern, use_cache=False, logits_to_keep=keep):
            numbers = nnsight.save(numbers_of(graph.model.output.logits[0, -keep:], token, reading))
        seen[place] = numbers[0]
    cells = [seen[place] for place in plan.row_of]
    if reading is None:
        return torch.stack(cells)
    with torch.no_grad(), graph.trace(prompt, use_cache=False, logits_to_keep=keep):
        clean = nnsight.save(numbers_of(graph.model.output.logits[0, -keep:], token, reading))
    return torch.stack([clean[0], *cells])
