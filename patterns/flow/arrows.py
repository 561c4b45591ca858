"""The numbers behind the flow diagram: for each edge and layer how much the answer loses, and whether that is much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.patterns.flow.controls import controlled
from nnsight_mmflow.runs.results import bootstrap_band

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow.runs.results import Result

SMALLEST = 0.5  # percent: thinner arrows cannot be seen, and float noise lies far below
QUANTILE = 0.95


@dataclass(frozen=True)
class Thresholds:
    """From which effect on an arrow is drawn.

    Attributes:
        rule: "asked" (one number), "control" (by the run's controls) or "interval" (the 95% interval leaves 0 out).
        by_edge: percent for each edge.
        told: the same in a sentence or two.
    """

    rule: str
    by_edge: dict[str, float]
    told: str


def chosen_window(result: Result, window: int | None) -> int:
    """The window asked for, or the first of the result.

    Raises:
        MMFlowError: the result has none of that size.
    """
    there = [int(size) for size in result.table["window"].unique()]
    if window is not None and window not in there:
        raise MMFlowError(f"window={window}: this result has {there}. Run mmf.flow(..., window={window}) for it.")
    return there[0] if window is None else window


def control_means(result: Result, window: int) -> dict[str, pd.DataFrame]:
    """For each edge that has controls their mean change in percent: a row per draw, a column per layer."""
    table = result.table[result.table["window"] == window]
    means_of: dict[str, list[pd.Series]] = {}
    for name, part in table.groupby("edge", sort=False):
        edge = controlled(str(name))
        if edge is not None:
            means_of.setdefault(edge, []).append(part.groupby("layer")["change_percent"].mean().rename(str(name)))
    import pandas as pd

    return {edge: pd.DataFrame(means) for edge, means in means_of.items()}


def thresholds(result: Result, window: int, asked: int | float | None = None) -> Thresholds:
    """From which effect on an arrow is drawn, and why; `asked` in percent overrides the run's controls."""
    import numpy as np

    names = [str(name) for name in result.table.loc[result.table["window"] == window, "edge"].unique()]
    edges = [name for name in names if controlled(name) is None]
    if asked is not None:
        return Thresholds(
            "asked", dict.fromkeys(edges, float(asked)), f"Drawn: effects of at least {asked:g}%, as asked."
        )
    means = control_means(result, window)
    least = f"effects under {SMALLEST:g}% never"
    if not means:
        alone = int(result.header["n_counted"]) == 1
        rule = "of one prompt there is no interval" if alone else "the 95% bootstrap interval leaves 0 out"
        how = f"No control was run (controls=3 in mmf.flow). Drawn where {rule}; {least}."
        return Thresholds("interval", dict.fromkeys(edges, SMALLEST), how)
    sizes = {edge: np.abs(table.to_numpy(dtype=float)).ravel() for edge, table in means.items()}
    pooled = float(np.nanquantile(np.concatenate(list(sizes.values())), QUANTILE))
    by_edge = {
        edge: max(SMALLEST, float(np.nanquantile(sizes[edge], QUANTILE)) if edge in sizes else pooled) for edge in edges
    }
    draws, without = max(len(table) for table in means.values()), [edge for edge in edges if edge not in sizes]
    how = (
        f"Drawn: what exceeds the edge's control, the 95% quantile over layers of the mean effect of {draws} random"
        f" span{'s' if draws > 1 else ''} of the same size; {least}."
    )
    if without:
        how += (
            f" Too large for a control of their own, so held against all controls together ({pooled:.1f}%):"
            f" {', '.join(without)}."
        )
    return Thresholds("control", by_edge, how)


def arrows(result: Result, window: int, asked: int | float | None = None) -> pd.DataFrame:
    """A row per edge and layer, as `FlowResult.arrows` tells; control is NaN for an edge that has none of its own."""
    import pandas as pd

    limits, means = thresholds(result, window, asked), control_means(result, window)
    table = result.table[result.table["window"] == window]
    rows = []
    for edge, part in table.groupby("edge", sort=False):
        edge = str(edge)
        if controlled(edge) is not None:
            continue
        wide = part.pivot_table(index="prompt", columns="layer", values="change_percent")
        control = means[edge].mean() if edge in means else None
        source, _, target = (name.strip() for name in edge.partition("->"))
        for layer, mean, low, high in zip(wide.columns, *bootstrap_band(wide), strict=True):
            passes = limits.rule != "interval" or len(wide) == 1 or low > 0 or high < 0
            rows.append(
                {
                    "edge": edge,
                    "source": source,
                    "target": target,
                    "window": window,
                    "layer": int(layer),
                    "change": float(mean),
                    "low": float(low),
                    "high": float(high),
                    "prompts": len(wide),
                    "control": float("nan") if control is None else float(control[layer]),
                    "threshold": limits.by_edge[edge],
                    "drawn": bool(passes and abs(mean) >= limits.by_edge[edge]),
                }
            )
    return pd.DataFrame(rows)
