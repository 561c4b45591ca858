"""Question files: the paper's CSV columns (GQA), or JSON lines with the same fields; every bad row named by its line.

Source: Cross-modal Information Flow, spec section 6.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from nnsight_mmflow._arguments import checked
from nnsight_mmflow._errors import DataError, MMFlowError
from nnsight_mmflow._geometry import Box

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from nnsight_mmflow._graph import Graph
    from nnsight_mmflow._prompt import Prompt

NEEDED = ("question_id", "img_id", "question", "answer")
OBJECTS = ("central object", "object1", "object2")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
KINDS = ("ChooseAttr", "ChooseCat", "ChooseRel", "CompareAttr", "LogicalObj", "QueryAttr")
ABSENT = ("", "-", None)


@dataclass(frozen=True)
class Question:
    """One row of a question file.

    Attributes:
        key: question_id, as text (leading zeros count).
        image: the picture: a path, or the id where no folder of images was given, or a picture itself.
        question: the question.
        answer: the right answer.
        options: (true, false) option, where the question offers two.
        boxes: (x0, y0, x1, y1) of what it is about, in pixels of the original picture.
        kind: the question's type.
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


def read_questions(
    file: str | PathLike[str], images: str | PathLike[str] | None = None, *, skip_bad: bool = False
) -> tuple[list[Question], list[str]]:
    r"""The questions of a file, and what was wrong with the rows that were skipped.

    Args:
        file: a CSV with the columns of the paper's released files (question_id, img_id, question, answer, true and
            false option, object boxes), or JSON lines with the same fields.
        images: a folder in which pictures are looked up by id; each must be there and readable. None checks none.
        skip_bad: skip bad rows instead of raising.

    Raises:
        DataError: the file cannot be read, or rows are bad and `skip_bad` is not set; each is named with its line.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> import nnsight_mmflow as mmf
        >>> file = Path(mkdtemp()) / "mine.csv"
        >>> _ = file.write_text("question_id,img_id,question,answer\n007,1,Is it red?,yes\n")
        >>> mmf.read_questions(file)[0][0].key
        '007'
    """
    file = Path(file)
    if not file.is_file():
        raise DataError(f"there is no question file {str(file)!r}.")
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise DataError(f"there is no folder of images {str(folder)!r}.")
    found, bad = [], []
    for line, row, problem in _rows(file):
        try:
            if problem:
                raise DataError(problem)
            found.append(_question(row, line, file, folder))
        except DataError as error:
            bad.append(f"line {line}: {error}")
    if not skip_bad:
        refuse_bad_rows(file, bad, len(bad) + len(found))
    if not found:
        raise DataError(
            f"{file} holds no usable question" + (f"; {len(bad)} bad rows, the first: {bad[0]}" if bad else ".")
        )
    return found, bad


def refuse_bad_rows(file: Path, bad: Sequence[str], total: int) -> None:
    """Raises if there are bad rows; each is told, up to ten.

    Raises:
        DataError: there are.
    """
    if bad:
        shown = "\n  ".join(bad[:10]) + (f"\n  ... and {len(bad) - 10} more" if len(bad) > 10 else "")
        raise DataError(
            f"{len(bad)} of {total} rows of {file} are bad:\n  {shown}\n"
            "Use --skip-bad (skip_bad=True) to go on without them."
        )


@checked
def prompts_of(graph: Graph, questions: Sequence[Question], **kwargs: object) -> list[Prompt]:
    """A prompt for each question; keyword arguments (template, instruction, pad_to_square) go to graph.prompt."""
    made = []
    for row in questions:
        try:
            made.append(
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
            raise type(error)(
                f"question {row.key or '?'}{f' (line {row.line})' if row.line else ''}: {error}"
            ) from None
    return made


def _rows(file: Path) -> Iterator[tuple[int, dict, str]]:
    """(line, row, what is wrong with it) for each row of the file."""
    if file.suffix in (".jsonl", ".json"):
        for line, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                yield line, {}, f"is no JSON ({error})"
                continue
            yield line, row, "" if isinstance(row, dict) else f"is {type(row).__name__}, not an object with fields"
        return
    with file.open(newline="", encoding="utf-8") as opened:
        reader = csv.DictReader(opened)
        missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(
                f"{file} lacks the column(s) {', '.join(missing)};"
                f" it has {', '.join(reader.fieldnames or ()) or 'none'}."
            )
        for row in reader:
            surplus, short = row.pop(None, None), [name for name, value in row.items() if value is None]
            problem = f"has {len(surplus)} more fields than the header" if surplus else ""
            yield reader.line_num, row, problem or (f"has no field {short[0]!r}" if short else "")


def _question(row: dict, line: int, file: Path, folder: Path | None) -> Question:
    missing = [name for name in NEEDED if row.get(name) in ("", None)]
    if missing:
        raise DataError(f"{', '.join(missing)} is empty")
    identity = str(row["img_id"])
    true, false = row.get("true option"), row.get("false option")
    named = [kind for kind in KINDS if file.stem.endswith(kind)]
    return Question(
        key=str(row["question_id"]),
        image=identity if folder is None else _image(folder, identity),
        question=str(row["question"]),
        answer=str(row["answer"]),
        options=None if true in ABSENT or false in ABSENT else (str(true), str(false)),
        boxes=tuple(box for name in OBJECTS if (box := _box(row, name))),
        kind=str(row.get("kind") or (named[0] if named else row.get("type_detailed") or "")),
        line=line,
    )


def _box(row: dict, name: str) -> Box | None:
    values = [row.get(f"{name} {side}") for side in ("x", "y", "w", "h")]
    if all(value in ABSENT for value in values):
        return None
    try:
        x, y, width, height = (float(value) for value in values)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DataError(f"the box of {name} is {values} (x, y, w, h), which are not four numbers") from None
    if width <= 0 or height <= 0:
        raise DataError(f"the box of {name} is {width:g} wide and {height:g} high")
    return x, y, x + width, y + height


def _image(folder: Path, identity: str) -> Path:
    from PIL import Image

    tried = [folder / f"{identity}{ending}" for ending in ("", *ENDINGS)]
    path = next((path for path in tried if path.is_file()), None)
    if path is None:
        raise DataError(f"image {identity!r} is missing in {folder} (tried {', '.join(ENDINGS)})")
    try:
        with Image.open(path) as opened:
            opened.verify()
    except (OSError, SyntaxError) as error:
        raise DataError(f"image {path} cannot be read ({error})") from None
    return path
