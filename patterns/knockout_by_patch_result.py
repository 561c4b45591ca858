"""What knockout by patch returns: the effect of each piece of the picture, and how they spread."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._later import later
from nnsight_mmflow._look import Look
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.prompts.prompt import Prompt
from nnsight_mmflow.runs.results import Result
from nnsight_mmflow.runs.scores import Quantity, quantity_of, token_table

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow._look import Colors, Figure, Labels, Places, Rows, Size


@dataclass(frozen=True, repr=False)
class KnockoutByPatchResult(Result):
    """The effect of each image token, or square of them. One table row per region and window of layers.

    Columns: prompt, region, image, view, tile, row and column (of its upper left patch), n_tokens, positions, window,
    layer (the window's centre), first_layer, last_layer, base_probability, probability, change_percent
    ((p_new - p_base) * 100 / p_base), log_probability_change (nats), answer_changed, control_change_percent (of as many
    random patches of the same view; NaN for single tokens). With another `score` than the first token clean, score and
    change in place of the probabilities, as in `mmf.flow`, and control_change.

    Attributes:
        prompt: what was run, for `plot`; None after `load`.
    """

    prompt: Prompt | None = field(default=None, repr=False)
    kind: ClassVar[str] = "knockout_by_patch"

    @property
    def quantity(self) -> Quantity:
        """What is drawn, by the run's score."""
        return quantity_of(self.header.get("score"))

    @checked
    def to_frame(self, *, tokens: bool = False) -> pd.DataFrame:
        """A copy of the table; with `tokens=True` a row per token of the answer: word, clean, score, change (nats)."""
        names = ("prompt", "region", "window", "layer")
        return token_table(self.table, names, self.header.get("score")) if tokens else self.table.copy()

    def spread(self) -> pd.DataFrame:
        """By window: layer, mean, low and high (95% range) of the change (`quantity`), over regions and over controls.

        Columns: layer, mean, low, high, whole (all source tokens closed at once), control_mean, control_low,
        control_high, below_control (share of the regions below the range of the controls).
        """
        import pandas as pd

        rows, column = [], self.quantity.column
        for (layer, part), whole in zip(self.table.groupby("layer"), self.header[f"whole_{column}"], strict=True):
            change, control = part[column], part[f"control_{column}"]
            low = control.quantile(0.025)
            rows.append(
                {
                    "layer": layer,
                    "mean": change.mean(),
                    "low": change.quantile(0.025),
                    "high": change.quantile(0.975),
                    "whole": whole,
                    "control_mean": control.mean(),
                    "control_low": low,
                    "control_high": control.quantile(0.975),
                    "below_control": float("nan") if control.isna().all() else (change < low).mean(),
                }
            )
        return pd.DataFrame(rows)

    @checked
    def plot(
        self,
        prompt: Prompt | None = None,
        *,
        image: int = 0,
        view: str | None = None,
        ax: Places = None,
        rows: Rows = None,
        figsize: Size = None,
        colors: Colors = None,
        labels: Labels = None,
    ) -> Figure:
        """The change on the picture, a panel for each window; `prompt` is needed where the result was loaded.

        The rows are the panels, by their titles.

        Raises:
            MMFlowError: a loaded result without a prompt.
        """
        shown = prompt or self.prompt
        if shown is None:
            raise MMFlowError("a loaded result holds no picture: result.plot(prompt), with the prompt it is of.")
        panels, look = later("patch_panels")(self, shown, image), Look(ax, rows, figsize, colors, labels)
        return later("heat_figure")(shown, panels, image=image, view=view, signed=True, look=look)

    def summary(self) -> str:
        """The most harmful region of each window, beside the distribution over regions and the control."""
        header = self.header
        size = header["size"]
        what = "image tokens" if size == 1 else f"squares of {size} x {size} patches"
        column, unit = self.quantity.column, self.quantity.unit
        told = f"followed: {self.quantity.what}"
        if "score" not in header:
            told = f"the answer is {header['answer']!r}, p = {header['base_probability']:.3f}"
        lines = [
            f"{header['model']}: {header['source']}->{header['target']}, closed for each of {header['n_regions']}"
            f" {what}; {told}"
        ]
        for row in self.spread().to_dict("records"):
            part = self.table[self.table["layer"] == row["layer"]].sort_values(column)
            worst = part.iloc[0]
            where = f"row {worst['row']}, column {worst['column']}" if worst["view"] else "a token without patch"
            text = (
                f"layers {worst['first_layer']} to {worst['last_layer']}: mean {row['mean']:+.2g}{unit}, 95% of them"
                f" from {row['low']:+.2g}{unit} to {row['high']:+.2g}{unit}; lowest {worst[column]:+.3g}{unit}"
                f" ({where}); all at once {row['whole']:+.3g}{unit}"
            )
            if not math.isnan(row["below_control"]):
                text += (
                    f"; random patches, as many: mean {row['control_mean']:+.2g}{unit}, 95% from"
                    f" {row['control_low']:+.2g}{unit} to {row['control_high']:+.2g}{unit};"
                    f" {row['below_control']:.0%} of the squares lie below"
                )
            lines.append(text)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(self.summary())}</pre>" if self.prompt is None else super()._repr_html_()
