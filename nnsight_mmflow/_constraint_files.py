"""Reads VQA-Constraints as it was released (OK-VQA, Movies, Known), or our own JSON lines; names its known defects.

The files are not redistributable and are not shipped: users load their own copy. They hold no answers: those are joined
from a mapping or from the files that hold them. Source: spec causal-trace, sections 1.2 and 1.5.
"""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

from nnsight_mmflow._constraints import Constraint, ConstraintQuestion, joined_answers
from nnsight_mmflow._errors import DataError
from nnsight_mmflow._questions import ENDINGS, refuse_bad_rows

# By the columns that tell them apart: (source, the column that names the subject).
FORMS = {"subject": "known", "director": "movies"}
NEEDED = ("question", "main_entity", "image_url")
Answers = Mapping[str, Sequence[str] | str]


def read_constraint_questions(
    file: str | PathLike[str],
    images: str | PathLike[str] | None = None,
    answers: Answers | str | PathLike[str] | None = None,
    *,
    candidate: int = 0,
    replacement: str = "",
    skip_bad: bool = False,
) -> tuple[list[ConstraintQuestion], list[str]]:
    r"""The questions of a VQA-Constraints file, and what was wrong with the rows that were skipped.

    Args:
        file: a released CSV (okvqa.csv, multimodal_known.csv or multimodal_movies.csv, told apart by their columns), or
            JSON lines as `write_constraint_questions` writes them.
        images: the folder that `image_url` is relative to; each must be there. None checks none.
        answers: by key, subject (Known and Movies) or question; or a JSON file with such a mapping, or with ROME's
            known facts (a list of objects with subject and attribute).
        candidate: which picture to take where `image_url` names a folder of candidates, counted from 0 in the order of
            their numbers.
        replacement: what may stand for the visual constraint in corrupt runs; mind its number of tokens.
        skip_bad: skip bad rows instead of raising.

    Raises:
        DataError: the file cannot be read, or rows are bad and `skip_bad` is not set; each is named with its line.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> import nnsight_mmflow as mmf
        >>> file = Path(mkdtemp()) / "okvqa.csv"
        >>> _ = file.write_text(",question,main_entity,image_url\n7,Why go to this place?,this place,./a.jpg\n")
        >>> rows, bad = mmf.read_constraint_questions(file)
        >>> rows[0].visual.text
        'this place'
    """
    file = Path(file)
    if not file.is_file():
        raise DataError(f"there is no question file {str(file)!r}.")
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise DataError(f"there is no folder of images {str(folder)!r}.")
    known = _answers(answers)
    rows: Sequence[tuple[int, dict | DataError]] = _lines(file) if file.suffix in (".jsonl", ".json") else _csv(file)
    found, bad = [], []
    for line, row in rows:
        try:
            if isinstance(row, DataError):
                raise row
            made = _own(row) if "visual" in row else _released(row, file)
            image = made.image if folder is None else find_image(folder, str(made.image), candidate)
            right = next(
                (known[name] for name in (made.key, made.subject, made.question) if name in known), made.answers
            )
            found.append(
                replace(made, image=image, answers=joined_answers(right), replacement=replacement or made.replacement)
            )
        except DataError as error:
            bad.append(f"line {line}: {error}")
    if not skip_bad:
        refuse_bad_rows(file, bad, len(found) + len(bad))
    if not found:
        raise DataError(f"{file} holds no usable question" + (f": {bad[0]}" if bad else "."))
    return found, bad


