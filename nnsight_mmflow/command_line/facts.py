"""Facts of a file for `mmflow edit`: what is written, and the other questions, whose answers should stay."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.command_line.constrained import Rows, read_constrained
from nnsight_mmflow.command_line.shared import graph_after, how_asked

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.edit.value import Fact
    from nnsight_mmflow.prompts.prompt import Prompt


def constraint_span(words: str) -> str:
    """Where the words stand in the question, the first time."""
    return f"text({words!r}, 0)"


def graph_and_facts(given: argparse.Namespace) -> tuple[Graph, list[Fact], list[Prompt]]:
    """The model, a fact for each row of `--data`, and those questions again, as far as they have answers.

    An edit leaves its own question out of them.

    Raises:
        MMFlowError: a row of which no fact can be made, unless those are skipped; or none is left.
    """
    import nnsight_mmflow as mmf

    graph, read = graph_after(given, _read)
    for problem in read.skipped:
        say(f"skipped: {problem}")
    facts: list[Fact] = []
    for row in read.rows:
        try:
            prompt = row.prompt(graph, how_asked(given))
            fact = mmf.Fact(prompt=prompt, target=given.target or row.new_answer, at=constraint_span(row.constraint))
            fact.position()
        except MMFlowError as error:
            if not given.skip_bad:
                raise type(error)(f"{row.told(error)} --skip-bad goes on without it.") from None
            say(f"skipped: {row.told(error)}")
            continue
        facts.append(fact)
    if not facts:
        raise MMFlowError(f"no question of {given.data} is left to edit.")
    return graph, facts, [fact.prompt for fact in facts if fact.prompt.answer is not None]


def _read(given: argparse.Namespace) -> Rows:
    read = read_constrained(given)
    for row in read.rows:
        if not row.constraint:
            raise MMFlowError(
                f"which words of the questions of {given.data} stand for the thing? Its rows do not say it:"
                " --constraint TEXT."
            )
        if not (given.target or row.new_answer):
            raise MMFlowError(
                f"what is the new answer of question {row.question.key}? {given.data} has none (replaced_answers):"
                " --target TEXT."
            )
    return read
