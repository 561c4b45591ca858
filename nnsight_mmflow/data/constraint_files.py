"""Reads VQA-Constraints as it was released (OK-VQA, Movies, Known), or our own JSON lines; names its known defects.

The files are not redistributable and are not shipped: users load their own copy. They hold no answers: those are joined
from a mapping or from the files that hold them. Source: VQA-Constraints (arXiv 2406.04236) as released.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

from nnsight_mmflow._errors import DataError
from nnsight_mmflow.data.constraints import Constraint, ConstraintQuestion, joined_answers
from nnsight_mmflow.data.question_files import ENDINGS
from nnsight_mmflow.data.question_rows import questions_of_rows
from nnsight_mmflow.files.rows import INDEX, is_json, read_rows, unknown
from nnsight_mmflow.files.user_files import bad_text, checked_file, checked_folder, in_folder, json_value, read_text
from nnsight_mmflow.prompts.pictures import check_picture

# By the columns that tell them apart: (source, the column that names the subject).
FORMS = {"subject": "known", "director": "movies"}
NEEDED = ("question", "main_entity", "image_url")
EXPECTED = " Expected a VQA-Constraints file: '', question, main_entity, image_url, and subject or director."
# Our own JSON lines.
TEXTS = ("key", "image", "question", "subject", "replacement", "source", "kind")
LISTS = ("visual", "textual", "answers", "replaced_answers")
Answers = Mapping[str, Sequence[str] | str]


def read_constraint_questions(
    file: str | PathLike[str],
    images: str | PathLike[str] | None = None,
    answers: Answers | str | PathLike[str] | None = None,
    *,
    candidate: int = 0,
    replacement: str = "",
    skip_bad: bool = False,
    ignore: Collection[str] = (),
) -> tuple[list[ConstraintQuestion], list[str]]:
    r"""The questions of a VQA-Constraints file, and what was wrong with the rows that were skipped.

    Args:
        file: a released CSV (okvqa.csv, multimodal_known.csv or multimodal_movies.csv, told apart by their columns), or
            JSON lines as `write_constraint_questions` writes them (key, image, question, visual, textual, subject,
            answers, replacement, replaced_answers, source, kind). Any other field is refused.
        images: the folder that `image_url` is relative to; each must be there, and lie in it. None checks none.
        answers: by key, subject (Known and Movies) or question; or a JSON file with such a mapping, or with ROME's
            known facts (a list of objects with subject and attribute).
        candidate: which picture to take where `image_url` names a folder of candidates, counted from 0 in the order of
            their numbers.
        replacement: what may stand for the visual constraint in corrupt runs; mind its number of tokens.
        skip_bad: skip bad rows instead of raising.
        ignore: names of further fields, to be left out.

    Raises:
        DataError: the file cannot be read, or rows are bad and `skip_bad` is not set; each is named with its line.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> import nnsight_mmflow as mmf
        >>> file = Path(mkdtemp()) / "okvqa.csv"
        >>> _ = file.write_text(",question,main_entity,image_url\n7,Why go to this place?,this place,./a.jpg\n")
        >>> rows, bad = mmf.data.read_constraint_questions(file)
        >>> rows[0].visual.text
        'this place'
    """
    path, folder = checked_file(file), checked_folder(images)
    if not isinstance(candidate, int) or isinstance(candidate, bool) or candidate < 0:
        raise DataError(f"candidate is which picture to take, counted from 0, not {candidate!r}.")
    known = _answers(answers)
    needed, allowed = ((), (*NEEDED, *FORMS, *TEXTS)) if is_json(path) else (NEEDED, tuple(FORMS))

    def question_of(row: dict, line: int) -> ConstraintQuestion:
        asked = _own(row) if "visual" in row else _released(row, path, line)
        image = asked.image
        if folder is not None:
            image = find_image(folder, str(asked.image), candidate)
            check_picture(image)
        right = next(
            (known[name] for name in (asked.key, asked.subject, asked.question) if name in known), asked.answers
        )
        return replace(asked, image=image, answers=joined_answers(right), replacement=replacement or asked.replacement)

    rows = read_rows(path, needed, allowed, ignore, LISTS if is_json(path) else (), EXPECTED)
    return questions_of_rows(path, rows, question_of, "key", skip_bad)


def find_image(folder: Path, name: str, candidate: int = 0) -> Path:
    """The picture that an `image_url` names: a file, or one of the candidates in a folder.

    Folder names are compared in their composed form (the released archives mix both).

    Raises:
        DataError: it is not there, or there are fewer candidates.
    """
    try:
        path = _spelled(folder, name)
        if path.is_dir():
            pictures = [file for file in path.iterdir() if file.suffix.lower() in ENDINGS]
            pictures.sort(key=_number)
            if candidate >= len(pictures):
                raise DataError(
                    f"{path} holds {len(pictures)} picture(s); candidate {candidate}, counted from 0, is not there"
                )
            path = pictures[candidate]
    except OSError as error:
        raise DataError(f"image {name!r:.200} cannot be looked up in {folder} ({error})") from None
    return in_folder(folder, str(path.relative_to(folder)))


def _number(path: Path) -> tuple[list[int], str]:
    """The numbers in a picture's name, so that Image_10 comes after Image_2."""
    return [int(part) for part in path.stem.split("_") if part.isdecimal()] or [0], path.name


