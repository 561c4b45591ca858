"""A sweep of one prompt: cells that change the masks alone run as rows of a few forwards, the others by one each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnsight_mmflow.inside.plan import Plan
from nnsight_mmflow.patterns.sweep.cells import Cell, check_cell
from nnsight_mmflow.runs.each import numbers_under
from nnsight_mmflow.runs.plan import plan_rows, sizes_of
from nnsight_mmflow.runs.scores import Numbers, Scored, difference
from nnsight_mmflow.runs.sweep import answer_of, run_sweep

if TYPE_CHECKING:
    from nnsight_mmflow.model.edits import MaskEdges
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt


@dataclass(frozen=True)
class Part:
    """What is read of a prompt, and how its cells run.

    Attributes:
        scored: the prompt, with the answer behind it, and what is read.
        names: of all cells.
        plan: the rows of those that change masks alone; its cells are (name, number of the cell, 0).
        others: (number, patterns) of those that run by a forward each.
    """

    scored: Scored
    names: tuple[str, ...]
    plan: Plan
    others: tuple[tuple[int, tuple], ...]


def part_of(
    graph: Graph, scored: Scored, cells: Sequence[Cell], columns: tuple[str, ...], engine: str, row_budget: int
) -> Part:
    """The part, every cell of it checked.

    Raises:
        NoEffectError, MMFlowError: a cell would change nothing, or cannot be done.
    """
    prompt, rows = scored.prompt, scored.prompt.rows()
    names = tuple(cell.called(columns) for cell in cells)
    masks: dict[tuple[str, int, int], Sequence[MaskEdges]] = {}
    others = []
    for number, (cell, name) in enumerate(zip(cells, names, strict=True)):
        patterns = check_cell(graph, prompt, cell, name).patterns
        edges = [pattern.mask_edges(graph, rows) for pattern in patterns] if engine == "rows" else [None]
        if any(one is None for one in edges):
            others.append((number, patterns))
        else:
            masks[name, number, 0] = [edge for one in edges for edge in one or ()]
    plan = plan_rows(
        sizes_of(graph, prompt),
        len(prompt.spans.tokens),
        masks,
        row_budget,
        graph.adapter.bidirectional(prompt.spans),
        graph.n_heads,
        read_from=prompt.spans["all"].row[1] - 1,
    )
    return Part(scored, names, plan, tuple(others))


def cost(left: list[tuple[Part, ...]]) -> str:
    """What the prompts that are left cost, in words."""
    parts = [part for held in left for part in held]
    rows, forwards = sum(part.plan.n_rows for part in parts), sum(len(part.others) for part in parts)
    flops = sum(
        (part.plan.row_flops if part.plan.chunks else part.plan.forward_flops)
        + part.plan.forward_flops * len(part.others)
        for part in parts
    )
    memory = max(parts, key=lambda part: part.plan.bytes).plan.memory if rows else ""
    return (
        f"at most {rows} rows and {forwards} forwards, {flops / 1e12:.3g} TFLOP"
        f"{f'; about {memory} beside the weights' if memory else ''}."
    )


def measure(
    graph: Graph,
    prompt: Prompt,
    parts: tuple[Part, ...],
    cells: list[list],
    only_correct: bool,
    max_new_tokens: int,
    why: str,
) -> dict:
    """What the journal keeps of one prompt.

    Args:
        graph: the model.
        prompt: what is asked.
        parts: what is read, and how the cells run.
        cells: what each is called there.
        only_correct: leave the prompt out where the answer is another than its own.
        max_new_tokens: how long the model's own answer may get.
        why: why it is left out in any case; "" if it is not.
    """
    plain = answer_of(graph, prompt, max_new_tokens)
    kept = {"prediction": plain.text, "correct": prompt.accepts(plain.text), "cells": [], "numbers": []}
    if why or (only_correct and not kept["correct"]):
        return {**kept, "why": why or "answered otherwise"}
    numbers = difference([_run(graph, part, plain.token) for part in parts])
    words = list(parts[0].scored.words)
    return {**kept, "base": numbers[0], "cells": cells, "numbers": numbers[1:], "words": words}


def _run(graph: Graph, part: Part, token: int) -> Numbers:
    """The clean run's numbers, and each cell's."""
    prompt, reading, plan = part.scored.prompt, part.scored.reading, part.plan
    found: dict[int, list[float]] = {}
    start = min((chunk.start for chunk in plan.chunks), default=len(prompt) - 1)
    swept = run_sweep(graph, plan if plan.chunks else None, prompt, start, 1, None, reading)
    if plan.chunks:
        found |= {number: one for (_, number, _), one in zip(plan.cells, swept["cells"], strict=True)}
    if part.others:
        named = [(part.names[number], patterns) for number, patterns in part.others]
        apart = numbers_under(graph, prompt, named, token, reading)
        found |= {number: one for (number, _), one in zip(part.others, apart, strict=True)}
    return [swept["numbers"][0], *(found[number] for number in range(len(part.names)))]
