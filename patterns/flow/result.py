"""What a flow experiment returns: knockout curves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._later import later
from nnsight_mmflow._look import Look
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.patterns.flow.controls import controlled
from nnsight_mmflow.runs.answers import ANSWER
from nnsight_mmflow.runs.identity import prompt_names
from nnsight_mmflow.runs.results import Band, Result, bootstrap_band
from nnsight_mmflow.runs.scores import FIRST, Quantity, columns, quantity_of, token_table

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow._look import Colors, Figure, Labels, Places, Rows, Size
    from nnsight_mmflow._page import Page
    from nnsight_mmflow.inside.plan import Plan
    from nnsight_mmflow.prompts.prompt import Prompt

METRIC = "change of the first answer token's probability, in percent of the clean run's; mean over prompts"


class FlowResult(Result):
    """Knockout curves. One table row per prompt, edge, window size and centre layer; controls are edges of their own.

    Columns: prompt, kind, edge, window, layer, answer, prediction, correct, base_probability, probability,
    change_percent ((p_new - p_base) * 100 / p_base), log_probability_change (nats), answer_changed. With another
    `score` than the first token: clean, score and change (score - clean) in their place, change_percent of answers and
    captions, and answer_changed (it would no longer be written, greedily; of options: the other one is ahead).
    """

    kind: ClassVar[str] = "flow"

    @property
    def quantity(self) -> Quantity:
        """What the curves show, by the run's score: a column, a label with its unit, and words."""
        return quantity_of(self.header.get("score"))

    @checked
    def to_frame(self, *, tokens: bool = False) -> pd.DataFrame:
        """A copy of the table; with `tokens=True` a row per token of the answer, as `by_token` tells."""
        return self.by_token() if tokens else self.table.copy()

    def by_token(self) -> pd.DataFrame:
        """What each token of the answer loses: a row per prompt, edge, window, layer and token.

        Columns: prompt, edge, window, layer, token (its number), word, clean, score, change (nats).

        Raises:
            MMFlowError: the run's score is not made of tokens.
        """
        return token_table(self.table, ("prompt", "edge", "window", "layer"), self.header.get("score"))

    @checked
    def plot_tokens(
        self,
        edge: str | None = None,
        *,
        prompt: str | None = None,
        window: int | None = None,
        ax: Places = None,
        rows: Rows = None,
        figsize: Size = None,
        colors: Colors = None,
        labels: Labels = None,
    ) -> Figure:
        """A heat map, token by layer: what each token of one prompt's answer loses when the edge is closed.

        Args:
            edge: one of the result's; None for the first.
            prompt: its key or number in the table; None for the first.
            window: the window size; None for the first.
            ax: as in every result's plot, like all that follow.
            rows: which tokens are drawn, by their words; one that occurs again is "word [its number]".
            figsize: (width, height) in inches.
            colors: the name of a colour map.
            labels: of the tokens.
        """
        return later("tokens_figure")(self, edge, prompt, window, Look(ax, rows, figsize, colors, labels))

    @checked
    def curves(self, window: int | None = None) -> dict[str, Band]:
        """For each edge the mean change by layer, in percent or of `quantity`, and its 95% bootstrap band."""
        from nnsight_mmflow.patterns.flow.arrows import chosen_window

        table = self.table[self.table["window"] == chosen_window(self, window)]
        return {
            str(edge): bootstrap_band(part.pivot_table(index="prompt", columns="layer", values=self.quantity.column))
            for edge, part in table.groupby("edge", sort=False)
            if controlled(str(edge)) is None
        }

    @checked
    def controls(self, window: int | None = None) -> dict[str, pd.DataFrame]:
        """For each edge that has controls their mean change, as in `curves`: a row per draw, a column per layer."""
        from nnsight_mmflow.patterns.flow.arrows import chosen_window, control_means

        return control_means(self, chosen_window(self, window), self.quantity.column)

    @checked
    def arrows(self, window: int | None = None, threshold: int | float | None = None) -> pd.DataFrame:
        """The numbers behind `diagram`: a row per edge and layer.

        Columns: edge, source, target, window, layer, change (mean, in percent), low and high (95% bootstrap interval),
        prompts, control (mean of the edge's controls in that layer), threshold (percent), drawn.

        Raises:
            MMFlowError: the run's score is no probability, of which these are percents.
        """
        from nnsight_mmflow.patterns.flow.arrows import arrows, chosen_window

        return arrows(self, chosen_window(self, window), threshold)

    @checked
    def diagram(
        self,
        window: int | None = None,
        threshold: int | float | None = None,
        *,
        ax: Places = None,
        edges: Rows = None,
        rows: Rows = None,
        figsize: Size = None,
        colors: Colors = None,
        labels: Labels = None,
    ) -> Figure:
        """The flow diagram: a column per layer, a lane per span, an arrow as thick as what closing it costs.

        Args:
            window: the window size; None for the first of the result.
            threshold: arrows of smaller effect (percent) are left out. None: the controls of the run tell (`controls=`
                of `mmf.flow`), or without them the 95% bootstrap interval; the figure says which.
            ax: as in `plot`, like all that follow. On axes of yours, and in a figure narrower than 4.6 inches, what is
                drawn and counted is not told below: `arrows()` has the thresholds.
            edges: which edges have arrows; all unless given.
            rows: the same.
            figsize: (width, height) in inches; the lanes stand as far apart as the height allows.
            colors: by span.
            labels: by span.
        """
        look = Look(ax, rows if edges is None else edges, figsize, colors, labels, "edges")
        return later("diagram_figure")(self, window, threshold, look)

    def explore(self) -> Page:
        """The flow diagram as a page: numbers of each arrow, another threshold, another window."""
        return later("flow_page")(self)

    def plot(
        self,
        *,
        ax: Places = None,
        edges: Rows = None,
        rows: Rows = None,
        figsize: Size = None,
        colors: Colors = None,
        labels: Labels = None,
    ) -> Figure:
        """The curves: a line per edge, the mean of ratios with its 95% bootstrap band; a panel per window size.

        Each entry of the legend says of how many prompts its curve is.

        Args:
            ax: as in every result's plot, like all that follow.
            edges: which edges are drawn, in their order, such as ["image->question"]; all unless given.
            rows: the same; every result's plot has it.
            figsize: (width, height) in inches; (3.3, 2.4) is a paper's column.
            colors: by edge, such as {"image->last": "tab:red"}, or one for each that is drawn.
            labels: the same for the legend.

        Raises:
            MMFlowError: an edge that is not in the result; the message has those that are.
        """
        look = Look(ax, edges if rows is None else rows, figsize, colors, labels, "edges")
        return later("flow_figure")(self, look=look)

    def summary(self) -> str:
        """How many prompts counted, and where each edge matters most."""
        unit, digits = self.quantity.unit, 1 if self.quantity.unit == "%" else 2
        what = "" if self.header.get("score") is None else f"; followed: {self.quantity.what}"
        lines = [
            f"{self.header['model']}: {self.header['n_counted']} of {self.header['n_prompts']} prompts counted"
            + "".join(f"; {count} left out ({why})" for why, count in dict(self.header["left_out"]).items())
            + what
        ]
        for window in self.table["window"].unique():
            for edge, (mean, low, high) in self.curves(int(window)).items():
                layer = int(mean.argmin())
                lines.append(
                    f"window {window}, {edge}: lowest at layer {layer}, {mean[layer]:+.{digits}f}{unit}"
                    f" [{low[layer]:+.{digits}f}, {high[layer]:+.{digits}f}]"
                )
            for edge, means in self.controls(int(window)).items():
                lines.append(
                    f"window {window}, {len(means)} control(s) of {edge}: {means.min().min():+.{digits}f}{unit} to"
                    f" {means.max().max():+.{digits}f}{unit}"
                )
        return "\n".join(lines)


