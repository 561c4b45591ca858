"""Files that are written beside and renamed: a save that fails leaves what was there, and says what went wrong.

A symbolic link at the place of a file is replaced, never followed.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import OutputError
from nnsight_mmflow._kinds import folder_of
from nnsight_mmflow.files.escaping import write_csv as write_escaped

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


WHY = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than is allowed here",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "it may not be written to",
    errno.EPERM: "it may not be written to",
    errno.ENOENT: "its folder is not there, or not any more",
    errno.ESTALE: "its folder is gone",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "there is a folder of that name",
    errno.EEXIST: "there is a file of that name",
    errno.ELOOP: "there is a symbolic link of that name, and links are not followed",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EIO: "the disk reports an error",
}
KEPT = "What was there before is untouched, and what a run has finished stays in its folder."


def in_words(error: OSError) -> str:
    """What an error of the file system means."""
    return WHY.get(error.errno or 0, error.strerror or str(error) or type(error).__name__)


def output_folder(folder: str | PathLike[str], *within: str) -> Path:
    """The folder, made if it is not there; or one within it, which no symbolic link may lead out of it.

    Raises:
        OutputError: it is a file, cannot be made, or lies elsewhere.
        MMFlowError: it is no path, or an empty one (a shell's variable that was not set), which would mean "here".
    """
    folder_of("folder", folder)
    root = Path(folder)
    path = root.joinpath(*within)
    try:
        path.mkdir(parents=True, exist_ok=True)
        outside = within and not path.resolve().is_relative_to(root.resolve())
        if not outside:
            with tempfile.TemporaryFile(dir=path):  # told now, and not when all is measured
                pass
    except (OSError, ValueError, RuntimeError) as error:  # a name with a null, a link to itself
        why = in_words(error) if isinstance(error, OSError) else str(error)
        raise OutputError(f"nothing can be written into the folder {path}: {why}. Give another folder.") from error
    if outside:
        raise OutputError(
            f"{path} is a symbolic link that leads out of {root}, to {path.resolve()}: nothing is written there."
            " Remove the link, or give that folder itself."
        )
    return path


@contextmanager
def written(file: str | PathLike[str]) -> Iterator[Path]:
    """A path beside the file to write to, which becomes the file when the block ends without an error.

    Raises:
        OutputError: it cannot be written; the file is as it was.
    """
    with written_together(file) as (beside,):
        yield beside


@contextmanager
def written_together(*files: str | PathLike[str]) -> Iterator[list[Path]]:
    """The same for files that belong together: none is replaced before all are written.

    Raises:
        OutputError: one cannot be written; all are as they were.
    """
    paths = [Path(file) for file in files]
    besides: list[Path] = []
    with writing(paths[0]):
        try:
            besides += [_made_beside(path) for path in paths]
            yield besides
            for beside in besides:
                with beside.open("rb+") as opened:
                    os.fsync(opened.fileno())
                beside.chmod(0o666 & ~_mask())  # mkstemp's own would keep others in the group from reading
            for beside, path in zip(besides, paths, strict=True):
                beside.replace(path)
        finally:
            for beside in besides:
                with suppress(OSError):  # the folder may be gone
                    beside.unlink(missing_ok=True)


def _made_beside(path: Path) -> Path:
    """An empty file in the same folder, with the same ending."""
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    handle, name = tempfile.mkstemp(prefix=f".{path.stem[:60]}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    return Path(name)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the file system refuses in the block, told of this path.

    Raises:
        OutputError: it refused.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {in_words(error)}. {KEPT} Free the way and run it again, or give another"
            " folder."
        ) from error


def _mask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_text(file: str | PathLike[str], text: str) -> Path:
    """Writes a text (UTF-8)."""
    with written(file) as beside:
        beside.write_text(text, encoding="utf-8")
    return Path(file)


def write_bytes(file: str | PathLike[str], data: bytes) -> Path:
    """Writes bytes."""
    with written(file) as beside:
        beside.write_bytes(data)
    return Path(file)


def write_figure(file: str | PathLike[str], figure: Figure, dpi: int | None = None) -> Path:
    """Writes a figure; the file's ending says in which format."""
    with written(file) as beside:
        figure.savefig(beside, dpi=dpi or "figure")
    return Path(file)


def write_csv(file: str | PathLike[str], table: pd.DataFrame) -> Path:
    """Writes a table as CSV, without its index; no text in it is a formula to a spreadsheet."""
    with written(file) as beside:
        write_escaped(table, beside)
    return Path(file)