def _spelled(folder: Path, name: str) -> Path:
    """The path as it is spelled on disk, accents composed or not."""
    if in_folder(folder, name).exists():
        return folder / name
    path = folder
    for part in Path(name).parts:
        wanted = unicodedata.normalize("NFC", part)
        inside = path.iterdir() if path.is_dir() else iter(())
        near = [file for file in inside if unicodedata.normalize("NFC", file.name) == wanted]
        if not near:
            raise DataError(f"image {name!r} is missing in {folder}")
        path = near[0]
    return path


def _released(row: dict, file: Path, line: int) -> ConstraintQuestion:
    """A row of a released CSV."""
    missing = [name for name in NEEDED if not isinstance(row.get(name), str) or not str(row[name]).strip()]
    if missing:
        raise DataError(f"{missing[0]} is empty or no text")
    question, entity = str(row["question"]).strip(), str(row["main_entity"]).strip()
    source, subject = "okvqa", ""
    for column, name in FORMS.items():
        if column in row:
            source, subject = name, str(row[column]).strip()
    # Some annotations end in a comma that belongs to the sentence.
    visual = Constraint.find(entity.rstrip(","), question)
    number = next((str(row[name]).strip() for name in INDEX if name in row), "") or f"line {line}"
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
    strange = unknown(row, (*TEXTS, *LISTS))
    if strange:
        raise DataError(strange)
    try:
        wrong = [name for name in TEXTS if name in row and not isinstance(row[name], str)]
        wrong += [name for name in TEXTS[:3] if not str(row[name]).strip()]
        if wrong:
            raise DataError(f"{wrong[0]} is {type(row[wrong[0]]).__name__} ({row[wrong[0]]!r:.80}), expected text")
        visual = None if row["visual"] is None else _constraint(row["visual"])
        textual = tuple(_constraint(constraint) for constraint in row.get("textual", ()))
        lists = {name: _texts(name, row.get(name, [])) for name in ("answers", "replaced_answers")}
        rest = {name: row[name] for name in ("subject", "replacement", "source", "kind") if name in row}
        question = ConstraintQuestion(row["key"], row["image"], row["question"], visual, textual, **rest)
        return replace(question, **lists)  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        raise DataError(f"has not the fields of a ConstraintQuestion ({type(error).__name__}: {error})") from None


def _constraint(value: object) -> Constraint:
    if not isinstance(value, dict) or set(value) != {"text", "start", "end"}:
        raise DataError(f"the constraint is {value!r:.80}, expected text, start and end")
    places = [value["start"], value["end"]]
    if not isinstance(value["text"], str) or not all(type(place) is int and place >= 0 for place in places):
        raise DataError(f"the constraint is {value!r:.80}, expected text, and start and end in characters")
    return Constraint(**value)


def _texts(name: str, value: object) -> tuple[str, ...]:
    """One text or a list of them, as a tuple."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) and text.strip() for text in values):
        raise DataError(f"{name} is {value!r:.80}, expected a text or a list of texts")
    fault = next((problem for text in values if (problem := bad_text(text))), "")
    if fault:
        raise DataError(f"{name} {fault}")
    return tuple(values)


def _answers(answers: object) -> dict[str, tuple[str, ...]]:
    if answers is None:
        return {}
    if isinstance(answers, Mapping):
        return {name: _texts(f"the answer of {name!r}", _listed(answer)) for name, answer in answers.items()}
    path = Path(answers)  # type: ignore[arg-type]
    try:
        read = json_value(read_text(path))
    except DataError as error:
        raise DataError(f"no answers can be read from {str(path)!r} ({error}).") from None
    if isinstance(read, list) and all(isinstance(row, dict) and {"subject", "attribute"} <= set(row) for row in read):
        return {str(row["subject"]): _texts("attribute", _stripped(row["attribute"])) for row in read}
    if isinstance(read, dict) and all(isinstance(text, str | list) for text in read.values()):
        return {name: _texts(f"the answer of {name!r}", text) for name, text in read.items()}
    raise DataError(
        f"{path} is neither a mapping from key, subject or question to answers, nor a list of known facts (objects with"
        " subject and attribute)."
    )


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value
