r"""Questions with constraints: the words of a question that the model must use to find the answer.

A visual constraint refers to something in the picture ("this director"); text constraints narrow the answer down
("2006"). Source: Understanding Information Storage and Transfer in MLLMs (arXiv 2406.04236).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import DataError, PromptError
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.files.output import write_text

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.trace.corruption import Corruption
    from nnsight_mmflow.prompts.prompt import Prompt


@dataclass(frozen=True)
class Constraint:
    """Words of a question: text, and where they stand in it (characters start to end)."""

    text: str
    start: int
    end: int

    @classmethod
    def find(cls, text: str, question: str) -> Constraint:
        """The first place where the text stands in the question.

        Raises:
            DataError: it does not stand there.
        """
        start = question.find(text) if text else -1
        if start < 0:
            raise DataError(f"the constraint {text!r} does not stand in the question {question!r} (case counts)")
        return cls(text, start, start + len(text))


@dataclass(frozen=True)
class ConstraintQuestion:
    """One question with its constraints.

    Attributes:
        key: its id, as text.
        image: a picture, or the path of one.
        question: what is asked, without the image or a template.
        visual: the visual constraint; None where the question names its subject.
        textual: the constraints that the question's words give.
        subject: what the question is about, by name, where the data says.
        answers: those that count as right; the first stands for all.
        replacement: what may stand for the visual constraint (else the first textual one) in a corrupt run.
        replaced_answers: the answers of the corrupt question, where known.
        source: where the row comes from.
        kind: the question's type, for results.
    """

    key: str
    image: str | Path | Picture
    question: str
    visual: Constraint | None
    textual: tuple[Constraint, ...] = ()
    subject: str = ""
    answers: tuple[str, ...] = ()
    replacement: str = ""
    replaced_answers: tuple[str, ...] = ()
    source: str = ""
    kind: str = ""

    def __post_init__(self) -> None:
        """Refuses constraints that are not what stands at their place in the question."""
        if not self.constraints:
            raise DataError(f"question {self.key!r} has no constraint.")
        for part in self.constraints:
            there = self.question[part.start : part.end]
            if there != part.text or not part.text:
                raise DataError(
                    f"question {self.key!r}: characters {part.start} to {part.end} of {self.question!r} are {there!r},"
                    f" not the constraint {part.text!r}."
                )

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """All constraints, the visual one first."""
        return (*([self.visual] if self.visual else []), *self.textual)

    def prompt(self, graph: Graph, **kwargs: object) -> Prompt:
        """The question as a prompt; keyword arguments go to graph.prompt."""
        return graph.prompt(
            self.image,  # type: ignore[arg-type]
            self.question,
            self.answers[0] if self.answers else None,
            key=self.key,
            kind=self.kind,
            **kwargs,  # type: ignore[arg-type]
        )

    def corrupted(self, graph: Graph, prompt: Prompt, replacement: str = "") -> Corruption:
        """The prompt with its constraint replaced by a phrase of as many tokens.

        Raises:
            PromptError: there is no phrase, or it has another number of tokens.
        """
        from nnsight_mmflow.patterns.trace.corruption import replace_phrase

        phrase = replacement or self.replacement
        if not phrase:
            raise PromptError(
                f"question {self.key!r} has no replacement: give one, of as many tokens as its constraint."
            )
        return replace_phrase(graph, prompt, self.constraints[0].text, phrase)


@checked
def write_constraint_questions(questions: Iterable[ConstraintQuestion], file: str | PathLike[str]) -> Path:
    """Writes questions whose images are paths as JSON lines, in the form that `read_constraint_questions` reads."""
    lines = []
    for question in questions:
        if not isinstance(question.image, str | Path):
            raise DataError(f"question {question.key!r} holds a picture, not the path of one: save the picture first.")
        lines.append(json.dumps({**asdict(replace(question, image="")), "image": str(question.image)}))
    return write_text(file, "".join(line + "\n" for line in lines))


def joined_answers(answers: Sequence[str] | str) -> tuple[str, ...]:
    """Answers as a tuple, whether one came or several."""
    return (answers,) if isinstance(answers, str) else tuple(answers)
