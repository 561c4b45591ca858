"""One prompt's knockout sweep on a server: asked, sent, and made an entry of the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow.runs.fingerprint import fingerprint
from nnsight_mmflow.runs.sweep import run_there

if TYPE_CHECKING:
    from nnsight_mmflow.inside.plan import Plan
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.journal import Journal


CHUNKS_PER_REQUEST = 64  # bounds what a broken request loses; a sweep of the paper's edges is far below it
CODE_BYTES, CELL_BYTES, ANSWER_BYTES = 30_000, 40, 2_000  # measured on nano, rounded up


def measure_there(
    graph: Graph,
    prompt: Prompt,
    plan: Plan,
    identity: str,
    only_correct: bool,
    max_new_tokens: int,
    most: int,
    journal: Journal,
) -> dict:
    """What the journal keeps of one prompt, found on a server: nothing large travels.

    A sweep of more than `most` chunks of rows goes in several requests, each kept in the journal as it comes back.
    """
    start, accepted = first_position(plan, prompt), accepted_ids(graph, prompt, only_correct)
    parts = plan.parts(most)
    together: dict[tuple[str, int, int], list[float]] = {}
    found: dict = {}
    for number, part in enumerate(parts):
        # Another row_budget cuts a sweep otherwise: a part is known by its cells.
        name = f"{identity}, part {number + 1} of {len(parts)}: {fingerprint(part.cells)}"
        if name in journal.done:
            found = journal.done[name]["found"]
        else:
            found = run_there(graph, part, prompt, start, max_new_tokens, accepted)
            if len(parts) > 1:
                journal.add({"id": name, "found": found})
        if found["cells"] is None:
            break
        together |= dict(zip(part.cells, found["cells"], strict=True))
    if found["cells"] is not None:
        found = {**found, "cells": [together[cell] for cell in plan.cells]}
    return entry_of(graph, prompt, plan, identity, only_correct, max_new_tokens, found)


def requests_of(plan: Plan, most: int) -> int:
    """How many requests a sweep takes with at most so many chunks in one."""
    return max(1, -(-len(plan.chunks) // most))


def expected_bytes(prompt: Prompt, plan: Plan, most: int) -> tuple[int, int]:
    """(bytes up, bytes down) of one prompt, at most: tensors count as they are, though they are compressed."""
    tensors = sum(tensor.nbytes for tensor in prompt.inputs.values())
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
