"""Clean and corrupt runs of nano's facts: asked by flag, with another flag; asked by name, with another name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import DataError
from nnsight_mmflow.nano import facts, samples
from nnsight_mmflow.patterns.corruption import Corruption, other_image, replace_phrase

if TYPE_CHECKING:
    from nnsight_mmflow._graph import Graph
    from nnsight_mmflow._prompt import Prompt
    from nnsight_mmflow._questions import Question

WAYS = ("flag", "name")


def trace_pairs(graph: Graph, n: int, way: str) -> tuple[list[Prompt], list[Corruption]]:
    """(prompts, corruptions) for causal tracing: the corrupt run asks the same of a place with another answer.

    Args:
        graph: nano.
        n: how many, 1 to 96.
        way: "flag" (the visual constraint "this place", its flag as picture; the flag is replaced) or "name" (the
            textual constraint, the place's name; it is replaced).

    Raises:
        DataError: an unknown way, or more than there are.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> prompts, corrupt = mmf.nano.trace_pairs(mmf.load("nano"), 3, "name")
        >>> corrupt[0].how.startswith("phrase")
        True
    """
    if way not in WAYS:
        raise DataError(f"way must be one of {', '.join(WAYS)}, not {way!r}.")
    everything = samples(96, f"fact-{way}")
    if not 0 < n <= len(everything):
        raise DataError(f"{n} questions were asked for; nano holds 1 to {len(everything)}.")
    prompts, corrupt = [], []
    for number, asked in enumerate(everything[:n]):
        other = _other(everything, number, asked)
        prompt = graph.prompt(asked.image, asked.question, asked.answer, key=asked.key, kind=asked.kind)
        prompts.append(prompt)
        if way == "flag":
            made = other_image(graph, prompt, other.image, "the flag of another place")
        else:
            made = replace_phrase(graph, prompt, _place(asked.question), _place(other.question))
            made = replace(made, how=f"phrase: the name of another place, such as {made.how.removeprefix('phrase ')}")
        corrupt.append(made)
    return prompts, corrupt


def _other(everything: list[Question], number: int, asked: Question) -> Question:
    """The next question but a few about the same relation with another answer."""
    relation = asked.question.split()[3]
    turned = everything[number + 1 :] + everything[:number]
    fits = [one for one in turned if one.question.split()[3] == relation and one.answer != asked.answer]
    return fits[len(fits) // 3]


def _place(question: str) -> str:
    """The place's name in a question."""
    return next(word for word in question.split() if word in facts.NAMES)
