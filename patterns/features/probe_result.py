"""What a probe found: accuracy by layer, with its interval, beside guessing and the control task."""

from __future__ import annotations

from typing import ClassVar

from nnsight_mmflow.runs.results import Result


class ProbeResult(Result):
    """Linear probes of features. One table row per layer.

    Columns: layer (-1: the embedding), n (prompts), right, accuracy, low, high (95% Wilson interval of the accuracy of
    prompts that were held out), majority (the share of the most frequent label: what naming it always gets right),
    control, control_low, control_high (the same for the control task: mean over its draws), control_majority,
    selectivity (accuracy - control). NaN without controls.
    """

    kind: ClassVar[str] = "probe"
    drawn_by: ClassVar[str] = "probe_figure"  # accuracy by layer, with its control task

    def summary(self) -> str:
        """Where the labels are found best, and what the control finds there."""
        header, best = self.header, self.table.iloc[int(self.table["accuracy"].to_numpy().argmax())]
        lines = [
            f"{header['model']}: {header['site']} at {header['at']}, {header['n_counted']} of {header['n_prompts']}"
            f" prompts, {len(header['classes'])} labels",
            f"best at layer {int(best['layer'])}: {best['accuracy']:.1%} [{best['low']:.1%}, {best['high']:.1%}] of"
            f" held-out prompts; the most frequent label is {best['majority']:.1%} of them",
        ]
        if header["controls"]:
            lines.append(
                f"control task there ({header['n_types']} types, {header['controls']} draws): {best['control']:.1%};"
                f" selectivity {best['selectivity']:+.1%}"
            )
        return "\n".join(lines)
