"""What a report asks of each edit: the edited model, its answers, and those before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from nnsight_mmflow._errors import NoEffectError
from nnsight_mmflow.patterns.edit.edit import edit
from nnsight_mmflow.patterns.edit.fine_tune import fine_tune
from nnsight_mmflow.patterns.edit.value import EditSettings, Fact
from nnsight_mmflow.runs.answers import answer_scores
from nnsight_mmflow.runs.fingerprint import fingerprint
from nnsight_mmflow.runs.identity import prompt_identity

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt


Method = tuple[str, "list[int] | float | None"]  # ("edit", layers), or ("fine-tuning", how far a number may move)
# By model the last run, and what the unedited model answered in it: another run may find other weights.
BEFORE: WeakKeyDictionary[torch.nn.Module, tuple[str, list[tuple[float, bool]]]] = WeakKeyDictionary()


def measure(
    graph: Graph,
    method: Method,
    group: list[Fact],
    others: list[Prompt],
    layers: list[int],
    settings: EditSettings,
    run: str,
) -> dict:
    """What the journal keeps of one edit of that run: the edited model's answers, and those before."""
    before = _before(graph, others, run)
    try:
        edited = _edited(graph, method, group, layers, settings)
    except NoEffectError:  # an answer given already, or that this layer cannot change: counted as it is
        edited = graph
    return {"rows": _asked(graph, edited, group, others, before)}


def _before(graph: Graph, others: list[Prompt], run: str) -> list[tuple[float, bool]]:
    """What the unedited model answers to the others: asked once for all edits of a run."""
    known = BEFORE.get(graph.model._module)
    if known is None or known[0] != run:
        known = run, answer_scores(graph, others, [str(prompt.answer) for prompt in others])
        BEFORE[graph.model._module] = known
    return known[1]


def _edited(graph: Graph, method: Method, group: list[Fact], layers: list[int], settings: EditSettings) -> Graph:
    how, value = method
    if how == "edit":
        where: list[int] = value  # type: ignore[assignment]
        return edit(graph, group, where, settings=settings, progress=False, report=lambda text: None).graph
    limit: float | None = value  # type: ignore[assignment]
    return fine_tune(graph, group, layers, bound=limit, first_token=settings.first_token)


def _named(prompts: Sequence[Prompt]) -> str:
    """The fingerprint of prompts in their order, with what they are called."""
    return fingerprint([(prompt_identity(prompt), prompt.key, prompt.kind) for prompt in prompts])


def _questions(group: list[Fact], others: Sequence[Prompt]) -> tuple[list[tuple[str, str, Prompt, str]], list[int]]:
    """((measure, way, prompt, right answer) of all that is asked of an edited model, which of the others are)."""
    asked = [("efficacy", "the prompt itself", fact.prompt, fact.target) for fact in group]
    asked += [
        ("generalisation", way, prompt, fact.target)
        for fact in group
        for way, prompts in fact.same.items()
        for prompt in prompts
    ]
    edited_keys = {prompt.key for _, _, prompt, _ in asked if prompt.key}
    kept = [number for number, prompt in enumerate(others) if prompt.key not in edited_keys]
    asked += [("specificity", others[n].kind or "other prompts", others[n], str(others[n].answer)) for n in kept]
    return asked, kept


def _asked(
    graph: Graph, edited: Graph, group: list[Fact], others: Sequence[Prompt], before: list[tuple[float, bool]]
) -> list[dict]:
    """What the edited model answers."""
    asked, kept = _questions(group, others)
    prompts, answers = [prompt for _, _, prompt, _ in asked], [answer for *_, answer in asked]
    own = len(asked) - len(kept)
    was = answer_scores(graph, prompts[:own], answers[:own]) + [before[number] for number in kept]
    now = answer_scores(edited, prompts, answers)
    return [
        {
            "measure": measure,
            "way": way,
            "prompt": prompt.key,
            "answer": answer,
            "probability": after[0],
            "right": after[1],
            "right_before": earlier[1],
        }
        for (measure, way, prompt, answer), after, earlier in zip(asked, now, was, strict=True)
    ]
