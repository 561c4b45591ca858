"""The figure of a prune report: accuracy against image tokens per layer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nnsight_mmflow._plots import STYLES, ShownFigure

if TYPE_CHECKING:
    from nnsight_mmflow.patterns.prune_report import PruneReport


def prune_figure(result: PruneReport) -> ShownFigure:
    """Share of right answers with 95% intervals against the share of image tokens; methods and controls told apart."""
    scores = result.scores()
    figure = ShownFigure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    plain = scores[scores["method"] == "unpruned"].iloc[0]
    axes.axhline(plain["right"], color="0.5", linewidth=0.8, linestyle="--", label="unpruned")
    families: dict[str, list] = {}
    for row in scores[scores["method"] != "unpruned"].itertuples():
        name = str(row.method)
        kind = re.split(r"[ (,]", name, maxsplit=1)[0]
        families.setdefault(kind, []).append(row)
    for i, (kind, rows) in enumerate(families.items()):
        color, dash, marker = STYLES[i % len(STYLES)]
        linestyle = dash if kind not in ("random", "grid") else "none"
        rows.sort(key=lambda row: row.tokens_share)
        beside = 0.006 * (i - (len(families) - 1) / 2)  # methods and controls of one budget stand side by side
        x, y = [row.tokens_share + beside for row in rows], [row.right for row in rows]
        error = [[row.right - row.low for row in rows], [row.high - row.right for row in rows]]
        axes.errorbar(
            x,
            y,
            yerr=error,
            color=color,
            linestyle=linestyle,
            marker=marker,
            markersize=5,
            linewidth=1,
            label=kind,
            capsize=2,
        )
    axes.set_xlabel("image tokens, mean over layers, as a share of all")
    axes.set_ylabel("right answers")
    axes.set_xlim(0, 1.02)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(f"{result.header['model']}: {result.header['n_prompts']} prompts, 95% intervals", fontsize=10)
    return figure
