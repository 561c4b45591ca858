"""The questions that the rows of a file give; every bad row named by its line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from nnsight_mmflow._errors import DataError, PromptError
from nnsight_mmflow.files.rows import Row


@runtime_checkable
class Keyed(Protocol):
    """A question with a name of its own."""

    @property
    def key(self) -> str:
        """Its name."""


Asked = TypeVar("Asked", bound=Keyed)


def questions_of_rows(
    file: Path, rows: Iterable[Row], question_of: Callable[[dict, int], Asked], key_name: str, skip_bad: bool
) -> tuple[list[Asked], list[str]]:
    """The questions of the good rows in order, and what is wrong with each of the others.

    Args:
        file: where the rows come from.
        rows: (line, fields, what is wrong with them if anything is).
        question_of: makes a question of the fields and the line, or raises what is wrong.
        key_name: how the file names a question's key.
        skip_bad: skip bad rows instead of raising.

    Raises:
        DataError: rows are bad and `skip_bad` is not set; or no question is left.
    """
    questions: list[Asked] = []
    lines: dict[str, int] = {}
    bad = []
    for line, row, problem in rows:
        try:
            if problem:
                raise DataError(problem)
            question = question_of(row, line)
            if question.key in lines:
                raise DataError(f"{key_name} {question.key!r} stands on line {lines[question.key]} already")
            lines[question.key] = line
            questions.append(question)
        except (DataError, PromptError) as error:
            bad.append(f"line {line}: {error}")
    if bad and not skip_bad:
        raise _bad_rows(file, bad, len(bad) + len(questions))
    if not questions:
        raise DataError(
            f"{file} holds no usable question" + (f"; {len(bad)} bad rows, the first: {bad[0]}" if bad else ".")
        )
    return questions, bad


def _bad_rows(file: Path, bad: Sequence[str], total: int) -> DataError:
    """The error that names bad rows, up to ten."""
    shown = "\n  ".join(bad[:10]) + (f"\n  ... and {len(bad) - 10} more" if len(bad) > 10 else "")
    return DataError(
        f"{len(bad)} of {total} rows of {file} are bad:\n  {shown}\n"
        "Use --skip-bad (skip_bad=True) to go on without them."
    )
