"""Shards: safetensors files of a size that is known before they are filled, row by row; memory-mapped when read.

A shard is made whole, its room on the disk taken, before anything is measured for it. A row is written in place, with a
checksum for each tensor beside it, so that a row that was never written, cut or changed is told apart. What is finished
is said elsewhere (a journal); a row that is not named there is free.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from nnsight_mmflow._errors import DataError
from nnsight_mmflow.files.output import writing, written

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # of the number types that are kept
CHECK = "crc32"
MOST_BYTES = 1 << 28  # of a shard


@dataclass(frozen=True)
class Layout:
    """What a shard holds: for each name a tensor (rows, width), and checksums (rows, names).

    Attributes:
        names: of the tensors.
        kind: the number type, as safetensors calls it.
        rows: how many.
        width: numbers in a row.
    """

    names: tuple[str, ...]
    kind: str
    rows: int
    width: int

    @property
    def bytes_each(self) -> int:
        """Bytes of one tensor."""
        return self.rows * self.width * BYTES[self.kind]

    @cached_property
    def header(self) -> bytes:
        """The file's first bytes."""
        each, table = self.bytes_each, {}
        for number, name in enumerate(self.names):
            place = [number * each, (number + 1) * each]
            table[name] = {"dtype": self.kind, "shape": [self.rows, self.width], "data_offsets": place}
        end = len(self.names) * each
        shape = [self.rows, len(self.names)]
        table[CHECK] = {"dtype": "U32", "shape": shape, "data_offsets": [end, end + 4 * self.rows * len(self.names)]}
        text = json.dumps(table).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + len(self.names) * (self.bytes_each + 4 * self.rows)


