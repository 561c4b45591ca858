"""A contact sheet of nano's world, and its questions as files that `mmflow flow --data ... --images ...` reads."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from nnsight_mmflow.data.questions import Question
from nnsight_mmflow.files.output import output_folder, write_figure, write_text, written
from nnsight_mmflow.nano.questions import KINDS, samples


def write_samples(folder: Path, per_kind: int = 5) -> Path:
    """Writes contact_sheet.png, questions.jsonl and images/ into the folder, and returns it."""
    from nnsight_mmflow._figure import ShownFigure

    images = output_folder(folder, "images")
    figure = ShownFigure(figsize=(2.5 * per_kind, 2.55 * len(KINDS)), layout="constrained")
    panels = figure.subplots(len(KINDS), per_kind, squeeze=False)
    lines = []
    for kind, row in zip(KINDS, panels, strict=True):
        for question, axes in zip(samples(per_kind * 7, kind)[::7], row, strict=True):
            axes.imshow(question.image, interpolation="nearest")
            axes.set_axis_off()
            asked = textwrap.fill(question.question, 30)
            axes.set_title(f"{kind}\n{asked}\n{question.answer}", fontsize=8)
            with written(images / f"{question.key}.png") as beside:
                question.image.save(beside)  # type: ignore[union-attr]
            lines.append(json.dumps(_as_row(question)) + "\n")
    write_figure(folder / "contact_sheet.png", figure, dpi=90)
    write_text(folder / "questions.jsonl", "".join(lines))
    return folder


def _as_row(question: Question) -> dict:
    """A question with the field names of the paper's files."""
    row: dict[str, object] = {
        "question_id": question.key,
        "img_id": question.key,
        "question": question.question,
        "answer": question.answer,
        "kind": question.kind,
    }
    if question.options:
        row["true option"], row["false option"] = question.options
    names = ("object1", "object2") if len(question.boxes) > 1 else ("central object",)
    for name, (left, top, right, bottom) in zip(names, question.boxes, strict=False):
        row |= {f"{name} x": left, f"{name} y": top, f"{name} w": right - left, f"{name} h": bottom - top}
    return row
