"""What a sweep returns: the score at each x, beside the clean run's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.runs.results import Result, bootstrap_band
from nnsight_mmflow.runs.scores import FIRST, Quantity, columns, quantity_of, token_table

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow.prompts.prompt import Prompt

PAIR = ("x_0", "x_1")


class SweepResult(Result):
    """A sweep. One table row per prompt and x; controls have rows of their own.

    Columns: prompt, kind, x (of pairs also x_0 and x_1; of a mapping its names instead), control (0; of a control
    which draw), question, answer, prediction, correct, clean, score, change (score - clean), answer_changed. With the
    first token (score "first") score is its log-probability (nats), and base_probability, probability, change_percent
    and log_probability_change stand beside it, as in flow; with score "answer" those of each token do (`by_token`).
    """

    kind: ClassVar[str] = "sweep"
    drawn_by: ClassVar[str] = "sweep_figure"

    @property
    def axes(self) -> list[str]:
        """The columns that tell cells apart."""
        return [str(name) for name in self.header["axes"]]

    @property
    def quantity(self) -> Quantity:
        """What the plot shows, by the run's score."""
        return quantity_of(self.header["score"])

    @checked
    def to_frame(self, *, tokens: bool = False) -> pd.DataFrame:
        """A copy of the table; with `tokens=True` a row per token of the answer, as `by_token` tells."""
        return self.by_token() if tokens else self.table.copy()

    def by_token(self) -> pd.DataFrame:
        """What each token of the answer loses: a row per prompt, x and token: clean, score, change (nats).

        Raises:
            MMFlowError: the run's score is not made of tokens.
        """
        return token_table(self.table, ("prompt", *self.axes, "control"), self.header["score"])

    @checked
    def means(self, control: bool = False) -> pd.DataFrame:
        """A row per x, in the order of `over`: mean change over prompts, low and high (95% bootstrap), prompts.

        Args:
            control: of the controls instead, over draws and prompts.
        """
        import pandas as pd

        part = self.table[(self.table["control"] > 0) == control]
        if part.empty:
            raise MMFlowError("this sweep has no controls: mmf.sweep(..., controls=3).")
        rows = []
        for labels, cell in part.groupby(self.axes, sort=False):
            by_prompt = cell.groupby("prompt", sort=False)[[self.quantity.column]].mean()
            mean, low, high = (float(one[0]) for one in bootstrap_band(by_prompt))
            named = dict(zip(self.axes, labels if isinstance(labels, tuple) else (labels,), strict=True))
            rows.append({**named, "mean": mean, "low": low, "high": high, "prompts": len(by_prompt)})
        return pd.DataFrame(rows)

    def summary(self) -> str:
        """How many prompts counted, and where the change is largest."""
        header, unit = self.header, self.quantity.unit
        lines = [
            f"{header['model']}: {header['n_counted']} of {header['n_prompts']} prompts counted"
            + "".join(f"; {count} left out ({why})" for why, count in header["left_out"].items())
            + f"; followed: {self.quantity.what}"
        ]
        means = self.means()
        shown = means.reindex(means["mean"].abs().sort_values(ascending=False).index).head(5)
        for row in shown.to_dict("records"):
            where = ", ".join(f"{name}={row[name]}" for name in self.axes)
            lines.append(f"{where}: {row['mean']:+.3g}{unit} [{row['low']:+.3g}, {row['high']:+.3g}]")
        if (self.table["control"] > 0).any():
            drawn = self.means(control=True)["mean"]
            lines.append(f"controls: {drawn.min():+.3g}{unit} to {drawn.max():+.3g}{unit}")
        lacking = header.get("cells_without_control", 0)
        if lacking:
            lines.append(f"no control for {lacking} cell(s): their part of the prompt has too few other positions")
        return "\n".join(lines)


def collect(
    prompts: Sequence[Prompt], entries: Sequence[dict], axes: tuple[str, ...], settings: dict, lacking: int
) -> SweepResult:
    """The result of the finished prompts, as the journal keeps them.

    Raises:
        MMFlowError: none of them counted.
    """
    import pandas as pd

    score, rows, left_out = str(settings["score"]), [], dict[str, int]()
    for number, (prompt, entry) in enumerate(zip(prompts, entries, strict=True)):
        if entry.get("why"):
            left_out[entry["why"]] = left_out.get(entry["why"], 0) + 1
        for (control, *labels), numbers in zip(entry["cells"], entry["numbers"], strict=True):
            rows.append(
                {
                    "prompt": prompt.key or str(number),
                    "kind": prompt.kind,
                    **({"x": f"({labels[0]!r}, {labels[1]!r})"} if axes == PAIR else {}),
                    **dict(zip(axes, labels, strict=True)),
                    "control": control,
                    "question": prompt.question,
                    "answer": prompt.answer,
                    "prediction": entry["prediction"],
                    "correct": entry["correct"],
                    **(_plain(entry["base"], numbers) if score == FIRST else {}),
                    **columns(score, entry["base"], numbers, entry["words"]),
                }
            )
    if not rows:
        told = "; ".join(f"{count}: {why}" for why, count in left_out.items())
        raise MMFlowError(f"sweep: none of {len(prompts)} prompts counts ({told}): pass only_correct=False.")
    counted = len(prompts) - sum(left_out.values())
    header = {**settings, "n_prompts": len(prompts), "n_counted": counted, "left_out": left_out}
    if lacking:
        header["cells_without_control"] = lacking
    header["metric"] = quantity_of(score).label + "; mean over prompts"
    return SweepResult(pd.DataFrame(rows), header)


def _plain(base: Sequence[float], numbers: Sequence[float]) -> dict[str, float]:
    """The columns that every sweep has, of the first token's log-probability."""
    return {"clean": base[0], "score": numbers[0], "change": numbers[0] - base[0]}
