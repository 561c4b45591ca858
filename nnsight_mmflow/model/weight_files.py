"""Files of weights: are they whole, or what is wrong with them? Only their first bytes are read."""

from __future__ import annotations

import json
from pathlib import Path

from nnsight_mmflow._errors import ModelError

KINDS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")
POINTERS = {b"version https://git-lfs": "git LFS: `git lfs pull`", b"/annex/objects": "git-annex: `git annex get .`"}
LONGEST_HEADER = 100_000_000  # safetensors' own limit


def weight_files(name: str, revision: object = None) -> list[Path]:
    """The files of a folder, or of a Hugging Face id as it lies in the cache."""
    folder = Path(name)
    if not folder.is_dir():
        cached = _cached(name, revision)
        if cached is None:
            return []
        folder = cached
    return sorted(path for path in folder.iterdir() if path.name.endswith((*KINDS, ".json")))


def check_files(name: str) -> None:
    """Refuses a folder without weights, or with files that are cut, empty or mere pointers.

    Raises:
        ModelError: naming the files.
    """
    if not Path(name).is_dir():
        return
    files = weight_files(name)
    wrong = damage(files)
    if wrong:
        raise ModelError(f"the weights of {name!r} cannot be loaded: {wrong}.")
    if not any(path.name.endswith(KINDS) for path in files):
        raise ModelError(
            f"the folder {name!r} holds no weights: no file ends in .safetensors or .bin. It is what"
            " model.save_pretrained writes, or `git lfs pull` fetches."
        )


def damage(files: list[Path]) -> str:
    """What is wrong with the files, in words; "" if nothing is seen."""
    damaged = [f"{path.name} {why}" for path in files if (why := _wrong(path))]
    damaged += [why for path in files if path.name.endswith(".index.json") and (why := _lacking(path))]
    return "; ".join(damaged[:4])


def _wrong(path: Path) -> str:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        target = path.readlink() if path.is_symlink() else ""
        pointer = next((kind for mark, kind in POINTERS.items() if mark.decode() in str(target)), "")
        return f"is a pointer, not the file ({pointer})" if pointer else f"cannot be read ({error.strerror})"
    if not size:
        return "is empty"
    for mark, kind in POINTERS.items():
        if mark in start and size < 2048:
            return f"is a pointer of {size} bytes, not the file ({kind})"
    if path.suffix == ".safetensors":
        return _cut(path, size, int.from_bytes(start[:8], "little"))
    return ""


def _cut(path: Path, size: int, header: int) -> str:
    """What is wrong with a safetensors file of so many bytes."""
    if size < 8 or header > LONGEST_HEADER:
        return f"is no safetensors file ({size} bytes)"
    if size < 8 + header:
        return f"is cut: {size} bytes of at least {8 + header}"
    with path.open("rb") as file:
        file.seek(8)
        try:
            tensors = json.loads(file.read(header))
            end = max(
                (tensor["data_offsets"][1] for key, tensor in tensors.items() if key != "__metadata__"), default=0
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "has no readable header"
    if size < 8 + header + end:
        return f"is cut: {size} bytes of {8 + header + end}"
    return f"holds {size - 8 - header - end} bytes too many" if size > 8 + header + end else ""


def _lacking(index: Path) -> str:
    """Which shards an index names that are not there."""
    try:
        shards = set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return f"{index.name} cannot be read"
    gone = sorted(str(shard) for shard in shards if not (index.parent / str(shard)).exists())
    return f"{', '.join(gone[:4])} missing, which {index.name} names" if gone else ""


def _cached(name: str, revision: object) -> Path | None:
    """The folder of the Hugging Face cache that holds a model's files, if any."""
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(name, "config.json", revision=str(revision) if revision else None)
    except ValueError:
        return None
    return Path(config).parent if isinstance(config, str) else None
