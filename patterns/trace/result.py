"""What causal tracing returns: effects by span, site and layer; every picture says how they came about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._later import later
from nnsight_mmflow._look import Look
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.runs.identity import prompt_names
from nnsight_mmflow.runs.results import Result
from nnsight_mmflow.runs.scores import FIRST, OPTIONS, WHOLE, quantity_of, token_table

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow._look import Colors, Figure, Labels, Places, Rows, Size
    from nnsight_mmflow.patterns.trace.corruption import Corruption
    from nnsight_mmflow.prompts.prompt import Prompt

SAME = "same answer: "  # what the spans of the same-answer control are called by
QUANTITIES = {
    "effect": "indirect effect, P_restored - P_corrupt",
    "normalised_effect": "normalised indirect effect, (P_restored - P_corrupt) / (P_clean - P_corrupt)",
    "restored_probability": "P_restored (raw)",
    "log_probability_change": "change of the answer's log-probability (nats)",
    "answer_restored": "share of prompts whose top answer comes back",
}


class CausalTraceResult(Result):
    """Causal tracing. One table row per prompt, span, site and centre layer.

    Columns: prompt, kind, corruption, span, positions (how many), site, layer, first_layer, last_layer, answer,
    clean_probability, corrupt_probability, restored_probability, effect (P_restored - P_corrupt), normalised_effect
    ((P_restored - P_corrupt) / (P_clean - P_corrupt)), log_probability_change, answer_restored. With score "answer"
    these are of the whole answer; with "options" or a function, clean_score, corrupt_score and restored_score stand in
    the probabilities' place, and effects are differences of scores.
    """

    kind: ClassVar[str] = "causal_trace"

    @checked
    def to_frame(self, *, tokens: bool = False) -> pd.DataFrame:
        """A copy of the table; with `tokens=True` a row per token of the answer: corrupt, score, change (nats)."""
        names = ("prompt", "span", "site", "layer")
        return token_table(self.table, names, self.header.get("score"), "corrupt") if tokens else self.table.copy()

    @checked
    def map(self, quantity: str = "effect") -> dict[str, pd.DataFrame]:
        """For each site the mean over prompts: a row per span, a column per centre layer."""
        known = [name for name in QUANTITIES if name in self.table]
        if quantity not in known:
            raise MMFlowError(f"quantity must be one of {', '.join(known)}, not {quantity!r}.")
        order = list(dict.fromkeys(self.table["span"]))
        return {
            str(site): part.pivot_table(index="span", columns="layer", values=quantity, aggfunc="mean").reindex(
                [span for span in order if part.loc[part["span"] == span, quantity].notna().any()]
            )
            for site, part in self.table.groupby("site", sort=False)
        }

    @checked
    def caption(self, quantity: str = "effect") -> str:
        """What every picture states: quantity, window, layers, corruption, P_clean, P_corrupt, how many prompts."""
        if quantity not in QUANTITIES:
            raise MMFlowError(f"quantity must be one of {', '.join(QUANTITIES)}, not {quantity!r}.")
        prompts = self.table[~self.table["span"].str.startswith(SAME)].drop_duplicates("prompt")
        left = sum(self.header["left_out"].values())
        size = int(self.header.get("window") or self.header["width"])  # of results before 0.3
        window = "single layers" if size == 1 else f"windows of {size} layers (half-width {size // 2})"
        hows, score = self.header["corruptions"], self.header.get("score")
        told, letter = QUANTITIES[quantity], "P"
        if score not in (None, WHOLE):
            told, letter = told.replace("P_", "S_") + f"; S: {quantity_of(score).what}", "S"
        elif score == WHOLE:
            told += "; P: of the whole answer"
        which = "probability" if letter == "P" else "score"
        return (
            f"{told}; {window}, layers counted from 0; corruption: {hows[0]}"
            + (f" and {len(hows) - 1} more" if len(hows) > 1 else "")
            + f"; mean {letter}_clean {prompts[f'clean_{which}'].mean():.2f},"
            f" {letter}_corrupt {prompts[f'corrupt_{which}'].mean():.2f};"
            f" {self.header['n_counted']} prompts, {left} left out"
        )

    @checked
    def plot(
        self,
        quantity: str = "effect",
        *,
        ax: Places = None,
        rows: Rows = None,
        figsize: Size = None,
        colors: Colors = None,
        labels: Labels = None,
    ) -> Figure:
        """Heat maps, span by layer, a panel per site; the caption states what they show. The rows are the spans."""
        return later("trace_figure")(self, quantity, Look(ax, rows, figsize, colors, labels))

    def summary(self) -> str:
        """Where each span brings most of the answer back."""
        controls = self.table[self.table["span"].str.startswith(SAME)]
        lines = [
            f"{self.header['model']}: {self.header['n_counted']} of {self.header['n_prompts']} prompts counted"
            + "".join(f"; {count} left out ({why})" for why, count in self.header["left_out"].items()),
            self.caption(),
        ]
        for site, table in self.map().items():
            for span, row in table[~table.index.str.startswith(SAME)].iterrows():
                lines.append(f"{site}, {span}: largest at layer {row.idxmax()}, {row.max():+.3f}")
        if len(controls):
            lines.append(
                f"control, runs with the same answer ({self.header['same_answer'][0]}): the largest effect of a cell,"
                f" mean over prompts, is {controls.groupby(['span', 'site', 'layer'])['effect'].mean().abs().max():.3f}"
            )
        return "\n".join(lines)


def collect_trace(
    runs: Sequence[tuple[Prompt, Corruption, dict[str, list[int]]]],
    entries: Sequence[dict],
    n_prompts: int,
    sites: Sequence[str],
    windows: Sequence[range],
    settings: dict,
) -> CausalTraceResult:
    """The result of finished prompts.

    Args:
        runs: (prompt, corruption, positions by span): first those of the prompts, then those of their controls.
        entries: what was measured of each.
        n_prompts: how many of the runs are no controls.
        sites: which were restored.
        windows: of layers.
        settings: for the header.

    Raises:
        MMFlowError: every prompt was left out.
    """
    import pandas as pd

    rows: list[dict] = []
    left_out: dict[str, int] = {}
    names = prompt_names([prompt for prompt, *_ in runs[:n_prompts]])
    for number, ((prompt, corruption, where), entry) in enumerate(zip(runs, entries, strict=True)):
        control = number >= n_prompts
        if control and entries[number - n_prompts]["left_out"]:
            continue
        if entry["left_out"]:
            left_out[entry["left_out"]] = left_out.get(entry["left_out"], 0) + 1
            continue
        numbers = {(span, site, first, end): found for span, site, first, end, *found in entry["cells"]}
        name = settings.get("score") or FIRST
        for span, at in where.items():
            for site in sites:
                for layer, window in enumerate(windows):
                    rows.append(
                        {
                            "prompt": names[number % n_prompts],
                            "kind": prompt.kind,
                            "corruption": corruption.how,
                            "span": span,
                            "positions": len(at),
                            "site": site,
                            "layer": layer,
                            "first_layer": window.start,
                            "last_layer": window.stop - 1,
                            "answer": entry["prediction"],
                            **_effect(name, entry, numbers[span, site, window.start, window.stop], control),
                        }
                    )
    if not rows:
        reasons = "; ".join(f"{count}: {why}" for why, count in left_out.items())
        raise MMFlowError(
            f"none of {n_prompts} prompts counts ({reasons}). Choose a corruption that takes the answer away, or other"
            " limits: only_correct=False, min_clean=, max_corrupt=."
        )
    header = {
        **settings,
        "n_prompts": n_prompts,
        "n_counted": n_prompts - sum(left_out.values()),
        "left_out": left_out,
        "corruptions": list(dict.fromkeys(corruption.how for _, corruption, _ in runs[:n_prompts])),
    }
    return CausalTraceResult(pd.DataFrame(rows), header)


def _effect(name: str, entry: dict, numbers: Sequence[float], control: bool) -> dict[str, object]:
    """What a row says of a cell's numbers: of probabilities, or of another score."""
    high, low = entry.get("bases", [[entry["clean"]], []])  # of folders before there were scores
    is_probability = name in (FIRST, WHOLE)
    value = math.exp if is_probability else float
    clean, corrupt, restored = value(high[0]), value(entry["corrupt"]), value(numbers[0])
    what = "probability" if is_probability else "score"
    row: dict[str, object] = {f"clean_{what}": clean, f"corrupt_{what}": corrupt, f"restored_{what}": restored}
    row["effect"] = restored - corrupt
    # a control's run has the answer: there is nothing to restore
    row["normalised_effect"] = math.nan if control or clean == corrupt else (restored - corrupt) / (clean - corrupt)
    if is_probability:
        row["log_probability_change"] = numbers[0] - entry["corrupt"]
    if name == FIRST:
        row["answer_restored"] = int(numbers[1]) == entry["token"]
    elif name in (WHOLE, OPTIONS):
        row["answer_restored"] = bool(numbers[1]) == bool(high[1])
    if name == WHOLE:
        row |= {"tokens": entry["words"], "corrupt_token_scores": low[2:], "token_scores": list(numbers[2:])}
    return row
