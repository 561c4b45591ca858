"""Question files: the paper's CSV columns (GQA), or JSON lines with the same fields; every bad row named by its line.

One schema for both; `read_questions` states it. Source: Cross-modal Information Flow.
"""

from __future__ import annotations

from collections.abc import Collection
from os import PathLike
from pathlib import Path

from nnsight_mmflow._errors import DataError
from nnsight_mmflow.data.question_rows import questions_of_rows
from nnsight_mmflow.data.questions import Question
from nnsight_mmflow.files.rows import read_rows
from nnsight_mmflow.files.user_files import checked_file, checked_folder, in_folder
from nnsight_mmflow.prompts.asked import checked_boxes, checked_options
from nnsight_mmflow.prompts.pictures import check_picture
from nnsight_mmflow.spans.geometry import Box

NEEDED = ("question_id", "img_id", "question", "answer")
OBJECTS = ("central object", "object1", "object2")
SIDES = ("x", "y", "w", "h")
OPTIONS = ("true option", "false option")
LISTS = ("options", "boxes")
# What the released files hold besides, and what no question needs.
UNUSED = (
    *(f"{name} {what}" for name in OBJECTS for what in ("name", "id")),
    "central object attributes",
    "central object question attribute",
    "all objects",
    "all objects attributes",
    "question word",
    "type_semantic",
    "type_structural",
    "operations",
    "operation_1",
    "operation_2",
    "captions",
    "image_w",
    "image_h",
    "full answer",
)
KNOWN = (*OPTIONS, "kind", "type_detailed", *(f"{name} {side}" for name in OBJECTS for side in SIDES), *UNUSED)
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
KINDS = ("ChooseAttr", "ChooseCat", "ChooseRel", "CompareAttr", "LogicalObj", "QueryAttr")
ABSENT = ("", "-", None)


def read_questions(
    file: str | PathLike[str],
    images: str | PathLike[str] | None = None,
    *,
    skip_bad: bool = False,
    ignore: Collection[str] = (),
) -> tuple[list[Question], list[str]]:
    r"""The questions of a file, and what was wrong with the rows that were skipped.

    Fields, as columns of a CSV (UTF-8, with commas) or as fields of JSON lines (a file that ends in .jsonl, .ndjson or
    .json; one object on each line):

    - `question_id`, `img_id`: text (leading zeros count) or a whole number; each question has its own id.
    - `question`, `answer`: text.
    - `options`: [true, false], two texts that differ; or, as the paper's files have it, `true option` and
      `false option`.
    - `boxes`: [[x0, y0, x1, y1], ...] in pixels of the upright picture; or, as the paper's files have it,
      `central object x`, `... y`, `... w` and `... h`, or the same of `object1` and `object2`.
    - `kind`: the question's type, as text.

    In a CSV, `options` and `boxes` are JSON in the cell. "-" and nothing mean that a field is absent. The other columns
    of the released files are known and not used; any other field is refused.

    Args:
        file: CSV or JSON lines.
        images: a folder in which pictures are looked up by id, with or without their ending; each must be there, be a
            picture, and lie in the folder. None checks none.
        skip_bad: skip bad rows instead of raising.
        ignore: names of further fields, to be left out.

    Raises:
        DataError: the file cannot be read, or rows are bad and `skip_bad` is not set; each is named with its line.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> import nnsight_mmflow as mmf
        >>> file = Path(mkdtemp()) / "mine.csv"
        >>> _ = file.write_text("question_id,img_id,question,answer\n007,1,Is it red?,yes\n")
        >>> mmf.data.read_questions(file)[0][0].key
        '007'
    """
    path, folder = checked_file(file), checked_folder(images)
    rows = read_rows(path, NEEDED, KNOWN, ignore, LISTS)
    return questions_of_rows(path, rows, lambda row, line: _question(row, line, path, folder), "question_id", skip_bad)


def _question(row: dict[str, object], line: int, file: Path, folder: Path | None) -> Question:
    missing = [name for name in NEEDED if row.get(name) is None or row[name] == ""]
    if missing:
        raise DataError(f"{', '.join(missing)} is empty")
    identity = _identity(row, "img_id")
    named = [kind for kind in KINDS if file.stem.endswith(kind)]
    return Question(
        key=_identity(row, "question_id"),
        image=identity if folder is None else _image(folder, identity),
        question=_text(row, "question"),
        answer=_text(row, "answer"),
        options=_options(row),
        boxes=_boxes(row),
        kind=_text(row, "kind") or (named[0] if named else _text(row, "type_detailed")),
        line=line,
    )


def _text(row: dict[str, object], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{name} is {type(value).__name__} ({value!r:.80}), expected text")
    if value and not value.strip():
        raise DataError(f"{name} is blank")
    return value


def _identity(row: dict[str, object], name: str) -> str:
    value = row[name]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{name} is {type(value).__name__} ({value!r:.80}), expected text or a whole number")
    return _text(row, name)


def _options(row: dict[str, object]) -> tuple[str, str] | None:
    listed, (true, false) = row.get("options"), (row.get(name) for name in OPTIONS)
    there = [name for name, value in zip(OPTIONS, (true, false), strict=True) if value not in ABSENT]
    if listed is not None:
        if there:
            raise DataError(f"has options and {there[0]} both: keep one of them")
        return checked_options(listed)
    if len(there) == 1:
        raise DataError(f"has a {there[0]} alone; options are two, true and false")
    return checked_options((true, false)) if there else None


def _boxes(row: dict[str, object]) -> tuple[Box, ...]:
    named = tuple(box for name in OBJECTS if (box := _box(row, name)))
    listed = row.get("boxes")
    if listed is not None and named:
        raise DataError("has boxes and the box of an object both: keep one of them")
    return named if listed is None else checked_boxes(listed)


def _box(row: dict[str, object], name: str) -> Box | None:
    values = [row.get(f"{name} {side}") for side in SIDES]
    if all(value in ABSENT for value in values):
        return None
    try:
        if any(isinstance(value, bool) for value in values):
            raise TypeError
        x, y, width, height = (float(value) for value in values)  # type: ignore[arg-type]
        (box,) = checked_boxes([(x, y, x + width, y + height)]) if width > 0 and height > 0 else [None]
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"the box of {name} is {values} (x, y, w, h), which are not four numbers") from None
    if box is None:
        raise DataError(f"the box of {name} is {width:g} wide and {height:g} high")
    return box


def _image(folder: Path, identity: str) -> Path:
    """The picture of that id: the file itself, or the one with an ending of pictures.

    Raises:
        DataError: it is not there, lies outside the folder, could be one of several, or is no picture.
    """
    endings = ("", *ENDINGS, *(ending.upper() for ending in ENDINGS))
    try:
        there = [path for ending in endings if (path := in_folder(folder, identity + ending)).is_file()]
        if not there:
            raise DataError(f"image {identity!r:.200} is missing in {folder} (tried {', '.join(ENDINGS)})")
        others = [path for path in there if not path.samefile(there[0])]
    except OSError as error:
        raise DataError(f"image {identity!r:.200} cannot be looked up in {folder} ({error})") from None
    if others:
        raise DataError(f"image {identity!r} is {there[0].name} or {others[0].name}: write the ending in img_id")
    check_picture(there[0])
    return there[0]
