"""Where features are kept while they are measured: rows of shards in a folder, or in memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from nnsight_mmflow._errors import DataError, OutputError
from nnsight_mmflow.files.shards import MOST_BYTES, Layout, Shard, places
from nnsight_mmflow.runs.arrays import unpacked
from nnsight_mmflow.runs.fingerprint import fingerprint

if TYPE_CHECKING:
    from nnsight_mmflow.runs.journal import Journal
    from nnsight_mmflow.runs.runner import Task

KINDS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
TYPES = {kind: dtype for dtype, kind in KINDS.items()}
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def layer_name(layer: int) -> str:
    """What a layer's tensor is called in a shard; -1 is the embedding."""
    return "embed" if layer < 0 else f"layer_{layer}"


class Shelf:
    """The shards of one run.

    Attributes:
        names: of the layers' tensors.
        width: of an activation.
        counts: by the identity of a task how many rows it takes.
        row_bytes: of a row, in all layers.
        folder: where the shards are; None in memory, and until a run has a folder.
        shards: by number.
    """

    def __init__(self, layers: list[int], width: int, counts: Mapping[str, int], bytes_each: int) -> None:
        self.names, self.width, self.counts = tuple(map(layer_name, layers)), width, dict(counts)
        self.row_bytes = len(layers) * width * bytes_each
        self.folder: Path | None = None
        self.run = ""
        self.shards: dict[int, Shard] = {}
        self.places: dict[str, tuple[int, int]] = {}
        self.sizes: dict[int, int] = {}

    def file_name(self, number: int) -> str:
        """The name of a shard's file, the same for the same run."""
        return f"features_{self.run}_{number:05d}.safetensors"

    def keeping(self, journal: Journal, left: list[Task]) -> Callable[[dict], dict]:
        """What puts an entry's activations onto the shelf, once every row that is to come has its place.

        Raises:
            OutputError: the folder has too little room for all of them.
        """
        taken: dict[int, list[tuple[int, int]]] = {}
        if journal.path is not None:
            self.folder, self.run = journal.path.parent, fingerprint(journal.settings)[:8]
            for entry in journal.done.values():
                taken.setdefault(entry["shard"], []).append((entry["row"], entry["count"]))
            self._look_through(journal)
        sizes = {number: shard.layout.rows for number, shard in self.shards.items()}
        wanted = {task.identity: self.counts[task.identity] for task in left}
        self.places, self.sizes = places(wanted, taken, sizes, max(1, MOST_BYTES // self.row_bytes))
        need = sum(self.sizes.values()) * self.row_bytes
        if self.folder is not None and shutil.disk_usage(self.folder).free < need:
            raise OutputError(
                f"{self.folder} has room for {shutil.disk_usage(self.folder).free / 1e9:.1f} GB, and the activations"
                f" that are to come take {need / 1e9:.1f} GB: fewer layers, pool='mean' or 'last', or another folder."
            )
        return self.put_away

    def put_away(self, entry: dict) -> dict:
        """The entry with the place of its activations instead of them."""
        values = unpacked(entry.pop("values"))["values"]
        number, row = self.places[entry["id"]]
        if number not in self.shards:
            layout = Layout(self.names, KINDS[values.dtype], self.sizes[number], self.width)
            path = None if self.folder is None else self.folder / self.file_name(number)
            self.shards[number] = Shard(layout) if path is None else Shard.made(layout, path)
        shard = self.shards[number]
        if KINDS[values.dtype] != shard.layout.kind:
            raise DataError(
                f"activations of {values.dtype} came, but {shard.path or 'the first ones'} holds {shard.layout.kind}:"
                " the server has loaded the model in another number type. Give another folder."
            )
        shard.write(row, values.view(BITS[values.element_size()]).numpy())
        norm = values.double().norm(dim=-1).mean()
        return {**entry, "shard": number, "row": row, "count": values.shape[1], "norm": float(norm)}

    def _look_through(self, journal: Journal) -> None:
        """Opens the shards that finished prompts lie in, and reads each of their rows once.

        Raises:
            DataError: a shard is missing or cut, or a row is not what was written.
        """
        rows: dict[int, list[int]] = {}
        for entry in journal.done.values():
            rows.setdefault(entry["shard"], []).extend(range(entry["row"], entry["row"] + entry["count"]))
        for number, held in rows.items():
            assert self.folder is not None
            path = self.folder / self.file_name(number)
            self.shards[number] = Shard.opened(path, self.names, self.width, True)
            for name in self.names:
                self.shards[number].read(name, np.array(held))


def layers_text(layers: list[int]) -> str:
    """How many layers there are, as costs and summaries tell."""
    return "the embedding" if layers == [-1] else f"{len(layers)} layer{'' if len(layers) == 1 else 's'}"
