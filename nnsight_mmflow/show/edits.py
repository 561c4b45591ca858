"""Figures of edits and of edit reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._look import PLAIN, Look
from nnsight_mmflow.show.curves import label_layers, short, styles_of
from nnsight_mmflow.show.drawing import Drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nnsight_mmflow.patterns.edit.report import EditReport
    from nnsight_mmflow.patterns.edit.result import EditResult

SHADES = {"before": "#bbbbbb", "optimised": "#9ecae1", "after": "#2171b5"}
# Okabe and Ito's colours, and hatches for print in grey.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F", "#B8A500")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "|||", "ooo")


def edit_figure(result: EditResult, look: Look = PLAIN) -> Figure:
    """The new answer's probability of each fact: before, with the found change, after the edit."""
    import numpy as np

    one, chosen = result.table.drop_duplicates("fact"), look.chosen(list(SHADES))
    colors = look.color_of(chosen, SHADES, list(SHADES))
    labels = look.label_of(chosen, {"optimised": "with the found change"}, list(SHADES))
    drawing = Drawing(look, (max(5, 0.5 * len(one) + 3), 3.6))
    axes, wide = drawing.axes[0], 0.81 / len(chosen)
    for i, name in enumerate(chosen):
        places = np.arange(len(one)) + (i - (len(chosen) - 1) / 2) * wide
        axes.bar(places, one[name], wide, color=colors[name], label=f"{labels[name]} (n={len(one)})")
    upright = len(one) > 6 or drawing.small
    room = drawing.letters("cell", 0.9 if upright else drawing.width / len(one) - 0.2)
    names = [_cut(f"{fact}\n{target}", room) for fact, target in zip(one["fact"], one["target"], strict=True)]
    axes.set_xticks(range(len(one)), names, rotation=90 if upright else 0)
    axes.set_ylabel("P(new answer)")
    axes.set_ylim(0, 1.02)
    drawing.legend()
    layers = ", ".join(map(str, result.header["layers"]))
    drawing.title(f"{short(result.header['model'])}: edited in layer(s) {layers}", f", {len(one)} fact(s)")
    figure = drawing.done()
    axes.tick_params(axis="x", labelsize=drawing.size("cell"))
    return figure


def _cut(text: str, most: int) -> str:
    """Each line cut to so many letters."""
    return "\n".join(line if len(line) <= most else line[: most - 1] + "\u2026" for line in text.splitlines())


def report_figure(result: EditReport, look: Look = PLAIN) -> Figure:
    """Bars with 95% intervals: a panel per measure, a group per way, a bar per method."""
    import numpy as np

    scores, header, every = result.scores(), result.header, list(result.header["methods"])
    methods = look.chosen(every)
    own = {name: COLORS[number % len(COLORS)] for number, name in enumerate(every)}
    colors, labels = look.color_of(methods, own, every), look.label_of(methods, {}, every)
    measures = list(dict.fromkeys(scores["measure"]))
    ways = {measure: list(dict.fromkeys(scores[scores["measure"] == measure]["way"])) for measure in measures}
    ratios = [max(1, len(ways[measure])) + 0.6 for measure in measures]
    drawing = Drawing(look, (10, 3.9), 1, len(measures), share="y", ratios=ratios)
    for axes, measure in zip(drawing.axes, measures, strict=True):
        width = 0.84 / len(methods)
        for i, method in enumerate(methods):
            part = scores[(scores["measure"] == measure) & (scores["method"] == method)].set_index("way")
            part = part.reindex(ways[measure])
            spots = np.arange(len(part)) + (i - (len(methods) - 1) / 2) * width
            error = [part["right"] - part["low"], part["high"] - part["right"]]
            hatch, label = HATCHES[every.index(method) % len(HATCHES)], f"{labels[method]} (n={header['n_facts']})"
            style = {"color": colors[method], "hatch": hatch, "edgecolor": "white", "linewidth": 0}
            axes.bar(spots, part["right"], width * 0.94, label=label, **style)
            axes.errorbar(spots, part["right"], yerr=np.clip(error, 0, None), fmt="none", ecolor="black", lw=0.8)
        upright = drawing.small
        names = [way if upright else way.replace(" ", "\n") for way in ways[measure]]
        axes.set_xticks(range(len(ways[measure])), names, rotation=90 if upright else 0)
        axes.set_title(measure, fontsize=drawing.size("row"))
        axes.set_ylim(0, 1.02)
        axes.spines[["top", "right"]].set_visible(False)
    drawing.axes[0].set_ylabel("as wanted" if drawing.small else "answered as wanted")
    drawing.legend()
    drawing.title(f"Edits, {short(header['model'])}", f": {header['together']} edits at once; 95% intervals over edits")
    figure = drawing.done()
    for axes in drawing.axes:
        axes.tick_params(axis="x", labelsize=drawing.size("cell"))
    return figure


def layers_figure(result: EditReport, look: Look = PLAIN) -> Figure:
    """Efficacy, generalisation and specificity by edited layer, with 95% intervals over edits."""
    scores = result.scores()
    alone = {name: int(name.rsplit(" ", 1)[1]) for name in result.header["methods"] if name.startswith("edit, layer ")}
    styles = styles_of(look, ["efficacy", "generalisation", "specificity"])
    drawing = Drawing(look, (6, 3.8))
    axes = drawing.axes[0]
    for number, (measure, one) in enumerate(styles.items()):
        part = scores[(scores["measure"] == measure) & scores["method"].isin(list(alone))]
        each = part.groupby("method", sort=False)[["right", "low", "high"]].mean()
        each = each.set_axis([alone[str(name)] for name in each.index]).sort_index()
        error = [(each["right"] - each["low"]).clip(lower=0), (each["high"] - each["right"]).clip(lower=0)]
        style = one.counted(int(result.header["n_facts"]))
        shift = 0.06 * (number - (len(styles) - 1) / 2)
        axes.errorbar(each.index + shift, each["right"], yerr=error, linewidth=1.2, label=style.label, **style.line())
    label_layers(axes, "edited layer", max(alone.values()) + 1)
    axes.set_ylabel("answered as wanted")
    axes.set_ylim(-0.02, 1.04)
    drawing.legend()
    drawing.title(f"Edits, {short(result.header['model'])}", ": single edits in each layer, 95% intervals over edits")
    return drawing.done()
