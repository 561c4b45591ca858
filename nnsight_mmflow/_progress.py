"""Progress bars and short messages, on standard error, in terminals and notebooks alike."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress_bar(items: list[T], label: str, *, shown: bool, unit: str = "prompt") -> Iterator[T]:
    """The items, with a bar that shows how many are done."""
    if not shown:
        yield from items
        return
    with warnings.catch_warnings():
        # A notebook without ipywidgets gets the terminal's bar, and need not be told so in red.
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

    wrapped: Iterable[T] = tqdm(items, desc=label, unit=unit, file=sys.stderr)
    yield from wrapped


def say(message: str) -> None:
    """One line on standard error."""
    sys.stderr.write(message + "\n")