def collect(
    prompts: Sequence[Prompt],
    entries: Sequence[dict],
    missing: Sequence[dict[str, str]],
    settings: dict,
    plans: Sequence[Plan],
    engine: str,
) -> FlowResult:
    """The result of the finished prompts, as the journal keeps them.

    Raises:
        MMFlowError: none of them counted.
    """
    import pandas as pd

    rows: list[dict] = []
    score = settings.get("score")
    left_out: dict[str, int] = {}
    for name, prompt, entry in zip(prompt_names(prompts), prompts, entries, strict=True):
        if not entry["cells"]:
            why = entry.get("why", "answered otherwise")
            left_out[why] = left_out.get(why, 0) + 1
        base = [entry["base"], float(entry["token"])] if score is None else entry.get("base", [])
        for (edge, size, layer), numbers in zip(entry["cells"], entry["numbers"], strict=True):
            rows.append(
                {
                    "prompt": name,
                    "kind": prompt.kind,
                    "edge": edge,
                    "window": size,
                    "layer": layer,
                    "question": prompt.question,
                    "answer": prompt.answer,
                    "prediction": entry["prediction"],
                    "correct": entry["correct"],
                    **columns(score or FIRST, base, numbers, entry.get("words", ())),
                }
            )
    if not rows and set(left_out) != {"answered otherwise"}:
        told = "; ".join(f"{count}: {why}" for why, count in left_out.items())
        raise MMFlowError(f"none of {len(prompts)} prompts counts ({told}).")
    if not rows:
        shown = [(prompt.answer, entry["prediction"]) for prompt, entry in zip(prompts, entries, strict=True)][:3]
        raise MMFlowError(
            f"none of {len(prompts)} prompts was answered correctly, so there is nothing to measure; (expected, came):"
            f" {shown}. Check the template and the instruction, or pass only_correct=False."
        )
    for what in ("boxes", "options"):
        lost = sum(
            bool(getattr(prompt, what)) and what in lacks for prompt, lacks in zip(prompts, missing, strict=True)
        )
        if lost:
            left_out[f"no edges with {what}: not found in the prompt"] = lost
    answers = [edge for edge in settings["edges"] if re.search(rf"\b{ANSWER}\b", edge)]
    there = [{edge for edge, *_ in entry["cells"]} for entry in entries]
    lost = sum(bool(cells) and not cells.issuperset(answers) for cells in there)
    if lost:
        left_out["no edges with answer: it has one token"] = lost
    header = {
        **settings,
        "edges": list(settings["edges"]),
        "windows": list(settings["windows"]),
        "engine": engine,
        "n_layers": plans[0].sizes.n_layers,
        "n_prompts": len(prompts),
        "n_counted": sum(bool(entry["cells"]) for entry in entries),
        "left_out": {why: count for why, count in left_out.items() if count},
        "plan": repr(plans[0]),
        "metric": METRIC if score is None else quantity_of(score).label + "; mean over prompts",
        "seed": 0,
    }
    return FlowResult(pd.DataFrame(rows), header)
