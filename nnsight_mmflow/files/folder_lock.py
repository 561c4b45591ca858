"""One run at a time in a folder: the operating system's lock on a file there, which says who holds it.

The system takes the lock away when its process ends, however it ends, so a killed run leaves none behind.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path

from nnsight_mmflow._errors import DataError
from nnsight_mmflow.files.output import writing

FILE = ".lock"


class FolderLock:
    """A lock on a folder, held between `take` and `release`; the same object may take it again and again, inside."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.held: int | None = None
        self.depth = 0

    def take(self) -> None:
        """Takes the lock.

        Raises:
            DataError: another run holds it, who is told.
            OutputError: the lock's file cannot be written.
        """
        if self.held is not None:
            self.depth += 1
            return
        with writing(self.path):
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                self._lock(handle)
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps(_me()).encode() + b"\n", 0)
            except BaseException:
                os.close(handle)
                raise
        self.held, self.depth = handle, 1

    def _lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{self.path.parent} is being written by another run{_told(os.pread(handle, 4096, 0))}. Wait until it"
                " has ended, or give another folder."
            ) from None

    def release(self) -> None:
        """Gives the lock back."""
        self.depth -= 1
        if self.depth or self.held is None:
            return
        handle, self.held = self.held, None
        try:
            fcntl.flock(handle, fcntl.LOCK_UN)  # at once, also where a forked process still has the file open
        finally:
            os.close(handle)


def _me() -> dict[str, object]:
    return {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}


def _told(text: bytes) -> str:
    """Who holds it, as the lock's file says."""
    try:
        who = json.loads(text)
        process, host, since = who["process"], who["host"], who["since"]
    except (ValueError, KeyError, TypeError):
        return ""
    me = (
        " (this very process: another call or thread)" if (process, host) == (os.getpid(), socket.gethostname()) else ""
    )
    return f": process {process} on {host}, since {since}{me}"
