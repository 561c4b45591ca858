"""What `mmf.accuracy` returns: generated answers, how many are right, and how many are those of the clean run."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow.runs.intervals import wilson
from nnsight_mmflow.runs.results import Result

if TYPE_CHECKING:
    import pandas as pd


Z = 1.959963984540054  # of a 95% interval


class AccuracyResult(Result):
    """Generated answers. One table row per prompt.

    Columns: prompt, kind, question, answer, generated, clean (what is generated without the patterns), right and
    clean_right (0 to 1, by the rule), agrees (generated is the same text as clean).
    """

    kind: ClassVar[str] = "accuracy"
    drawn_by: ClassVar[str] = "accuracy_figure"

    @property
    def n(self) -> int:
        """How many prompts count."""
        return len(self.table)

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return float(self.table["right"].mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95% Wilson interval."""
        return wilson(float(self.table["right"].sum()), self.n)

    @property
    def clean_accuracy(self) -> float:
        """The share that is right without the patterns."""
        return float(self.table["clean_right"].mean())

    @property
    def clean_interval(self) -> tuple[float, float]:
        """Its 95% Wilson interval."""
        return wilson(float(self.table["clean_right"].sum()), self.n)

    @property
    def agreement(self) -> float:
        """The share whose generated answer is the same as without the patterns."""
        return float(self.table["agrees"].mean())

    def scores(self) -> pd.DataFrame:
        """A row for all prompts, and one for each kind.

        Columns: kind, n, accuracy, low, high (95% Wilson interval), clean_accuracy, clean_low, clean_high, agreement.
        """
        import pandas as pd

        parts = [("all", self.table)]
        kinds = list(self.table.groupby("kind", sort=False))
        parts += [(str(kind), part) for kind, part in kinds] if len(kinds) > 1 else []
        rows = []
        for kind, part in parts:
            n, right, clean = len(part), float(part["right"].sum()), float(part["clean_right"].sum())
            (low, high), (clean_low, clean_high) = wilson(right, n), wilson(clean, n)
            row = {"kind": kind, "n": n, "accuracy": right / n, "low": low, "high": high, "clean_accuracy": clean / n}
            agreement = float(part["agrees"].mean())
            rows.append({**row, "clean_low": clean_low, "clean_high": clean_high, "agreement": agreement})
        return pd.DataFrame(rows)

    def summary(self) -> str:
        """How many are right, with the interval, and how many answers stay as they were."""
        header, (low, high), (clean_low, clean_high) = self.header, self.interval, self.clean_interval
        lines = [
            f"{header['model']}: {header['n_counted']} of {header['n_prompts']} prompts counted"
            + "".join(f"; {count} left out ({why})" for why, count in header["left_out"].items())
            + f"; right by {header['match']!r}"
        ]
        if header["patterns"]:
            lines.append(f"with {', '.join(header['patterns'])}:")
        lines.append(f"{self.accuracy:.1%} right (95% Wilson interval {low:.1%} to {high:.1%}, n = {self.n})")
        if header["patterns"]:
            lines.append(f"clean: {self.clean_accuracy:.1%} ({clean_low:.1%} to {clean_high:.1%})")
            lines.append(f"{self.agreement:.1%} of the answers are those of the clean run")
        return "\n".join(lines)
