"""Finished work on disk: one JSON line per prompt, written as it is done, read again when a stopped run goes on.

A journal belongs to one run (`runs.identity`): its settings stand beside it, and another run is refused. Each line
carries a checksum, so that a line that was cut, changed or mixed up is found. While a run writes, it holds the folder's
lock.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import TracebackType

from nnsight_mmflow._errors import DataError, OutputError
from nnsight_mmflow._progress import say
from nnsight_mmflow.files.folder_lock import FolderLock
from nnsight_mmflow.files.output import in_words, output_folder, write_text, writing

FORM = 2  # of the journal: 1 had no checksums, and named prompts by their place
LINES, SETTINGS = "prompts.jsonl", "settings.json"


class Journal:
    """The finished prompts of one run; in memory alone when no folder is given.

    Attributes:
        done: by identity, what is finished.
        path: the file of finished prompts; None in memory.
        unwritten: what is finished and could not be written so far.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        settings: dict[str, object],
        report: Callable[[str], None] = say,
    ) -> None:
        """Opens the journal in `folder`, or goes on with the one there.

        Args:
            folder: where it is.
            settings: of the run, by name.
            report: where it is told that finished work cannot be written.

        Raises:
            DataError: the folder holds a run with other settings (the differences are listed), a damaged one, or one
                whose settings are lost; or another run is writing there.
            OutputError: the folder cannot be written to.
        """
        self.done: dict[str, dict] = {}
        self.unwritten: list[dict] = []
        self.path: Path | None = None
        self.report = report
        if folder is None:
            return
        self.path = output_folder(folder).absolute() / LINES  # a run may change its working directory
        self.lock = FolderLock(self.path.parent)
        self.settings = json.loads(json.dumps({**settings, "journal": FORM}))
        with self:
            pass

    def __enter__(self) -> Journal:
        """Takes the folder's lock, and reads what another run may have finished meanwhile."""
        if self.path is None:
            return self
        self.lock.take()
        try:
            self._check_settings(self.path.with_name(SETTINGS))
            self._read()
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path is None:
            return
        if kind is not None and not self._finished():  # a typo, say, ended it: another run may have the folder
            with suppress(OSError):
                self.path.with_name(SETTINGS).unlink()
        self.lock.release()

    def known(self, identities: Sequence[str]) -> list[str]:
        """Names "key:identity", each as the journal has it, which may be under another key."""
        here = {name.rpartition(":")[2]: name for name in self.done}
        return [here.get(name.rpartition(":")[2], name) for name in identities]

    def left(self, identities: Sequence[str]) -> list[int]:
        """The places of what is not finished; what comes twice is done once."""
        first = {identity: place for place, identity in reversed(list(enumerate(identities)))}
        return sorted(place for identity, place in first.items() if identity not in self.done)

    def check(self, identity: str, measured: Iterable[Sequence[object]], planned: Iterable[Sequence[object]]) -> None:
        """Refuses a finished entry whose cells are not those of the plan.

        Raises:
            DataError: it has other cells.
        """
        has, wants = ([tuple(cell) for cell in cells] for cells in (measured, planned))
        if has == wants:
            return
        lacking = [cell for cell in wants if cell not in set(has)]
        more = f", such as {lacking[0]}" if lacking else ""
        raise DataError(
            f"{self.path}: the entry {identity} has {len(has)} cells, the plan {len(wants)}; {len(lacking)} of them are"
            f" missing{more}. Remove its line, and it is measured again."
        )

    def add(self, *entries: dict) -> None:
        """Keeps finished prompts; on disk before this returns, together.

        Where they cannot be written, that is told, and the run goes on: they stay here, and are written when there is
        room again.
        """
        for entry in entries:
            self.done[entry["id"]] = entry
        if self.path is None:
            return
        warned = bool(self.unwritten)
        self.unwritten += entries
        try:
            with writing(self.path):
                self._append(b"".join(line_of(entry) for entry in self.unwritten))
        except OutputError as error:
            if not warned:
                self.report(
                    f"{self.path} cannot be written: {in_words(error.__cause__)}."  # type: ignore[arg-type]
                    f" {len(self.done) - len(self.unwritten)} finished entries were written to it before; the run goes"
                    " on, and keeps what it finishes in memory until it can be written."
                )
        else:
            self.unwritten.clear()

    def _append(self, data: bytes) -> None:
        assert self.path is not None
        self.lock.take()
        try:
            if not self.path.parent.joinpath(SETTINGS).exists():  # lines without settings could not be gone on with
                raise FileNotFoundError(2, "the folder's settings are gone", str(self.path))
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(self.path, flags, 0o666)
            try:
                before = os.fstat(handle).st_size
                try:
                    rest = memoryview(data)
                    while rest:
                        rest = rest[os.write(handle, rest) :]
                    os.fsync(handle)
                except OSError:
                    os.ftruncate(handle, before)  # no half a line
                    raise
            finally:
                os.close(handle)
        finally:
            self.lock.release()

    def _check_settings(self, file: Path) -> None:
        assert self.path is not None
        if not file.exists() and not file.is_symlink():
            if self._finished():
                raise DataError(
                    f"{self.path.parent} holds finished prompts, but not the {SETTINGS} that says of which run: their"
                    " numbers could be anyone's. Put it back, or give another folder."
                )
            write_text(file, json.dumps(self.settings, indent=2) + "\n")
            return
        before = _read_settings(file)
        if before.get("journal") != FORM:
            raise DataError(
                f"{self.path.parent} was written by another version of nnsight_mmflow: its journal does not say which"
                " weights and prompts it is of, as this version's do. Give another folder."
            )
        changed = [name for name in {**before, **self.settings} if before.get(name) != self.settings.get(name)]
        if changed:
            diff = "; ".join(f"{name} was {before.get(name)!r}, is {self.settings.get(name)!r}" for name in changed)
            raise DataError(
                f"{self.path.parent} holds a run with other settings ({diff}). Give another folder, or repeat the"
                " settings to go on with it."
            )

    def _finished(self) -> bool:
        """Whether the folder holds anything that was measured."""
        assert self.path is not None
        return self.path.is_symlink() or (self.path.exists() and self.path.stat().st_size > 0)

    def _read(self) -> None:
        """Reads the finished lines; a last line cut off by a kill is removed, and its prompt runs again."""
        assert self.path is not None
        try:
            with writing(self.path):
                handle = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OutputError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return
            raise
        with os.fdopen(handle, "r+b") as file:
            data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            for number, line in enumerate(whole.split(b"\n")[:-1], 1):
                entry = self._entry(line, number)
                earlier = self.done.get(entry["id"])
                if earlier is not None and checksum(earlier) != checksum(entry):
                    raise DataError(
                        f"{self.path}, line {number} says something else of {entry['id']} than an earlier line: were"
                        " two journals joined? Remove one of the lines."
                    )
                self.done[entry["id"]] = entry
            if len(whole) < len(data):
                file.truncate(len(whole))

    def _entry(self, line: bytes, number: int) -> dict:
        """The entry of a line.

        Raises:
            DataError: it cannot be read, or was changed.
        """
        where = f"{self.path}, line {number}"
        try:
            entry = json.loads(line)
            name, kept = entry["id"], entry.pop("checksum")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{where} cannot be read ({error!r}): remove the line.") from None
        if not isinstance(name, str) or kept != checksum(entry):
            raise DataError(
                f"{where} was changed or damaged after it was written: its cells or numbers are not those that were"
                " measured. Remove the line, and they are measured again."
            )
        return entry


def checksum(entry: dict) -> str:
    """What tells an entry from one that was changed."""
    return sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:12]


def line_of(entry: dict) -> bytes:
    """The entry as it stands in the file."""
    return json.dumps({**entry, "checksum": checksum(entry)}).encode() + b"\n"


def _read_settings(file: Path) -> dict:
    try:
        if file.is_symlink():
            raise ValueError("it is a symbolic link")
        kept = json.loads(file.read_bytes())
        if not isinstance(kept, dict):
            raise ValueError(f"a table was expected, not {type(kept).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{file} cannot be read ({error}), so it cannot be said whose numbers the folder holds: put it back, or"
            " give another folder."
        ) from None
    return kept
