"""Rows of files as users have them: CSV as spreadsheets and pandas write it, or JSON lines; each with its line.

What is wrong with a single row is told beside it, so that the others can be used; what is wrong with the whole file
(another encoding, a column twice, an unknown column) is an error. Lines end at a line feed alone: other marks that
Unicode counts as line ends, such as U+2028 and U+0085, are characters of a field.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches
from io import StringIO
from pathlib import Path

from nnsight_mmflow._errors import DataError
from nnsight_mmflow.files.user_files import bad_text, json_value, read_text

Row = tuple[int, dict[str, object], str]  # its (first) line, its fields, what is wrong with it
INDEX = ("", "Unnamed: 0")  # pandas' row number, which says nothing


def is_json(file: Path) -> bool:
    """Whether a file is read as JSON lines, by its ending; all others are CSV."""
    return file.suffix.lower() in (".jsonl", ".ndjson", ".json")


def read_rows(
    file: Path,
    needed: Sequence[str],
    known: Collection[str],
    ignore: Collection[str] = (),
    nested: Sequence[str] = (),
    expected: str = "",
) -> Iterator[Row]:
    """The rows of a file, one after another.

    Args:
        file: CSV, or JSON lines if it ends in .jsonl, .ndjson or .json.
        needed: the fields that every row must have.
        known: those that it may have besides.
        ignore: those that it may have and that are left out.
        nested: fields that may hold lists; in a CSV they are JSON in the cell.
        expected: said of the columns where some are missing.

    Raises:
        DataError: the file cannot be read as a whole.
    """
    text = read_text(file)
    allowed = {*needed, *known, *nested, *INDEX}
    rows = _json_rows(text, file) if is_json(file) else _csv_rows(text, file, needed, allowed, ignore, nested, expected)
    for line, row, problem in rows:
        kept = {name: value for name, value in row.items() if name not in ignore}
        yield line, kept, problem or unknown(kept, allowed) or _odd(kept, nested)


def unknown(row: Collection[str], allowed: Collection[str]) -> str:
    """What is wrong with the names of fields: '' if all are known; else each with the nearest one."""
    named = []
    for name in row:
        if name not in allowed:
            near = get_close_matches(name.lower().strip(), [field for field in allowed if field], 1, 0.5)
            named.append(f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    return f"has fields that are not known: {', '.join(named)}; ignore=(...) leaves fields out" if named else ""


def _json_rows(text: str, file: Path) -> Iterator[Row]:
    if text.lstrip().startswith("["):
        raise DataError(
            f"{str(file)!r} is one JSON array; expected JSON lines, one object on each line:"
            ' "".join(json.dumps(row) + "\\n" for row in rows).'
        )
    for line, written in enumerate(text.split("\n"), 1):
        if not written.strip(" \t\r"):
            continue
        problem, value = bad_text(written), None
        if not problem:
            try:
                value = json_value(written)
                problem = "" if isinstance(value, dict) else f"is {type(value).__name__}, not an object with fields"
            except DataError as error:
                problem = f"{error}; each line is one whole object"
        yield line, value if isinstance(value, dict) else {}, problem


def _csv_rows(
    text: str,
    file: Path,
    needed: Sequence[str],
    allowed: Collection[str],
    ignore: Collection[str],
    nested: Sequence[str],
    expected: str,
) -> Iterator[Row]:
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next((row for row in reader if row), [])]
    except csv.Error as error:
        raise DataError(f"the header of {str(file)!r} cannot be read ({error}).") from None
    _check_header(header, file, needed, {*allowed, *ignore}, expected)
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, {}, _csv_problem(error, reader.line_num)
            continue
        if not values:
            continue
        row: dict[str, object] = dict(zip(header, values, strict=False))
        problem = next((f"{name or 'a field'} {why}" for name, value in row.items() if (why := bad_text(value))), "")  # type: ignore[arg-type]
        if len(values) > len(header):
            problem = f"has {len(values) - len(header)} more fields than the header"
        elif len(values) < len(header):
            problem = f"has no field {header[len(values)]!r}"
        for name in nested:
            if not problem and str(row.get(name, "")).strip() in ("", "-"):
                row.pop(name, None)
            elif not problem:
                try:
                    row[name] = json_value(str(row[name]))
                except DataError as error:
                    problem = f"{name} {error}; in a CSV it is JSON in the cell, such as [[0, 0, 8, 8]]"
        yield line, row, problem


def _check_header(
    header: list[str], file: Path, needed: Sequence[str], allowed: Collection[str], expected: str
) -> None:
    held = ", ".join(map(repr if expected else str, header)) or "none"
    wrong = next((problem for name in header if (problem := bad_text(name))), "")
    if wrong:
        raise DataError(f"{str(file)!r}, line 1: the header {wrong}.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{str(file)!r} has the column(s) {', '.join(map(repr, twice))} twice; its columns are {held}.")
    missing = [name for name in needed if name not in header]
    if missing:
        other = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), "")
        why = f" Its columns are divided by {other!r}: save it with commas." if other else ""
        strange = unknown(header, allowed)
        why = why or f" It {strange}." * ("did you mean" in strange)
        raise DataError(f"{file} lacks the column(s) {', '.join(missing)}; it has {held}.{why}{expected}")
    strange = unknown(header, allowed)
    if strange:
        raise DataError(f"{str(file)!r} {strange}.")


def _csv_problem(error: csv.Error, last: int) -> str:
    if "unexpected end" in str(error):
        return f"opens a quote that is never closed, so all to the end (line {last}) is one field"
    if "field limit" in str(error):
        return f"holds a field that is too long ({error})"
    return f"cannot be read as CSV ({error})"


def _odd(row: dict[str, object], nested: Sequence[str]) -> str:
    """What is wrong with the values of a row, as far as no meaning is needed."""
    for name, value in row.items():
        if isinstance(value, list | dict) and name not in nested:
            return f"{name} is {type(value).__name__} ({value!r:.80}), expected text or a number"
        if isinstance(value, str) and (why := bad_text(value)):
            return f"{name} {why}"
    return ""
