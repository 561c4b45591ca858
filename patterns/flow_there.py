"""One prompt's knockout sweep on a server: asked, sent, and made an entry of the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._sweep_there import run_there

if TYPE_CHECKING:
    from nnsight_mmflow._graph import Graph
    from nnsight_mmflow._plan import Plan
    from nnsight_mmflow._prompt import Prompt


def measure_there(
    graph: Graph, prompt: Prompt, plan: Plan, identity: str, only_correct: bool, max_new_tokens: int
) -> dict:
    """What the journal keeps of one prompt, found on a server in one session: nothing large travels."""
    start, accepted = first_position(plan, prompt), accepted_ids(graph, prompt, only_correct)
    found = run_there(graph, plan, prompt, start, max_new_tokens, accepted)
    return entry_of(graph, prompt, plan, identity, only_correct, max_new_tokens, found)


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


def entry_of(
    graph: Graph,
    prompt: Prompt,
    plan: Plan,
    identity: str,
    only_correct: bool,
    max_new_tokens: int,
    found: dict,
) -> dict:
    """What the journal keeps of what the server found; runs again where a right answer was not foreseen."""
    text = graph.processor.tokenizer.decode(found["tokens"], skip_special_tokens=True).strip()
    correct = prompt.answer is not None and text.lower() == prompt.answer.strip().lower()
    if found["cells"] is None and (correct or not only_correct):
        found = run_there(graph, plan, prompt, first_position(plan, prompt), max_new_tokens, None)
    base, token = found["numbers"][0]
    entry = {"id": identity, "prediction": text, "correct": correct, "base": base, "token": int(token)}
    if found["cells"] is None or (only_correct and not correct):
        return {**entry, "cells": [], "numbers": []}
    return {**entry, "cells": [list(cell) for cell in plan.cells], "numbers": found["cells"]}
