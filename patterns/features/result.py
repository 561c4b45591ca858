"""What features are: an index of prompts, and their activations in shards, mapped when they are read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, dtype

from nnsight_mmflow._errors import DataError, MMFlowError
from nnsight_mmflow._kinds import came
from nnsight_mmflow._later import later
from nnsight_mmflow._look import Look
from nnsight_mmflow.files.output import output_folder
from nnsight_mmflow.files.shards import CHECK, Shard
from nnsight_mmflow.patterns.features.shelf import TYPES, layer_name, layers_text
from nnsight_mmflow.runs.fingerprint import fingerprint
from nnsight_mmflow.runs.journal import LINES
from nnsight_mmflow.runs.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow._look import Colors, Figure, Labels, Places, Rows, Size
    from nnsight_mmflow.prompts.prompt import Prompt

FILE = re.compile(r"features_[0-9a-f]{8}_\d{5,}\.safetensors")  # a header from elsewhere names no other file


@dataclass(frozen=True, repr=False)
class FeaturesResult(Result):
    """Activations of a data set. One table row per prompt.

    Columns: prompt, kind, question, answer, picture (a fingerprint: prompts about the same pictures share it),
    positions (of the span), norm (mean length of its vectors), shard and row (where they lie; for pool=None the first).

    It is a data set for torch too: `result[i]` is (activations (layers, width), answer), so a DataLoader takes it.

    Attributes:
        shards: by number.
        prompts: what was run; None after `load`.
    """

    shards: dict[int, Shard] = field(repr=False)
    prompts: tuple[Prompt, ...] | None = field(default=None, repr=False)
    kind: ClassVar[str] = "features"

    @property
    def layers(self) -> list[int]:
        """The layers, counted from 0; [-1] for the embedding."""
        return [int(layer) for layer in self.header["layers"]]

    @property
    def labels(self) -> list[str | None]:
        """The prompts' answers; None where there is none."""
        return [answer if isinstance(answer, str) else None for answer in self.table["answer"]]

    def values(self, layer: int | None = None) -> np.ndarray | list[np.ndarray]:
        """The activations after a layer, as scikit-learn takes them: (prompts, width), in float32 (or float64).

        With pool=None a list, for each prompt (positions, width): np.concatenate(...) joins them, and the column
        `positions` tells whose row is whose.

        Args:
            layer: which, a negative one counted from the end; may be left out where there is one.

        Raises:
            MMFlowError: a layer that was not read.
            DataError: a shard that is not what was written.
        """
        found = self.torch(layer)
        if isinstance(found, list):
            return [_numpy(one) for one in found]
        return _numpy(found)

    def torch(self, layer: int | None = None) -> Tensor | list[Tensor]:
        """The same as tensors, in the type that they are kept in."""
        name, counts = layer_name(self._layer(layer)), self._counts()
        first, shards = self.table["row"].to_numpy(), self.table["shard"].to_numpy()
        parts: list[Tensor] = [torch.empty(0)] * len(self.table)
        for number in np.unique(shards):
            at = np.flatnonzero(shards == number)
            rows = np.concatenate([np.arange(first[i], first[i] + counts[i]) for i in at])
            bits = torch.from_numpy(np.array(self.shards[int(number)].read(name, rows)))
            for i, part in zip(at, bits.view(self._dtype).split(counts[at].tolist()), strict=True):
                parts[i] = part
        return parts if self.header["pool"] is None else torch.cat(parts)

    def __len__(self) -> int:
        """The number of prompts."""
        return len(self.table)

    def __getitem__(self, number: int) -> tuple[Tensor, str]:
        """(the prompt's activations (layers, width), with pool=None (layers, positions, width); its answer or "")."""
        number = int(number)
        if not -len(self) <= number < len(self):
            raise IndexError(f"prompt {number}: there are {len(self)}, counted from 0.")
        row = self.table.iloc[number]
        count = self._counts()[number]
        rows = np.arange(row["row"], row["row"] + count)
        shard = self.shards[int(row["shard"])]
        found = torch.from_numpy(np.stack([shard.read(name, rows) for name in map(layer_name, self.layers)]))
        values = found.view(self._dtype)
        return values if self.header["pool"] is None else values[:, 0], self.labels[number] or ""

    @property
    def _dtype(self) -> dtype:
        return TYPES[str(self.header["dtype"])]

    def _counts(self) -> np.ndarray:
        """How many rows each prompt has."""
        positions = self.table["positions"].to_numpy()
        return positions if self.header["pool"] is None else np.ones_like(positions)

    def _layer(self, layer: int | None) -> int:
        there = self.layers
        if layer is None and len(there) == 1:
            return there[0]
        known = isinstance(layer, int | np.integer) and not isinstance(layer, bool)
        found = self.counted(int(layer)) if known else None  # type: ignore[arg-type]
        if found not in there:
            raise MMFlowError(f"layer={came(layer)} was not read: the features hold {', '.join(map(str, there))}.")
        return found

    def counted(self, layer: int) -> int:
        """The layer's number from 0; a negative one counts from the end (-1 is the embedding, where that was read)."""
        below = layer < 0 and self.header["site"] != "embed"
        return layer + int(self.header["n_layers"]) if below else layer

    def plot(
        self,
        layers: int | Sequence[int] | None = None,
        by: Sequence[object] | None = None,
        *,
        ax: Places = None,
        rows: Rows = None,
        figsize: Size = None,
        colors: Colors = None,
        labels: Labels = None,
    ) -> Figure:
        """The first two principal components of some layers, a point for each prompt, coloured by its answer.

        Args:
            layers: which; up to six, evenly spaced, unless given.
            by: what points are coloured by instead, one for each prompt.
            ax: axes to draw on, one for each layer, or one that is divided.
            rows: which answers are drawn, in their order; the eight most frequent have a colour unless given.
            figsize: (width, height) in inches.
            colors: by answer, or one for each that is drawn.
            labels: what answers are called, by answer, or one for each that is drawn.

        Raises:
            MMFlowError: a layer or an answer that is not there; the message has those that are.
        """
        chosen = [layers] if isinstance(layers, int) else layers
        look = Look(ax, rows, figsize, colors, labels)
        panels = None if chosen is None else list(map(self._layer, chosen))
        return later("features_figure")(self, panels, by, look=look)

    def summary(self) -> str:
        """What is held, its size, and how long its vectors are."""
        header, rows = self.header, int(self._counts().sum())
        what = f"{rows} positions of {len(self)} prompts" if header["pool"] is None else f"{len(self)} prompts"
        pool = "every position" if header["pool"] is None else f"{header['pool']} of the span"
        return (
            f"{header['model']}: {header['site']} at {header['at']}, {pool}: {what} x {layers_text(self.layers)} x"
            f" {header['width']} numbers in {header['dtype']}\n"
            f"mean length of a vector: {self.table['norm'].mean():.3g}"
        )

    def save(self, folder: str | PathLike[str]) -> Path:
        """Writes the shards (none where they lie there already), the index (parquet) and the header (JSON).

        Raises:
            OutputError: they cannot be written; what was saved there before is as it was.
        """
        folder = output_folder(folder)
        here = [shard.path is not None and shard.path.parent.resolve() == folder.resolve() for shard in self._used()]
        if all(here):
            return super().save(folder)
        before, names = self._saved_in(folder), {}
        content = fingerprint([shard.arrays[CHECK] for shard in self.shards.values()])[:8]
        for number, shard in sorted(self.shards.items()):
            names[str(number)] = f"features_{content}_{number:05d}.safetensors"
            other = Shard.made(shard.layout, folder / names[str(number)])
            other.copy(shard)
        Result.save(replace(self, header={**self.header, "shards": names}), folder)
        for old in before - set(names.values()):
            with suppress(OSError):
                (folder / old).unlink()
        return folder

    def _used(self) -> list[Shard]:
        return [self.shards[int(number)] for number in self.table["shard"].unique()]

    def _saved_in(self, folder: Path) -> set[str]:
        """The shards of an earlier result there, which nothing needs once it is replaced; a run's own are left."""
        if (folder / LINES).exists():
            return set()
        try:
            kept = json.loads((folder / f"{self.kind}.json").read_bytes())["shards"]
            return {name for name in kept.values() if FILE.fullmatch(name)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return set()

    @classmethod
    def load(cls, folder: str | PathLike[str]) -> FeaturesResult:
        """The features that were saved in the folder, or that a finished run keeps there; shards are mapped, not read.

        Raises:
            DataError: the folder holds none, or a shard is missing, cut, or another's.
        """
        table, header = cls._read(folder)
        try:
            names = tuple(layer_name(int(layer)) for layer in header["layers"])
            files = {int(number): str(file) for number, file in header["shards"].items()}
            width, kind = int(header["width"]), str(header["dtype"])
            wrong = [file for file in files.values() if not FILE.fullmatch(file)]
            if wrong or kind not in TYPES:
                raise ValueError(f"{(wrong or [kind])[0]!r} is no shard's name or number type")
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{folder}/{cls.kind}.json does not say where the activations lie ({error}).") from error
        shards = {number: Shard.opened(Path(folder) / file, names, width) for number, file in files.items()}
        found = cls(table, header, shards)
        ends = found.table["row"].to_numpy() + found._counts()
        for number, end in zip(table["shard"], ends, strict=True):
            shard = shards.get(int(number))
            if shard is None or shard.layout.kind != kind or end > shard.layout.rows:
                raise DataError(f"the index in {folder} names row {end - 1} of shard {number}, which is not there.")
        return found


def index_of(prompts: Sequence[Prompt], at: str, entries: Sequence[dict]) -> pd.DataFrame:
    """The table: whose activations lie where."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "prompt": prompt.key or str(number),
                "kind": prompt.kind,
                "question": prompt.question,
                "answer": prompt.answer,
                "picture": fingerprint(list(prompt.images)) if prompt.images else "",
                "positions": len(prompt.spans[at]),
                "norm": entry["norm"],
                "shard": entry["shard"],
                "row": entry["row"],
            }
            for number, (prompt, entry) in enumerate(zip(prompts, entries, strict=True))
        ]
    )


def _numpy(values: Tensor) -> np.ndarray:
    return (values if values.dtype == torch.float64 else values.float()).numpy()
