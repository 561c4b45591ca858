"""How a command ends: one sentence on standard error, and a status that scripts can read.

0: done. 1: `check` found something wrong. 2: it cannot be done as asked, or went wrong. 130: stopped by Ctrl-C.
141: whoever read its output went away.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.remote.hidden_keys import without_keys

WRONG, STOPPED, UNREAD = 2, 130, 141


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Says what is wrong with the arguments, and ends."""
        self.exit(WRONG, f"{self.prog}: {message}. See {self.prog} --help.\n")


def ended(run: Callable[[], int | None], given: argparse.Namespace) -> int:
    """Runs a command, and returns its exit status; what went wrong is told, with --debug its traceback."""
    try:
        status = run() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _silence()
        return UNREAD
    except KeyboardInterrupt:
        _say(given, f"stopped. {_kept(given)}")
        return STOPPED
    except MMFlowError as error:
        _trace(given)
        _say(given, _sentence(str(error)))
    except OSError as error:
        _trace(given)
        _say(given, f"{_sentence(str(error))} {_kept(given)}")
    except Exception as error:
        _trace(given)
        message = f"{type(error).__name__}: {_sentence(str(error))}".rstrip(": ")
        _say(given, f"went wrong in a way that was not foreseen ({message}). {_kept(given)} --debug shows where.")
    return WRONG


def _sentence(text: str) -> str:
    """The first line of a message, and the last of a longer one: between them stands a server's own traceback."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return " ".join(lines if len(lines) < 4 else [lines[0], lines[-1]])


def _kept(given: argparse.Namespace) -> str:
    """What is finished and stays."""
    folder = Path(str(getattr(given, "out", "") or ""))
    if folder.is_dir() and next(folder.rglob("prompts.jsonl"), None) is not None:
        return f"What is finished is kept in {folder}: the same command goes on from there."
    return "Nothing was finished."


def _say(given: argparse.Namespace, text: str) -> None:
    sys.stderr.write(without_keys(f"mmflow {given.command}: {text}\n"))


def _trace(given: argparse.Namespace) -> None:
    if getattr(given, "debug", False):
        sys.stderr.write(without_keys(traceback.format_exc()))


def _silence() -> None:
    """Nothing more is written to a pipe that nobody reads, not even when Python ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # no file behind it, as in a test
        return
