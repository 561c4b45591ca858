"""Questions about pictures, and the prompts they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.spans.geometry import Box

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt


@dataclass(frozen=True)
class Question:
    """One row of a question file.

    Attributes:
        key: question_id, as text (leading zeros count).
        image: the picture: a path, or the id where no folder of images was given, or a picture itself.
        question: what is asked, without the image or a template.
        answer: the right answer.
        options: (true, false) option, where the question offers two.
        boxes: (x0, y0, x1, y1) of what it is about, in pixels of the upright picture.
        kind: the question's type, by which results are grouped.
        line: where it stands in its file.
    """

    key: str
    image: str | Path | Picture
    question: str
    answer: str
    options: tuple[str, str] | None = None
    boxes: tuple[Box, ...] = ()
    kind: str = ""
    line: int = 0


@checked
def prompts_of(
    graph: Graph, questions: Sequence[Question], *, bad: list[str] | None = None, **kwargs: object
) -> list[Prompt]:
    """A prompt for each question; keyword arguments (template, instruction, pad_to_square) go to graph.prompt.

    Args:
        graph: the model.
        questions: as `read_questions` or `nano.samples` gives them.
        bad: where to add what is wrong with questions that no prompt can be made of; they are then left out. None: the
            first is an error.
        **kwargs: for graph.prompt.

    Raises:
        MMFlowError: a question that no prompt can be made of, by its id and line.
    """
    prompts = []
    for row in questions:
        try:
            prompts.append(
                graph.prompt(
                    row.image,  # type: ignore[arg-type]
                    row.question,
                    row.answer,
                    options=row.options,
                    boxes=row.boxes,
                    key=row.key,
                    kind=row.kind,
                    **kwargs,  # type: ignore[arg-type]
                )
            )
        except MMFlowError as error:
            problem = f"question {row.key or '?'}{f' (line {row.line})' if row.line else ''}: {error}"
            if bad is None:
                raise type(error)(problem) from None
            bad.append(problem)
    return prompts
