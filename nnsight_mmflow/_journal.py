"""Finished work on disk: one JSON line per prompt, written as it is done, read again when a stopped run goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path

from nnsight_mmflow._errors import DataError


class Journal:
    """The finished prompts of one run; in memory alone when no folder is given."""

    def __init__(self, folder: str | os.PathLike[str] | None, settings: dict[str, object]) -> None:
        """Opens the journal in `folder`, or goes on with the one there.

        Raises:
            DataError: the folder holds a run with other settings; the differences are listed.
        """
        self.done: dict[str, dict] = {}
        self.path: Path | None = None
        if folder is None:
            return
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "prompts.jsonl"
        kept = folder / "settings.json"
        plain = json.loads(json.dumps(settings))
        if kept.exists():
            before = json.loads(kept.read_text())
            changed = [name for name in {**before, **plain} if before.get(name) != plain.get(name)]
            if changed:
                told = "; ".join(f"{name} was {before.get(name)!r}, is {plain.get(name)!r}" for name in changed)
                raise DataError(
                    f"{folder} holds a run with other settings ({told}). Give another folder, or repeat the settings to"
                    " go on with it."
                )
        else:
            _write(kept, json.dumps(plain, indent=2) + "\n")
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        """Reads the finished lines; a last line cut off by a kill is removed, and its prompt runs again."""
        assert self.path is not None
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{self.path}, line {number} cannot be read ({error}): remove the line.") from None
            self.done[entry["id"]] = entry
        if len(whole) < len(data):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def add(self, entry: dict) -> None:
        """Keeps one finished prompt; on disk before this returns."""
        self.done[entry["id"]] = entry
        if self.path is None:
            return
        with self.path.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _write(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
