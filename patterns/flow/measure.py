"""One prompt's knockout sweep: asked, run here or on a server, and made an entry of the journal."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow.patterns.flow.reference import run_by_forwards
from nnsight_mmflow.remote.pixels import sent_bytes
from nnsight_mmflow.runs.fingerprint import fingerprint
from nnsight_mmflow.runs.sweep import answer_of, run_sweep

if TYPE_CHECKING:
    from nnsight_mmflow.inside.plan import Plan
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.journal import Journal
    from nnsight_mmflow.runs.runner import Task
    from nnsight_mmflow.spans.row_spans import Spans


CHUNKS_PER_REQUEST = 64  # bounds what a broken request loses; a sweep of the paper's edges is far below it
CODE_BYTES, CELL_BYTES, ANSWER_BYTES = 30_000, 40, 2_000  # measured on nano, rounded up


def measure(
    graph: Graph,
    prompt: Prompt,
    spans: Spans,
    plan: Plan,
    only_correct: bool,
    engine: str,
    max_new_tokens: int,
) -> dict:
    """What the journal keeps of one prompt, wherever the graph runs: on a server nothing large travels.

    Args:
        graph: the model.
        prompt: what is asked.
        spans: the prompt's, with those that the edges name beside them.
        plan: the sweep.
        only_correct: leave the rows out where the answer is another than the prompt's.
        engine: "rows", or "forward" (the slow reference).
        max_new_tokens: how long the answer may get.
    """
    if engine == "rows":
        accepted = accepted_ids(graph, prompt, only_correct)
        swept = run_sweep(graph, plan, prompt, first_position(plan, prompt), max_new_tokens, accepted)
        return entry_of(graph, prompt, plan, only_correct, max_new_tokens, swept)
    plain = answer_of(graph, prompt, max_new_tokens)
    kept = answered(prompt, plain.text, plain.base, plain.token)
    if only_correct and not kept["correct"]:
        return {**kept, "cells": [], "numbers": []}
    numbers = run_by_forwards(graph, plan, replace(prompt, spans=spans), torch.tensor(plain.token))
    return {**kept, "cells": [list(cell) for cell in plan.cells], "numbers": numbers.tolist()}


def measure_in_parts(graph: Graph, journal: Journal, task: Task, most: int) -> dict:
    """The same on a server, at most so many chunks of rows in a request; each is kept in the journal as it comes back.

    Args:
        graph: the model, on a server.
        journal: of the run.
        task: a prompt, as `measure` takes it.
        most: chunks in one request.
    """
    prompt, _, plan, only_correct, engine, max_new_tokens = task.given
    parts = plan.parts(most)
    if engine != "rows" or len(parts) == 1:
        return measure(graph, *task.given)
    start, accepted = first_position(plan, prompt), accepted_ids(graph, prompt, only_correct)
    together: dict[tuple[str, int, int], list[float]] = {}
    swept: dict = {}
    for number, part in enumerate(parts):
        # Another row_budget cuts a sweep otherwise: a part is known by its cells.
        name = f"{task.identity}, part {number + 1} of {len(parts)}: {fingerprint(part.cells)}"
        if name not in journal.done:
            journal.add({"id": name, "found": run_sweep(graph, part, prompt, start, max_new_tokens, accepted)})
        swept = journal.done[name]["found"]
        if swept["cells"] is None:
            break
        together |= dict(zip(part.cells, swept["cells"], strict=True))
    if swept["cells"] is not None:
        swept = {**swept, "cells": [together[cell] for cell in plan.cells]}
    return entry_of(graph, prompt, plan, only_correct, max_new_tokens, swept)


def requests_of(plan: Plan, most: int) -> int:
    """How many requests a sweep takes with at most so many chunks in one."""
    return max(1, -(-len(plan.chunks) // most))


def expected_bytes(prompt: Prompt, plan: Plan, most: int) -> tuple[int, int]:
    """(bytes up, bytes down) of one prompt, at most: tensors count as they are, though they are compressed."""
    tensors = sent_bytes(prompt.inputs)
    requests = requests_of(plan, most)
    return requests * (tensors + CODE_BYTES), requests * ANSWER_BYTES + len(plan.cells) * CELL_BYTES


def first_position(plan: Plan, prompt: Prompt) -> int:
    """The first position that any row of a plan needs."""
    return min((chunk.start for chunk in plan.chunks), default=len(prompt) - 1)


def accepted_ids(graph: Graph, prompt: Prompt, only_correct: bool) -> tuple[tuple[int, ...], ...] | None:
    """The ids of right answers, as far as they are foreseen, so that the server can tell; None: any answer counts."""
    if not only_correct or prompt.answer is None:
        return None
    forms = {form(prompt.answer.strip()) for form in (str, str.lower, str.capitalize, str.upper)}
    tokenizer = graph.processor.tokenizer
    spelt = (tokenizer(text, add_special_tokens=False).input_ids for form in forms for text in (form, f" {form}"))
    return tuple({tuple(ids) for ids in spelt})


def answered(prompt: Prompt, text: str, base: float, token: int | float) -> dict:
    """What is kept of the model's own answer."""
    return {"prediction": text, "correct": prompt.accepts(text), "base": base, "token": int(token)}


def entry_of(graph: Graph, prompt: Prompt, plan: Plan, only_correct: bool, max_new_tokens: int, swept: dict) -> dict:
    """What the journal keeps of what a sweep found; runs again where a right answer was not foreseen."""
    text = graph.processor.tokenizer.decode(swept["tokens"], skip_special_tokens=True).strip()
    if swept["cells"] is None and (prompt.accepts(text) or not only_correct):
        swept = run_sweep(graph, plan, prompt, first_position(plan, prompt), max_new_tokens, None)
    kept = answered(prompt, text, *swept["numbers"][0])
    if swept["cells"] is None or (only_correct and not kept["correct"]):
        return {**kept, "cells": [], "numbers": []}
    return {**kept, "cells": [list(cell) for cell in plan.cells], "numbers": swept["cells"]}
