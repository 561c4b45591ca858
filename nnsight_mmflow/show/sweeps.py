"""Figures of sweeps: a line over numbers, bars over names, a heat map over two axes."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from nnsight_mmflow._look import PLAIN, Look
from nnsight_mmflow.show.curves import short, value_label
from nnsight_mmflow.show.drawing import Drawing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nnsight_mmflow.patterns.accuracy_result import AccuracyResult
    from nnsight_mmflow.patterns.sweep.result import SweepResult

COLOR, GREY, MANY = "#0072B2", "#999999", 24
CONTROL = "random positions, as many"


def sweep_figure(result: SweepResult, look: Look = PLAIN) -> Figure:
    """The mean change by x, with its 95% bootstrap band over prompts; controls in grey."""
    means = result.means()
    if len(result.axes) == 2:
        return _heat(result, means, look)
    drawn = {"sweep": means}
    if (result.table["control"] > 0).any():
        drawn[CONTROL] = result.means(control=True)
    x = result.axes[0]
    return _lines(result, drawn, x, look) if means[x].dtype.kind in "if" else _bars(result, drawn, x, look)


def _title(drawing: Drawing, result: SweepResult, more: str = "") -> Figure:
    drawing.title(f"Sweep, {short(result.header['model'])} (n={result.header['n_counted']})", more)
    return drawing.done()


def _lines(result: SweepResult, drawn: dict[str, pd.DataFrame], x: str, look: Look) -> Figure:
    chosen = look.chosen(list(drawn))
    colors = look.color_of(chosen, {"sweep": COLOR, CONTROL: GREY}, list(drawn))
    labels = look.label_of(chosen, {CONTROL: f"control: {CONTROL}"}, list(drawn))
    drawing = Drawing(look, (6.4, 3.9))
    axes = drawing.axes[0]
    axes.axhline(0, color="0.4", linewidth=0.8)
    for name in reversed(chosen):  # the sweep on top
        table, control = drawn[name].sort_values(x), name == CONTROL
        every = max(1, len(table) // 12)
        line = {"linestyle": "--"} if control else {"marker": "o", "markersize": 5, "markevery": every}
        axes.plot(table[x], table["mean"], color=colors[name], label=labels[name], **line)
        axes.fill_between(table[x], table["low"], table["high"], color=colors[name], alpha=0.2, linewidth=0)
    if drawn["sweep"][x].dtype.kind == "i":
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(_shown(x))
    axes.set_ylabel(value_label(result.quantity, drawing.small))
    _open(axes)
    if len(drawn) > 1:
        drawing.legend()
    return _title(drawing, result, ": mean and 95% bootstrap band")


def _bars(result: SweepResult, drawn: dict[str, pd.DataFrame], x: str, look: Look) -> Figure:
    """Lying bars, so that names can be read; controls below each."""
    every = [str(name) for name in drawn["sweep"][x]]
    chosen = look.chosen(every)
    colors = look.color_of(chosen, dict.fromkeys(chosen, COLOR), every)
    labels = look.label_of(chosen, {}, every)
    drawing = Drawing(look, (6.4, min(14, max(2.4, 1.3 + 0.34 * len(chosen)))))
    axes, both = drawing.axes[0], len(drawn) > 1
    height = 0.4 if both else 0.7
    axes.axvline(0, color="0.4", linewidth=0.8)
    for number, (name, table) in enumerate(drawn.items()):
        rows = {str(row[x]): row for _, row in table.iterrows()}
        held = [label for label in chosen if label in rows]
        places = [chosen.index(label) + (number - 0.5) * height * both for label in held]
        _bar(axes, places, [rows[label] for label in held], height, [GREY if number else colors[one] for one in held])
        axes.barh([0], [0], height=0, color=GREY if number else COLOR, label=f"control: {CONTROL}" if number else name)
    axes.set_yticks(range(len(chosen)), [textwrap.shorten(labels[one], 34, placeholder=" …") for one in chosen])
    axes.invert_yaxis()
    axes.set_xlabel(value_label(result.quantity, drawing.small))
    axes.set_ylabel(_shown(x))
    _open(axes)
    if both:
        drawing.legend()
    return _title(drawing, result, ": mean and 95% bootstrap interval")


def _bar(axes: Axes, places: list[float], rows: list[pd.Series], height: float, colors: list[str]) -> None:
    means = [float(row["mean"]) for row in rows]
    below = [max(0.0, float(row["mean"] - row["low"])) for row in rows]
    above = [max(0.0, float(row["high"] - row["mean"])) for row in rows]
    axes.barh(places, means, height=height, color=colors)
    axes.errorbar(means, places, xerr=[below, above], fmt="none", ecolor="0.2", elinewidth=1, capsize=2)


def _heat(result: SweepResult, means: pd.DataFrame, look: Look) -> Figure:
    import numpy as np
    from matplotlib.colors import TwoSlopeNorm

    across, down = result.axes
    columns = list(dict.fromkeys(means[across]))
    by_name = {str(value): value for value in means[down]}
    rows = look.chosen(list(by_name))
    labels = look.label_of(rows, {}, list(by_name))
    wide = means.pivot_table(index=down, columns=across, values="mean")
    values = wide.reindex(index=[by_name[name] for name in rows], columns=columns).to_numpy(dtype=float)
    largest = max(float(np.nanmax(np.abs(values))), 1e-6)
    size = min(11, max(4.5, 2.4 + 0.3 * len(columns))), min(12, max(2.6, 1.4 + 0.28 * len(rows)))
    drawing = Drawing(look, size)
    axes, norm = drawing.axes[0], TwoSlopeNorm(0.0, -largest, largest)
    image = axes.imshow(values, cmap=look.color_map("RdBu"), norm=norm, aspect="auto", interpolation="nearest")
    many = 8 if drawing.small else MANY
    for names, ticks in (([_shown(one) for one in columns], axes.set_xticks), ([*labels.values()], axes.set_yticks)):
        step = max(1, -(-len(names) // many))
        ticks(range(0, len(names), step), names[::step])
    axes.set_xlabel(_shown(across))
    axes.set_ylabel(_shown(down))
    drawing.colorbar(image, [axes], value_label(result.quantity, drawing.small))
    return _title(drawing, result)


def _shown(label: object) -> str:
    return str(label).replace("$", r"\$")


def _open(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def accuracy_figure(result: AccuracyResult, look: Look = PLAIN) -> Figure:
    """Accuracy in percent with its 95% Wilson interval, clean and with the patterns; n stands behind each name."""
    scores, changed = result.scores(), bool(result.header["patterns"])
    ways = {"clean": "clean_", "with the patterns": ""} if changed else {"accuracy": ""}
    every = list(ways)
    chosen = look.chosen(every)
    colors = look.color_of(chosen, {name: GREY if name == "clean" else COLOR for name in chosen}, every)
    labels = look.label_of(chosen, {}, every)
    drawing = Drawing(look, (6.4, min(12, 1.6 + 0.5 * len(scores))))
    axes, height = drawing.axes[0], 0.8 / len(chosen)
    for number, name in enumerate(chosen):
        low, high, mean = (100 * scores[f"{ways[name]}{column}"] for column in ("low", "high", "accuracy"))
        at = [place + (number - (len(chosen) - 1) / 2) * height for place in range(len(scores))]
        axes.barh(at, mean, height=height, color=colors[name], label=labels[name])
        spread = [(mean - low).clip(lower=0), (high - mean).clip(lower=0)]
        axes.errorbar(mean, at, xerr=spread, fmt="none", ecolor="0.2", elinewidth=1, capsize=2)
    axes.set_yticks(range(len(scores)), [f"{_shown(row.kind)} (n={row.n})" for row in scores.itertuples()])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    right = f"right by {_shown(result.header['match'])} (%)"
    axes.set_xlabel(right if drawing.small else f"{right}, 95% Wilson interval")
    _open(axes)
    if changed:
        drawing.legend()
    kept = f"; {result.agreement:.0%} of answers as in the clean run" if changed else ""
    drawing.title(f"Accuracy, {short(result.header['model'])}", kept)
    return drawing.done()
