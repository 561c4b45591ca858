"""Results: small tables with a header that says how they came about; saved as parquet beside a JSON header."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from nnsight_mmflow._errors import DataError, OutputError
from nnsight_mmflow._kinds import folder_of
from nnsight_mmflow._later import later
from nnsight_mmflow._look import Look
from nnsight_mmflow.files.output import output_folder, written_together

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from nnsight_mmflow._look import Colors, Figure, Labels, Places, Rows, Size

R = TypeVar("R", bound="Result")
Band = tuple["np.ndarray", "np.ndarray", "np.ndarray"]  # mean, low, high
SUM = "table_sha256"  # in a saved header: of the table that belongs to it
SUMS = "files_sha256"  # the same of what else belongs to it, by the file's name
PACKAGES = ("nnsight-mmflow", "nnsight", "transformers", "torch")


def versions() -> dict[str, str]:
    """The versions of the packages that numbers depend on."""
    return {name: version(name) for name in PACKAGES}


@dataclass(frozen=True)
class Result:
    """What an experiment returns: a tidy table and a header.

    Attributes:
        table: one row per number measured.
        header: model, settings, versions, plan, and what was left out and why.
    """

    table: pd.DataFrame = field(repr=False)
    header: dict = field(repr=False)
    kind: ClassVar[str] = "result"
    drawn_by: ClassVar[str] = ""  # the figure of `plot`, by its name in _later.py

    @property
    def n_rows(self) -> int:
        """How many rows `to_frame()` has."""
        return len(self.table)

    def to_frame(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.table.copy()

    def save(self, folder: str | PathLike[str]) -> Path:
        """Writes the table (parquet) and the header (JSON) into the folder, and returns it.

        Raises:
            OutputError: they cannot be written; what was saved there before is as it was.
        """
        folder = output_folder(folder)
        more = self._more_files()
        names = [f"{self.kind}.parquet", f"{self.kind}.json", *more]
        with written_together(*(folder / name for name in names)) as (table, header, *others):
            self.table.to_parquet(table, index=False)
            written = {**self.header, SUM: sha256(table.read_bytes()).hexdigest()}
            if more:
                written[SUMS] = {name: sha256(data).hexdigest() for name, data in more.items()}
            header.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
            for file, data in zip(others, more.values(), strict=True):
                file.write_bytes(data)
        return folder

    def _more_files(self) -> Mapping[str, bytes]:
        """What else belongs to the result, by the file's name."""
        return {}

    @classmethod
    def load(cls: type[R], folder: str | PathLike[str]) -> R:
        """The result that was saved in the folder.

        Raises:
            DataError: the folder holds none of this kind, or a damaged one.
        """
        return cls(*cls._read(folder))

    @classmethod
    def _read(cls, folder: str | PathLike[str]) -> tuple[pd.DataFrame, dict]:
        """The table and the header that were saved in the folder."""
        import io

        import pandas as pd

        folder_of("folder", folder)
        file = Path(folder) / f"{cls.kind}.json"
        if not os.path.exists(file):  # Path's own raises for a name that is too long
            raise DataError(f"{folder} holds no {cls.__name__}: {file.name} is missing. Was it saved elsewhere?")
        try:
            header = dict(json.loads(file.read_bytes()))
            data = file.with_suffix(".parquet").read_bytes()
            expected = header.pop(SUM, None)  # results of earlier versions have none
            if expected is not None and expected != sha256(data).hexdigest():
                raise ValueError(f"{file.stem}.parquet is not the table that {file.name} was saved with")
            for name, expected in header.pop(SUMS, {}).items():
                other = file.with_name(name)
                if other.exists() and expected != sha256(other.read_bytes()).hexdigest():
                    raise ValueError(f"{name} is not the one that {file.name} was saved with")
            return _with_lists(pd.read_parquet(io.BytesIO(data))), header
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise DataError(
                f"the {cls.__name__} in {folder} cannot be read ({error}). Run the experiment again with this folder:"
                " finished prompts are not repeated."
            ) from error

    def plot(
        self,
        *,
        ax: Places = None,
        rows: Rows = None,
        figsize: Size = None,
        colors: Colors = None,
        labels: Labels = None,
    ) -> Figure:
        """A figure of the result, which notebooks show; its PDF embeds TrueType fonts.

        A figure as narrow as a paper's column, such as figsize=(3.3, 2.4), has smaller letters and shorter words.

        Args:
            ax: axes to draw on: one, which is divided where the plot has several panels, or one for each panel. Titles
                and legends of the whole are then left to their figure, which is returned.
            rows: the names of the lines, bars or rows that are drawn, in their order; all unless given.
            figsize: (width, height) in inches.
            colors: by name, or one for each that is drawn: its line, band and legend; of a heat map the name of a
                matplotlib colour map.
            labels: what they are called, by name, or one for each that is drawn.

        Raises:
            MMFlowError: a name that is not drawn; the message has those that are.
        """
        return later(self.drawn_by)(self, look=Look(ax, rows, figsize, colors, labels))

    def summary(self) -> str:
        """A few lines for a person."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({later('told')(self)}, {self.n_rows} rows)"

    def _repr_html_(self) -> str:

        return later("result_html")(self)


def _with_lists(table: pd.DataFrame) -> pd.DataFrame:
    """The table with lists where it was saved with lists: parquet gives arrays."""
    for name in table.columns:
        if table[name].dtype == object and any(hasattr(cell, "tolist") for cell in table[name]):
            table[name] = [cell.tolist() if hasattr(cell, "tolist") else cell for cell in table[name]]
    return table


def bootstrap_band(table: pd.DataFrame, samples: int = 1000, seed: int = 0) -> Band:
    """Mean and 95% bootstrap interval of each column over the rows (prompts), as three arrays.

    Source: Cross-modal Information Flow (the mean of ratios; 1000 resamples).
    """
    import numpy as np

    values = table.to_numpy(dtype=float)
    drawn = np.random.default_rng(seed).integers(0, len(values), (samples, len(values)))
    # How often each row was drawn, times the rows: one product instead of a mean for each sample.
    counts = np.stack([np.bincount(rows, minlength=len(values)) for rows in drawn]).astype(float)
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means = (counts @ np.where(there, values, 0)) / (counts @ there)
    percentile = np.nanpercentile if np.isnan(means).any() else np.percentile  # the former goes column by column
    low, high = percentile(means, [2.5, 97.5], axis=0)
    return np.nanmean(values, 0), low, high


def saved(result: Result, folder: str | PathLike[str] | None, report: Callable[[str], None]) -> bool:
    """Saves a finished result into the run's folder, if there is one; says whether it is there.

    A result that cannot be saved is not lost: the caller has it, and is told.
    """
    if folder is None:
        return True
    try:
        result.save(folder)
    except OutputError as error:
        report(
            f"The result is finished, but was not saved: {error} It is returned all the same:"
            " result.save(FOLDER) writes it elsewhere."
        )
        return False
    return True
