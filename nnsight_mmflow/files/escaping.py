"""What users and models write, made harmless where it is put into Markdown and into tables for spreadsheets."""

from __future__ import annotations

import csv
import re
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

MARKS = re.compile(r"[\\`*\[\]|$~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # an underscore inside a word means nothing
FIRST = re.compile(r"^([#>+=-]|\d+[.)])")  # at the start of a line: a heading, a quotation, a list
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def markdown(text: object) -> str:
    """The text as Markdown shows it: no table cell, heading, link, picture, HTML or formula begins in it."""
    plain = " ".join(str(text).split())
    plain = MARKS.sub(r"\\\g<0>", plain.replace("&", "&amp;").replace("<", "&lt;"))
    return FIRST.sub(lambda match: f"\\{match[0]}" if len(match[0]) == 1 else f"{match[0][:-1]}\\{match[0][-1]}", plain)


def write_csv(table: pd.DataFrame, file: str | PathLike[str]) -> None:
    """Writes the table; a text that a spreadsheet would take for a formula gets an apostrophe before it."""
    safe = table.rename(columns=_cell)
    for number, kind in enumerate(safe.dtypes):
        if str(kind) in ("object", "str", "string", "category"):
            safe.isetitem(number, safe.iloc[:, number].astype(object).map(_cell))
    returns = any(
        isinstance(cell, str) and "\r" in cell for number in range(safe.shape[1]) for cell in safe.iloc[:, number]
    )  # the csv module leaves these bare, and readers take them for the end of a row
    safe.to_csv(file, index=False, quoting=csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL)


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
