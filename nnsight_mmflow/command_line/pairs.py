"""Clean and corrupt runs for the commands that compare them: of one picture, of a file, or nano's facts."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.command_line.constrained import Row, Rows, read_constrained
from nnsight_mmflow.command_line.experiments import EXPERIMENTS
from nnsight_mmflow.command_line.incomplete import WAYS, refuse_no_corruption
from nnsight_mmflow.command_line.shared import graph_after, how_asked

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.trace.corruption import Corruption
    from nnsight_mmflow.prompts.prompt import Prompt

# Nano's runs: name, way, constraints.
RUNS = (
    ("by_flag", "flag", 1),
    ("by_phrase", "phrase", 1),
    ("by_name", "name", 1),
    ("two_constraints_by_flag", "flag", 2),
    ("two_constraints_by_season", "season", 2),
)


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupt runs.

    Attributes:
        clean: the prompts.
        corrupt: for each its corrupt run.
        same_answer: for each another run with the same answer, as a control; None where there is none.
    """

    clean: list[Prompt] = field(default_factory=list)
    corrupt: list[Corruption] = field(default_factory=list)
    same_answer: list[Corruption] | None = None


def graph_and_pairs(given: argparse.Namespace) -> tuple[Graph, dict[str, Pairs]]:
    """The model, and by name the pairs of each run: one without a name, or nano's five.

    Raises:
        MMFlowError: the arguments do not go together, or no question of the file is left.
    """
    import nnsight_mmflow as mmf

    graph, read = graph_after(given, _read)
    if given.data:
        return graph, {"": _of_file(graph, read, given)}
    if given.image:
        prompt = graph.prompt(given.image, given.question, given.answer, **how_asked(given))
        return graph, {"": Pairs([prompt], [_corrupted(graph, prompt, given, given.constraint or "")])}
    runs = {}
    for name, way, constraints in RUNS:
        count = given.limit or EXPERIMENTS[given.command].nano
        prompts, corrupt = mmf.nano.trace_pairs(graph, count, way, constraints)
        runs[name] = Pairs(prompts, corrupt, mmf.nano.same_answers(graph, prompts))
    return graph, runs


def _read(given: argparse.Namespace) -> Rows:
    if not given.data:
        return Rows([], [])
    rows = read_constrained(given)
    if not any(getattr(given, name) for name in WAYS) and not any(row.constraint for row in rows.rows):
        refuse_no_corruption()
    return rows


def _of_file(graph: Graph, read: Rows, given: argparse.Namespace) -> Pairs:
    """The pairs of a file's questions; those of which none can be made are told, or skipped."""
    for problem in read.skipped:
        say(f"skipped: {problem}")
    pairs = Pairs()
    for row in read.rows:
        hint = ""
        try:
            prompt = row.prompt(graph, how_asked(given))
            hint = "" if given.blank or given.other_image or given.token else " Or --token WORD."
            corrupt = _corrupted(graph, prompt, given, row.constraint, row)
        except MMFlowError as error:
            if not given.skip_bad:
                raise type(error)(f"{row.told(error)}{hint} --skip-bad goes on without it.") from None
            say(f"skipped: {row.told(error)}")
            continue
        pairs.clean.append(prompt)
        pairs.corrupt.append(corrupt)
    if not pairs.clean:
        raise MMFlowError(f"no question of {given.data} is left: every row was skipped.")
    return pairs


def _corrupted(
    graph: Graph, prompt: Prompt, given: argparse.Namespace, constraint: str, row: Row | None = None
) -> Corruption:
    """The corrupt run that the arguments describe, or the file where they leave it open.

    Raises:
        MMFlowError: it cannot be made.
    """
    from nnsight_mmflow import corruption

    if given.other_image:
        return corruption.other_image(graph, prompt, given.other_image, f"image {given.other_image}")
    if given.blank:
        return corruption.blank_image(graph, prompt)
    if given.token:
        return corruption.repeat_token(graph, prompt, constraint, given.token)
    phrase = given.phrase or (row.replacement if row else "")
    if not phrase:
        raise MMFlowError("it has no replacement: give --phrase TEXT, of as many tokens as its constraint.")
    return corruption.replace_phrase(graph, prompt, constraint, phrase)
