"""Files and names that users hand in: text in UTF-8, strict JSON, and paths that stay in their folder."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

from nnsight_mmflow._errors import DataError

ENCODINGS = {  # the longer marks first: one is the start of another
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    b"PK\x03\x04": "a workbook or an archive",
    b"\x1f\x8b": "compressed",
    b"\x89PNG": "a picture",
    b"PAR1": "a Parquet file",
}


def checked_file(file: object) -> Path:
    """The path of a file of questions.

    Raises:
        DataError: there is none.
    """
    try:
        path = Path(file)  # type: ignore[arg-type]
        if path.is_file():
            return path
    except (TypeError, ValueError, OSError):
        pass
    raise DataError(f"there is no question file {str(file)!r}.")


def checked_folder(images: object) -> Path | None:
    """The folder of images, or None where none was given.

    Raises:
        DataError: there is none.
    """
    if images is None:
        return None
    try:
        if Path(images).is_dir():  # type: ignore[arg-type]
            return Path(images)  # type: ignore[arg-type]
    except (TypeError, ValueError, OSError):
        pass
    raise DataError(f"there is no folder of images {str(images)!r}.")


def in_folder(folder: Path, name: str) -> Path:
    """The path of a file of that name in a folder, whether it is there or not.

    Raises:
        DataError: it would lie outside, by its name or by a link.
    """
    path = folder / name
    try:
        leaves = ".." in Path(name).parts or not path.resolve().is_relative_to(folder.resolve())
        link = path.is_symlink()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"image {name!r:.200} is no name of a file ({error})") from None
    if leaves:
        why = " through a link: copy what it points to" if link else ""
        raise DataError(f"image {name!r} leads out of the folder of images {folder}{why}")
    return path


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, its mark at the start left out; bytes that are no UTF-8 become lone surrogates.

    Raises:
        DataError: it cannot be read, is empty, or is no UTF-8 text at all.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise DataError(f"{str(file)!r} cannot be read ({error}).") from None
    if not raw.removeprefix(codecs.BOM_UTF8).strip():
        raise DataError(f"{str(file)!r} is empty.")
    encoding = next((name for mark, name in ENCODINGS.items() if raw.startswith(mark)), "")
    if not encoding and raw[:1000].count(0) > len(raw[:1000]) // 4:
        encoding = "UTF-16 without a mark, or no text"
    if encoding:
        raise DataError(f"{str(file)!r} is {encoding}; expected UTF-8 text. Save it as UTF-8 (in Excel: CSV UTF-8).")
    return raw.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def bad_text(text: str) -> str:
    """What is wrong with a text as a text: '' if nothing."""
    for character in text:
        if character == "\0":
            return "holds a NUL character"
        if "\udc80" <= character <= "\udcff":
            return (
                f"holds the byte 0x{ord(character) - 0xDC00:02X}, which is no UTF-8"
                " (is it Latin-1 or Windows-1252? Save it as UTF-8)"
            )
        if "\ud800" <= character <= "\udfff":
            return "holds half a character (an unpaired surrogate)"
    return ""


def json_value(text: str) -> object:
    """What a line or a cell of JSON holds.

    Raises:
        DataError: it is none, holds a field twice, a number that is none, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise DataError(f"is no JSON ({error})") from None
    except RecursionError:
        raise DataError("is nested too deeply") from None
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"holds a number that is too long ({str(error).partition(':')[0]})") from None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        raise DataError(f"has the field {next(name for name in names if names.count(name) > 1)!r} twice")
    return fields


def _no_number(constant: str) -> object:
    raise DataError(f"holds {constant}, which is no number")