def find_image(folder: Path, name: str, candidate: int = 0) -> Path:
    """The picture that an `image_url` names: a file, or one of the candidates in a folder.

    Folder names are compared in their composed form (the released archives mix both).

    Raises:
        DataError: it is not there, or there are fewer candidates.
    """
    if Path(name).is_absolute() and Path(name).is_file():
        return Path(name)
    path = folder
    for part in Path(name).parts:
        if part in (".", "/"):
            continue
        if not (path / part).exists():
            wanted = unicodedata.normalize("NFC", part)
            near = [one for one in path.iterdir() if unicodedata.normalize("NFC", one.name) == wanted]
            if not near:
                raise DataError(f"image {name!r} is missing in {folder}")
            path = near[0]
        else:
            path = path / part
    if path.is_file():
        return path
    pictures = [one for one in path.iterdir() if one.suffix.lower() in ENDINGS]
    pictures.sort(key=lambda one: ([int(part) for part in one.stem.split("_") if part.isdigit()] or [0], one.name))
    if candidate >= len(pictures):
        raise DataError(f"{path} holds {len(pictures)} picture(s); candidate {candidate}, counted from 0, is not there")
    return pictures[candidate]


def _csv(file: Path) -> list[tuple[int, dict]]:
    with file.open(newline="", encoding="utf-8") as opened:
        reader = csv.DictReader(opened)
        names = reader.fieldnames or ()
        missing = [name for name in NEEDED if name not in names]
        if missing:
            raise DataError(
                f"{file} lacks the column(s) {', '.join(missing)}; it has {', '.join(map(repr, names)) or 'none'}."
                " Expected a VQA-Constraints file: '', question, main_entity, image_url, and subject or director."
            )
        return [(reader.line_num, row) for row in reader]


def _lines(file: Path) -> list[tuple[int, dict | DataError]]:
    rows: list[tuple[int, dict | DataError]] = []
    for line, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if text.strip():
            try:
                rows.append((line, json.loads(text)))
            except json.JSONDecodeError as error:
                rows.append((line, DataError(f"is no JSON ({error})")))
    return rows


def _released(row: dict, file: Path) -> ConstraintQuestion:
    """A row of a released CSV."""
    if None in row or None in row.values():
        raise DataError(f"has {len(row)} fields where the header has another number")
    question, entity = str(row["question"]).strip(), str(row["main_entity"]).strip()
    if not question or not entity:
        raise DataError(f"{'question' if not question else 'main_entity'} is empty")
    source, subject = "okvqa", ""
    for column, name in FORMS.items():
        if column in row:
            source, subject = name, str(row[column]).strip()
    # Some annotations end in a comma that belongs to the sentence.
    visual = Constraint.find(entity.rstrip(","), question)
    number = str(row.get("", "")).strip() or "?"
    return ConstraintQuestion(
        key=f"{source}-{number}",
        image=str(row["image_url"]),
        question=question,
        visual=visual,
        subject=subject,
        source=file.name,
        kind=source,
    )


def _own(row: dict) -> ConstraintQuestion:
    """A row of our own JSON lines."""
    try:
        visual = None if row["visual"] is None else Constraint(**row["visual"])
        textual = tuple(Constraint(**one) for one in row.get("textual", ()))
        lists = {name: joined_answers(row.get(name, ())) for name in ("answers", "replaced_answers")}
        rest = {name: row[name] for name in ("subject", "replacement", "source", "kind") if name in row}
        made = ConstraintQuestion(row["key"], row["image"], row["question"], visual, textual, **rest)
        return replace(made, **lists)  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        raise DataError(f"has not the fields of a ConstraintQuestion ({type(error).__name__}: {error})") from None


def _answers(answers: Answers | str | PathLike[str] | None) -> dict[str, Sequence[str] | str]:
    if answers is None:
        return {}
    if isinstance(answers, Mapping):
        return dict(answers)
    path = Path(answers)
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"no answers can be read from {str(path)!r} ({error}).") from None
    if isinstance(read, list) and all(isinstance(one, dict) and {"subject", "attribute"} <= set(one) for one in read):
        return {str(one["subject"]): str(one["attribute"]).strip() for one in read}
    if isinstance(read, dict) and all(isinstance(one, str | list) for one in read.values()):
        return read
    raise DataError(
        f"{path} is neither a mapping from key, subject or question to answers, nor a list of known facts (objects with"
        " subject and attribute)."
    )
