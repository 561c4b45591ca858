"""How often nano is right, with its image, with a blank one, and with another question's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nnsight_mmflow.model.generation_settings import plain_settings
from nnsight_mmflow.nano.questions import KINDS, samples

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from nnsight_mmflow.data.questions import Question
    from nnsight_mmflow.model.graph import Graph

# What guessing gives on the held-out sets: one of eight colours, or one of two answers.
GUESSING = {"QueryAttr": 1 / 8, **dict.fromkeys((*KINDS[1:6], "ChooseCat-both"), 1 / 2)}
PICTURES = ("own", "blank", "swapped")


def evaluate(graph: Graph, limit: int = 10_000, batch_size: int = 50) -> dict[str, dict[str, float]]:
    """Accuracy by question type and picture: its own, a blank one, or that of another question of the type.

    Args:
        graph: nano, or another graph over its vocabulary.
        limit: how many questions of each type at most.
        batch_size: questions in one forward.
    """
    result: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        questions = samples(min(limit, _held(kind)), kind)
        result[kind] = {}
        for which in PICTURES:
            pictures = _pictures(questions, which)
            result[kind][which] = _accuracy(graph, questions, pictures, batch_size)
    return result


def _held(kind: str) -> int:
    from nnsight_mmflow.nano.questions import HELD_OUT

    return sum(f'"kind": "{kind}"' in line for line in HELD_OUT.read_text().splitlines())


def _pictures(questions: list[Question], which: str) -> list[Picture]:
    from PIL import Image

    from nnsight_mmflow.nano.world import BACKGROUND, SIZE

    own = [question.image for question in questions]
    if which == "blank":
        return [Image.new("RGB", (SIZE, SIZE), (BACKGROUND,) * 3)] * len(own)
    half = len(own) // 2  # far enough that a fact's picture shows another place
    return own if which == "own" else [*own[half:], *own[:half]]  # type: ignore[list-item]


def _accuracy(graph: Graph, questions: list[Question], pictures: list[Picture], batch_size: int) -> float:
    """The share of questions whose greedy answer is the right word and then ends.

    What is the same question about the same picture is asked once: of blank pictures most are.
    """
    told: dict[tuple[int, str], str] = {}
    asked = [(id(picture), row.question) for picture, row in zip(pictures, questions, strict=True)]
    different = list(dict(zip(asked, pictures, strict=True)).items())
    for start in range(0, len(different), batch_size):
        part = different[start : start + batch_size]
        batch = graph.batch([graph.prompt(picture, question) for (_, question), picture in part])
        inputs = graph.checked(batch)
        with torch.no_grad():
            ids = graph.adapter.model.generate(**inputs, **plain_settings(graph, max_new_tokens=4))
        answers = graph.processor.tokenizer.batch_decode(
            ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        told |= {one: answer.strip().lower() for (one, _), answer in zip(part, answers, strict=True)}
    return sum(told[one] == row.answer for one, row in zip(asked, questions, strict=True)) / len(questions)


def as_table(accuracies: dict[str, dict[str, float]]) -> str:
    """The accuracies as a table in Markdown, with what guessing would give."""
    lines = ["| question type | own picture | blank | swapped | guessing |", "|---|---|---|---|---|"]
    for kind, by_picture in accuracies.items():
        guess = f"{GUESSING[kind]:.1%}" if kind in GUESSING else "-"
        cells = " | ".join(f"{by_picture[which]:.1%}" for which in PICTURES)
        lines.append(f"| {kind} | {cells} | {guess} |")
    return "\n".join(lines)
