"""A knockout sweep whose score is more than the first token: whole answers, two options, captions, functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nnsight_mmflow.inside.plan import Plan
from nnsight_mmflow.patterns.flow.controls import controlled
from nnsight_mmflow.patterns.flow.edges import default_edges, without_answer
from nnsight_mmflow.patterns.flow.measure import first_position
from nnsight_mmflow.patterns.flow.plan import FlowPlan, check_answers, plan_of
from nnsight_mmflow.patterns.flow.reference import run_by_forwards
from nnsight_mmflow.runs.answers import check_behind, extended
from nnsight_mmflow.runs.scores import (
    CAPTION,
    OPTIONS,
    Numbers,
    Score,
    Scored,
    caption_reading,
    check_scored,
    difference,
    readings,
)
from nnsight_mmflow.runs.sweep import answer_of, run_sweep

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.spans.row_spans import Spans

ONE_TOKEN = "no edge: an answer of one token has nothing behind the prompt"
Parts = tuple[tuple[Scored, "Spans", Plan], ...]


@dataclass(frozen=True)
class Sweep:
    """How each prompt is swept: what `plan_of` takes.

    Attributes:
        edges: "source->target" each; None for those that a prompt has.
        windows: window sizes.
        controls: how many each edge gets.
        row_budget: positions in one chunk of rows.
    """

    edges: tuple[str, ...] | None
    windows: tuple[int, ...]
    controls: int
    row_budget: int

    def planned(self, graph: Graph, prompts: list[Prompt], drawn_for: Sequence[Prompt]) -> FlowPlan:
        """The plan of prompts with answers behind them; controls are drawn as for the prompts without."""
        seeds = [prompt.digest() for prompt in drawn_for]
        return plan_of(graph, prompts, self.edges, self.windows, self.controls, self.row_budget, seeds)


def scored_parts(
    graph: Graph, prompts: list[Prompt], score: Score, sweep: Sweep, max_new_tokens: int
) -> tuple[FlowPlan, list[str], list[Parts]]:
    """(the plan, for each prompt why it is left out, its parts with the rows of each).

    Raises:
        MMFlowError: prompts without what is scored, or without the spans of an edge.
    """
    why = check_scored(prompts, score, "flow")
    if score == CAPTION:
        for prompt in prompts:
            check_behind(graph, prompt, max_new_tokens, f"a caption (max_new_tokens={max_new_tokens})")
        placeholder = [graph.processor.tokenizer.convert_tokens_to_ids(prompts[0].spans.tokens[-1])] * max_new_tokens
        found = [[Scored(extended(one, placeholder[:-1], graph.processor.tokenizer), None)] for one in prompts]
    else:
        found = [
            [Scored(prompt, None)] if reason else readings(graph, prompt, score)
            for prompt, reason in zip(prompts, why, strict=True)
        ]
    if score == OPTIONS:  # both options must have the edges whose scores are subtracted
        for one in (one for held in found for one in held):
            empty = without_answer(one.prompt.spans, sweep.edges or ())
            check_answers([empty], [empty])
    planned = sweep.planned(graph, [part[0].prompt for part in found], prompts)
    why = [reason or ("" if plan.cells else ONE_TOKEN) for reason, plan in zip(why, planned.plans, strict=True)]
    edges = replace(sweep, edges=planned.edges if sweep.edges is not None else None)
    parts: list[Parts] = []
    for prompt, held, spans, plan in zip(prompts, found, planned.spans, planned.plans, strict=True):
        more = [edges.planned(graph, [one.prompt], [prompt]) for one in held[1:]]
        rows = [(spans, plan), *((one.spans[0], one.plans[0]) for one in more)]
        parts.append(tuple((one, *row) for one, row in zip(held, rows, strict=True)))
    return planned, why, parts


def measure_scored(
    graph: Graph,
    prompt: Prompt,
    spans: Spans,
    plan: Plan,
    only_correct: bool,
    engine: str,
    max_new_tokens: int,
    parts: Parts,
    sweep: Sweep | None,
    most: int,
    why: str,
) -> dict:
    """What the journal keeps of one prompt.

    Args:
        graph: the model.
        prompt: what is asked.
        spans: the prompt's, with those that the edges name beside them.
        plan: the rows of its first part.
        only_correct: leave it out where the answer is another than the prompt's.
        engine: "rows", or "forward" (the slow reference).
        max_new_tokens: how long the model's own answer may get.
        parts: what is read, with the rows of each.
        sweep: how a caption, which only now is known, is swept; None for no caption.
        most: chunks in one request.
        why: why the prompt is left out in any case; "" if it is not.
    """
    plain = answer_of(graph, prompt, max_new_tokens)
    kept = {"prediction": plain.text, "correct": prompt.accepts(plain.text), "cells": [], "numbers": []}
    if why or (only_correct and not kept["correct"]):
        return {**kept, "why": why or "answered otherwise"}
    if sweep is not None:
        one = caption_reading(graph, prompt, plain.tokens)
        every = sweep.edges or default_edges([prompt])
        lacking = without_answer(one.prompt.spans, every)
        if lacking:
            kept["lacking"] = list(lacking)
            sweep = replace(sweep, edges=tuple(edge for edge in every if edge not in lacking))
        if not sweep.edges and lacking:
            return {**kept, "why": ONE_TOKEN}
        made = sweep.planned(graph, [one.prompt], [prompt])
        parts = ((one, made.spans[0], made.plans[0]),)
    numbers = difference([_run(graph, one, there, rows, engine, most) for one, there, rows in parts])
    cells = [list(cell) for cell in parts[0][2].cells]
    words = list(parts[0][0].words)
    return {**kept, "base": numbers[0], "cells": cells, "numbers": numbers[1:], "words": words}


def cells_wanted(plan: Plan, kept: dict) -> list[tuple[str, int, int]]:
    """The cells of a finished prompt: those planned, less the edges that its caption turned out to lack."""
    lacking = set(kept.get("lacking", ()))
    return [cell for cell in plan.cells if (controlled(cell[0]) or cell[0]) not in lacking]


def _run(graph: Graph, scored: Scored, spans: Spans, plan: Plan, engine: str, most: int) -> Numbers:
    """The clean run's numbers, and each cell's."""
    prompt, reading = scored.prompt, scored.reading
    if engine != "rows":
        return run_by_forwards(graph, plan, replace(prompt, spans=spans), None, reading).tolist()
    start = first_position(plan, prompt)
    together: dict[tuple[str, int, int], list[float]] = {}
    base: list[float] = []
    for part in plan.parts(most) if graph.remote else [plan]:
        found = run_sweep(graph, part, prompt, start, 1, None, reading)
        base = found["numbers"][0]
        together |= dict(zip(part.cells, found["cells"], strict=True))
    return [base, *(together[cell] for cell in plan.cells)]
