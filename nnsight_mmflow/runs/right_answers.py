"""One rule for prompts without an answer: refused before any forward wherever an answer is needed, never left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError

if TYPE_CHECKING:
    from nnsight_mmflow.prompts.prompt import Prompt


RIGHT = "so it cannot be said whether the model is right"


def check_answers(
    prompts: Sequence[Prompt],
    experiment: str,
    *,
    only_correct: bool | None = None,
    why: str = RIGHT,
    what: str = "prompts",
) -> None:
    """Refuses prompts that have no answer.

    Args:
        prompts: all that came.
        experiment: who asks.
        only_correct: its argument of that name: False counts every prompt, so none needs an answer. None: it has no
            such argument, or needs answers whatever it says.
        why: what an answer is needed for.
        what: which prompts they are.

    Raises:
        MMFlowError: how many of how many have none, which is the first, and what to type.
    """
    without = [number for number, prompt in enumerate(prompts) if prompt.answer is None]
    if only_correct is False or not without:
        return
    first = prompts[without[0]]
    instead = f", or only_correct=False to {experiment}" if only_correct else ""
    raise MMFlowError(
        f"{experiment}: {len(without)} of {len(prompts)} {what} have no answer (the first: number {without[0]},"
        f" {first.key or first.question!r}), {why}. Give answer= to"
        f" graph.prompt{instead}."
    )
