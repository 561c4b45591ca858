"""Results: small tables with a header that says how they came about; saved as parquet beside a JSON header."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from nnsight_mmflow._errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from nnsight_mmflow._plots import ShownFigure

R = TypeVar("R", bound="Result")
Band = tuple["np.ndarray", "np.ndarray", "np.ndarray"]  # mean, low, high
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

    def to_frame(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.table.copy()

    def save(self, folder: str | PathLike[str]) -> Path:
        """Writes the table (parquet) and the header (JSON) into the folder, and returns it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.table.to_parquet(folder / f"{self.kind}.parquet", index=False)
        (folder / f"{self.kind}.json").write_text(json.dumps(self.header, indent=2) + "\n")
        return folder

    @classmethod
    def load(cls: type[R], folder: str | PathLike[str]) -> R:
        """The result that was saved in the folder.

        Raises:
            DataError: the folder holds none of this kind.
        """
        import pandas as pd

        header = Path(folder) / f"{cls.kind}.json"
        if not header.exists():
            raise DataError(f"{folder} holds no {cls.__name__}: {header.name} is missing. Was it saved elsewhere?")
        return cls(pd.read_parquet(header.with_suffix(".parquet")), json.loads(header.read_text()))

    def plot(self) -> ShownFigure:
        """A figure of the result."""
        raise NotImplementedError

    def summary(self) -> str:
        """A few lines for a person."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        from nnsight_mmflow._shown_results import told

        return f"{type(self).__name__}({told(self)}, {len(self.table)} rows)"

    def _repr_html_(self) -> str:
        from nnsight_mmflow._shown_results import result_html

        return result_html(self)


def bootstrap_band(table: pd.DataFrame, samples: int = 1000, seed: int = 0) -> Band:
    """Mean and 95% bootstrap interval of each column over the rows (prompts), as three arrays.

    Source: Cross-modal Information Flow, spec section 3 (the mean of ratios; 1000 resamples).
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
