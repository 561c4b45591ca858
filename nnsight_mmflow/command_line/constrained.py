"""Questions of a file with the words that are replaced or edited: VQA-Constraints, or a question file."""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.command_line.shared import Asking

if TYPE_CHECKING:
    from nnsight_mmflow.data.constraints import ConstraintQuestion
    from nnsight_mmflow.data.questions import Question
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt


@dataclass(frozen=True)
class Row:
    """A question of a file.

    Attributes:
        question: as it was read.
        constraint: the words that stand for the thing; "" where none are named.
        replacement: what the file says may stand for them.
        new_answer: what is right then, where the file says it.
    """

    question: Question | ConstraintQuestion
    constraint: str
    replacement: str = ""
    new_answer: str = ""

    def prompt(self, graph: Graph, settings: Asking) -> Prompt:
        """The question as a prompt."""
        from nnsight_mmflow.data.questions import Question, prompts_of

        if isinstance(self.question, Question):
            return prompts_of(graph, [self.question], **settings)[0]
        return self.question.prompt(graph, **settings)

    def told(self, error: MMFlowError) -> str:
        """An error, with the question that it is of."""
        return str(error) if str(error).startswith("question ") else f"question {self.question.key}: {error}"


@dataclass(frozen=True)
class Rows:
    """The questions of a file, and what was wrong with those that were skipped."""

    rows: list[Row]
    skipped: list[str]


def read_constrained(given: argparse.Namespace) -> Rows:
    """The rows of `--data`, up to `--limit`.

    Raises:
        MMFlowError: the file cannot be read, or an option says nothing to a file of its kind.
    """
    from nnsight_mmflow.data.constraint_files import read_constraint_questions
    from nnsight_mmflow.data.question_files import read_questions

    if is_question_file(given.data):
        if not given.images:
            raise MMFlowError("--data needs --images DIR, the folder in which pictures are looked up by img_id.")
        if given.answers:
            raise MMFlowError(f"--answers says nothing to {given.data}, which has the answer of each question.")
        questions, bad = read_questions(given.data, given.images, skip_bad=given.skip_bad)
        return Rows([Row(question, given.constraint or "") for question in questions[: given.limit]], bad)
    if given.constraint:
        raise MMFlowError(f"--constraint says nothing to {given.data}, which names the constraint of each question.")
    constrained, bad = read_constraint_questions(given.data, given.images, given.answers, skip_bad=given.skip_bad)
    rows = [
        Row(question, question.constraints[0].text, question.replacement, (question.replaced_answers or ("",))[0])
        for question in constrained[: given.limit]
    ]
    return Rows(rows, bad)


def is_question_file(file: str) -> bool:
    """Whether pictures are named by img_id, as `mmflow flow` reads them; a broken line is told by who reads it."""
    from nnsight_mmflow.files.rows import is_json
    from nnsight_mmflow.files.user_files import checked_file, read_text

    path: Path = checked_file(file)
    first = next((line for line in read_text(path).split("\n") if line.strip()), "")
    try:
        fields = json.loads(first) if is_json(path) else next(csv.reader([first]), [])
    except (ValueError, csv.Error):
        return False
    return isinstance(fields, dict | list) and "img_id" in fields
