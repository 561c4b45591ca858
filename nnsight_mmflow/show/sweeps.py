"""Figures of sweeps: a line over numbers, bars over names, a heat map over two axes."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from nnsight_mmflow._figure import ShownFigure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from nnsight_mmflow.patterns.accuracy_result import AccuracyResult
    from nnsight_mmflow.patterns.sweep.result import SweepResult

COLOR, GREY, MANY = "#0072B2", "0.6", 24


def sweep_figure(result: SweepResult) -> ShownFigure:
    """The mean change by x, with its 95% bootstrap band over prompts; controls in grey."""
    means, axes_names = result.means(), result.axes
    controls = result.means(control=True) if (result.table["control"] > 0).any() else None
    name = str(result.header["model"]).rstrip("/").split("/")[-1]
    title = f"Sweep, {name}: {result.header['n_counted']} prompt{'s' if result.header['n_counted'] > 1 else ''}"
    figure = ShownFigure(figsize=(6.4, 3.9), layout="constrained")
    axes = figure.subplots()
    if len(axes_names) == 2:
        _heat(figure, axes, result, means)
        axes.set_title(title, fontsize=10)
        return figure
    x = axes_names[0]
    numeric = means[x].dtype.kind in "if"
    axes.set_title(f"{title}, mean and 95% bootstrap {'band' if numeric else 'interval'}", fontsize=10)
    axes.axhline(0, color="0.4", linewidth=0.8)
    if numeric:
        _line(axes, means.sort_values(x), x, controls)
        axes.set_xlabel(_shown(x))
        axes.set_ylabel(result.quantity.label)
    else:
        _bars(figure, axes, means, x, controls, result.quantity.label)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if controls is not None:
        axes.legend(frameon=False, fontsize=9)
    return figure


def _line(axes: Axes, means: pd.DataFrame, x: str, controls: pd.DataFrame | None) -> None:
    if controls is not None:
        drawn = controls.sort_values(x)
        axes.plot(drawn[x], drawn["mean"], color=GREY, linestyle="--", label="control: random positions, as many")
        axes.fill_between(drawn[x], drawn["low"], drawn["high"], color=GREY, alpha=0.25, linewidth=0)
    every = max(1, len(means) // 12)
    axes.plot(means[x], means["mean"], color=COLOR, marker="o", markersize=5, markevery=every, label="sweep")
    axes.fill_between(means[x], means["low"], means["high"], color=COLOR, alpha=0.15, linewidth=0)
    if means[x].dtype.kind == "i":
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _bars(
    figure: ShownFigure, axes: Axes, means: pd.DataFrame, x: str, controls: pd.DataFrame | None, label: str
) -> None:
    """Lying bars, so that names can be read."""
    places = list(range(len(means)))
    figure.set_size_inches(6.4, min(14, max(2.4, 1.3 + 0.34 * len(means))))
    height = 0.4 if controls is not None else 0.7
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.lines[0].set_visible(False)
    _bar(axes, [place - height / 2 * (controls is not None) for place in places], means, height, COLOR, "sweep")
    if controls is not None:
        at = {label: place for place, label in enumerate(means[x])}
        lower = [at[label] + height / 2 for label in controls[x]]
        _bar(axes, lower, controls, height, GREY, "control: random positions, as many")
    axes.set_yticks(places, [textwrap.shorten(_shown(one), 34, placeholder=" …") for one in means[x]], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.set_ylabel(_shown(x))


def _bar(axes: Axes, places: list[float], means: pd.DataFrame, height: float, color: str, label: str) -> None:
    spread = [(means["mean"] - means["low"]).clip(lower=0), (means["high"] - means["mean"]).clip(lower=0)]
    axes.barh(places, means["mean"], height=height, color=color, label=label)
    axes.errorbar(means["mean"], places, xerr=spread, fmt="none", ecolor="0.2", elinewidth=1, capsize=2)


def _heat(figure: ShownFigure, axes: Axes, result: SweepResult, means: pd.DataFrame) -> None:
    import numpy as np
    from matplotlib.colors import TwoSlopeNorm

    across, down = result.axes
    columns, rows = list(dict.fromkeys(means[across])), list(dict.fromkeys(means[down]))
    wide = means.pivot_table(index=down, columns=across, values="mean").reindex(index=rows, columns=columns)
    values = wide.to_numpy(dtype=float)
    largest = max(float(np.nanmax(np.abs(values))), 1e-6)
    figure.set_size_inches(min(11, max(4.5, 2.4 + 0.3 * len(columns))), min(12, max(2.6, 1.4 + 0.28 * len(rows))))
    norm = TwoSlopeNorm(0.0, -largest, largest)
    image = axes.imshow(values, cmap="RdBu", norm=norm, aspect="auto", interpolation="nearest")
    for labels, ticks in ((columns, axes.set_xticks), (rows, axes.set_yticks)):
        step = max(1, -(-len(labels) // MANY))
        ticks(range(0, len(labels), step), [_shown(one) for one in labels[::step]], fontsize=8)
    axes.set_xlabel(_shown(across))
    axes.set_ylabel(_shown(down))
    figure.colorbar(image, ax=axes, label=textwrap.fill(result.quantity.label, 34))


def _shown(label: object) -> str:
    return str(label).replace("$", r"\$")


def accuracy_figure(result: AccuracyResult) -> ShownFigure:
    """Accuracy in percent with its 95% Wilson interval, clean and with the patterns; n stands behind each name."""
    scores, changed = result.scores(), bool(result.header["patterns"])
    figure = ShownFigure(figsize=(6.4, min(12, 1.6 + 0.5 * len(scores))), layout="constrained")
    axes, places = figure.subplots(), list(range(len(scores)))
    ways = [("clean", "clean_", GREY, -0.2), ("with the patterns", "", COLOR, 0.2)] if changed else [("", "", COLOR, 0)]
    for label, prefix, color, shift in ways:
        low, high = 100 * scores[f"{prefix}low"], 100 * scores[f"{prefix}high"]
        means = 100 * scores[f"{prefix}accuracy"]
        at, height = [place + shift for place in places], 0.4 if changed else 0.6
        axes.barh(at, means, height=height, color=color, label=label)
        spread = [(means - low).clip(lower=0), (high - means).clip(lower=0)]
        axes.errorbar(means, at, xerr=spread, fmt="none", ecolor="0.2", elinewidth=1, capsize=2)
    axes.set_yticks(places, [f"{_shown(row.kind)} (n = {row.n})" for row in scores.itertuples()], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"right by {_shown(result.header['match'])} (%), 95% Wilson interval")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if changed:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    name = str(result.header["model"]).rstrip("/").split("/")[-1]
    kept = f"; {result.agreement:.0%} of answers as in the clean run" if changed else ""
    axes.set_title(f"Accuracy, {_shown(name)}{kept}", fontsize=10)
    return figure