class Shard:
    """The rows of one shard: in memory, or in a file that is mapped when it is first read.

    Attributes:
        layout: what it holds.
        path: its file; None in memory.
    """

    def __init__(self, layout: Layout, path: Path | None = None, writable: bool = False) -> None:
        self.layout, self.path, self.writable = layout, path, writable

    @classmethod
    def made(cls, layout: Layout, path: Path) -> Shard:
        """A new one, its room on the disk taken; one that was there is replaced.

        Raises:
            OutputError: there is no room, or it cannot be written.
        """
        with written(path) as beside, beside.open("r+b") as file:
            file.write(layout.header)
            file.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, layout.size)
            else:
                file.truncate(layout.size)
        return cls(layout, path, True)

    @classmethod
    def opened(cls, path: Path, names: tuple[str, ...], width: int, writable: bool = False) -> Shard:
        """The shard of a file.

        Raises:
            DataError: it is missing, cut, or holds other tensors than those.
        """
        try:
            if path.is_symlink():
                raise ValueError("it is a symbolic link")
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                head = file.read(min(length, 1 << 24))
            first = json.loads(head)[names[0]]
            layout = Layout(names, first["dtype"], int(first["shape"][0]), width)
            if length.to_bytes(8, "little") + head != layout.header:
                raise ValueError(f"it holds no {len(names)} tensors of width {width}")
            if path.stat().st_size != layout.size:
                raise ValueError(f"it has {path.stat().st_size} bytes instead of {layout.size}")
        except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            why = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
            raise DataError(
                f"{path} is not the shard that was written: {why}. Put it back, or measure again."
            ) from None
        return cls(layout, path, writable)

    def __getstate__(self) -> dict[str, object]:
        """Processes that read (a DataLoader's workers) map the file themselves."""
        return {"layout": self.layout, "path": self.path, "writable": False} if self.path else self.__dict__

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """By name the bits of each tensor, as whole numbers of its size."""
        layout, bits = self.layout, np.dtype(f"<i{BYTES[self.layout.kind]}")
        shape, checks = (layout.rows, layout.width), (layout.rows, len(layout.names))
        if self.path is None:
            empty: dict[str, np.ndarray] = {name: np.zeros(shape, bits) for name in layout.names}
            return empty | {CHECK: np.zeros(checks, "<u4")}
        whole = np.memmap(self.path, np.uint8, "r+" if self.writable else "r")
        found: dict[str, np.ndarray] = {}
        start = len(layout.header)
        for name in layout.names:
            found[name] = whole[start : start + layout.bytes_each].view(bits).reshape(shape)
            start += layout.bytes_each
        return found | {CHECK: whole[start:].view("<u4").reshape(checks), "": whole}

    def write(self, row: int, values: np.ndarray) -> None:
        """Writes rows (names, rows, width) from a row on; they are on the disk before this returns.

        Raises:
            OutputError: they cannot be written.
        """
        count = values.shape[1]
        for number, name in enumerate(self.layout.names):
            self.arrays[name][row : row + count] = values[number]
            self.arrays[CHECK][row : row + count, number] = [_sum(one) for one in values[number]]
        self.flush()

    def copy(self, other: Shard) -> None:
        """Takes all that a shard of the same layout holds; it is on the disk before this returns.

        Raises:
            OutputError: it cannot be written.
        """
        for name in (*self.layout.names, CHECK):
            self.arrays[name][:] = other.arrays[name]
        self.flush()

    def flush(self) -> None:
        """Sees to it that what was written is on the disk.

        Raises:
            OutputError: it is not.
        """
        if self.path is None:
            return
        with writing(self.path):
            if not self.path.exists():  # a mapping outlives its file
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
            self.arrays[""].flush()  # type: ignore[attr-defined]

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Some rows of a tensor, as bits (rows, width), once each is what was written.

        Raises:
            DataError: one is not.
        """
        found, wanted = self.arrays[name][rows], self.arrays[CHECK][rows, self.layout.names.index(name)]
        wrong = [int(row) for row, one, kept in zip(rows, found, wanted, strict=True) if _sum(one) != kept]
        if wrong:
            raise DataError(
                f"{self.path or 'a shard'}: row(s) {wrong[:5]} of {name} are not what was written: the file was cut,"
                " changed, or is another run's. Put it back, or remove the lines of these rows from prompts.jsonl (the"
                " table's columns shard and row tell whose they are) and measure them again."
            )
        return found


def _sum(row: np.ndarray) -> int:
    """The checksum of a row; never that of a row that was not written."""
    return zlib.crc32(np.ascontiguousarray(row).tobytes(), 1) or 1


def places(
    wanted: dict[str, int], taken: dict[int, list[tuple[int, int]]], sizes: dict[int, int], most: int
) -> tuple[dict[str, tuple[int, int]], dict[int, int]]:
    """((shard, first row) of each that is wanted, how many rows each new shard has). Pure, and the same each time.

    Args:
        wanted: by name how many rows, in order.
        taken: by shard the (first row, rows) that are.
        sizes: by shard how many rows it has.
        most: rows of a new shard, unless one alone has more.
    """
    free = {number: _gaps(taken.get(number, []), size) for number, size in sorted(sizes.items())}
    found: dict[str, tuple[int, int]] = {}
    made: dict[int, int] = {}
    newest = max(sizes, default=-1)
    for name, count in wanted.items():
        place = next(((n, gap) for n, gaps in free.items() for gap in gaps if gap[1] - gap[0] >= count), None)
        if place is not None:
            number, gap = place
            found[name] = number, gap[0]
            gap[0] += count
            continue
        if newest not in made or made[newest] + count > most:
            newest += 1
            made[newest] = 0
        found[name] = newest, made[newest]
        made[newest] += count
    return found, made


def _gaps(taken: list[tuple[int, int]], size: int) -> list[list[int]]:
    """The stretches [first, end] of a shard that no one has."""
    gaps, end = [], 0
    for first, count in [*sorted(taken), (size, 0)]:
        if first > end:
            gaps.append([end, first])
        end = max(end, first + count)
    return gaps
