"""Figures of edits and of edit reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._figure import ShownFigure

if TYPE_CHECKING:
    from nnsight_mmflow.patterns.edit.report import EditReport
    from nnsight_mmflow.patterns.edit.result import EditResult

SHADES = {"before": "#bbbbbb", "optimised": "#9ecae1", "after": "#2171b5"}
# Okabe and Ito's colours, and hatches for print in grey.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F", "#B8A500")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "|||", "ooo")


def edit_figure(result: EditResult) -> ShownFigure:
    """The new answer's probability of each fact: before, with the found change, after the edit."""
    import numpy as np

    facts = result.table.drop_duplicates("fact")
    figure = ShownFigure(figsize=(max(5, 0.5 * len(facts) + 3), 3.6), layout="constrained")
    axes = figure.subplots()
    for i, (name, shade) in enumerate(SHADES.items()):
        label = "with the found change" if name == "optimised" else name
        axes.bar(np.arange(len(facts)) + (i - 1) * 0.27, facts[name], 0.27, color=shade, label=label)
    labels = [f"{fact}\n{target}" for fact, target in zip(facts["fact"], facts["target"], strict=True)]
    axes.set_xticks(range(len(facts)), labels, rotation=90 if len(facts) > 6 else 0, fontsize=7)
    axes.set_ylabel("P(new answer)")
    axes.set_ylim(0, 1.02)
    layers = ", ".join(map(str, result.header["layers"]))
    axes.set_title(f"{result.header['model']}: {len(facts)} fact(s) edited in layer(s) {layers}", fontsize=9)
    axes.legend(fontsize=7, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.22 - 0.02 * len(facts)))
    return figure


def _look(number: int) -> dict[str, object]:
    at = number % len(COLORS)
    return {"color": COLORS[at], "hatch": HATCHES[at], "edgecolor": "white", "linewidth": 0}


def report_figure(result: EditReport) -> ShownFigure:
    """Bars with 95% intervals: a panel per measure, a group per way, a bar per method."""
    import numpy as np

    scores, methods = result.scores(), result.header["methods"]
    measures = list(dict.fromkeys(scores["measure"]))
    ways = {measure: list(dict.fromkeys(scores[scores["measure"] == measure]["way"])) for measure in measures}
    figure = ShownFigure(figsize=(10, 3.9), layout="constrained")
    ratios = [max(1, len(ways[measure])) + 0.6 for measure in measures]
    grid = figure.subplots(1, len(measures), sharey=True, width_ratios=ratios, squeeze=False)
    panels = grid.flatten().tolist()
    for axes, measure in zip(panels, measures, strict=True):
        width = 0.84 / len(methods)
        for i, method in enumerate(methods):
            part = scores[(scores["measure"] == measure) & (scores["method"] == method)].set_index("way")
            part = part.reindex(ways[measure])
            spots = np.arange(len(part)) + (i - (len(methods) - 1) / 2) * width
            error = [part["right"] - part["low"], part["high"] - part["right"]]
            axes.bar(spots, part["right"], width * 0.94, label=method, **_look(i))
            axes.errorbar(spots, part["right"], yerr=np.clip(error, 0, None), fmt="none", ecolor="black", lw=0.8)
        axes.set_xticks(range(len(ways[measure])), [way.replace(" ", "\n") for way in ways[measure]], fontsize=7)
        axes.set_title(measure, fontsize=9)
        axes.set_ylim(0, 1.02)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("answered as wanted")
    header = result.header
    figure.suptitle(
        f"{header['model']}: {header['n_facts']} facts, {header['together']} at once; 95% over edits", fontsize=9
    )
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7, frameon=False
    )
    return figure


def layers_figure(result: EditReport) -> ShownFigure:
    """Efficacy, generalisation and specificity by edited layer, with 95% intervals over edits."""
    from nnsight_mmflow.show.curves import STYLES, label_layers

    scores = result.scores()
    alone = {name: int(name.rsplit(" ", 1)[1]) for name in result.header["methods"] if name.startswith("edit, layer ")}
    figure = ShownFigure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    for (measure, style), shift in zip(
        zip(("efficacy", "generalisation", "specificity"), STYLES, strict=False), (-0.06, 0, 0.06), strict=True
    ):
        part = scores[(scores["measure"] == measure) & scores["method"].isin(list(alone))]
        each = part.groupby("method", sort=False)[["right", "low", "high"]].mean()
        each = each.set_axis([alone[str(name)] for name in each.index]).sort_index()
        error = [each["right"] - each["low"], each["high"] - each["right"]]
        color, dash, marker = style
        axes.errorbar(
            each.index + shift,
            each["right"],
            yerr=[side.clip(lower=0) for side in error],
            color=color,
            linestyle=dash,
            marker=marker,
            markersize=4,
            linewidth=1.2,
            label=measure,
        )
    label_layers(axes, "edited layer", max(alone.values()) + 1)
    axes.set_ylabel("answered as wanted")
    axes.set_ylim(-0.02, 1.04)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(f"{result.header['model']}: {result.header['n_facts']} single edits per layer", fontsize=9)
    return figure
