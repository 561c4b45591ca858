"""Figures of pruning: accuracy against image tokens per layer, and which tokens each layer still sees."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

from nnsight_mmflow._figure import ShownFigure
from nnsight_mmflow.show.curves import STYLES

if TYPE_CHECKING:
    from nnsight_mmflow.patterns.prune.kept_tokens import KeptTokensResult
    from nnsight_mmflow.patterns.prune.report import PruneReport
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.show.panels import Panels

TICKS = ((0.0, "dropped"), (1.0, "seen"))


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


def kept_panels(result: KeptTokensResult, prompt: Prompt, image: int, by_layer: bool) -> Panels:
    """How many layers see each image token; or, by layer, 1 for those seen and 0 for those that were dropped."""
    import numpy as np

    from nnsight_mmflow.show.panels import Panels, by_position

    positions = list(prompt.spans["image"])
    layers = result.layers
    seen = np.zeros((len(layers), len(positions)))
    for layer, kept in enumerate(layers):
        seen[layer, kept] = 1

    def drawn(row: np.ndarray) -> np.ndarray:
        return by_position(prompt, image, dict(zip(positions, row.tolist(), strict=True)))

    if not by_layer:
        return Panels(drawn(seen.sum(0))[None], ("all layers",), f"layers, of {len(seen)}, that see the token")
    stretches = [list(group) for _, group in itertools.groupby(range(len(seen)), lambda layer: layers[layer])]
    titles = tuple(
        (f"layer {group[0]}" if len(group) == 1 else f"layers {group[0]} to {group[-1]}")
        + f": {len(layers[group[0]])} tokens"
        for group in stretches
    )
    return Panels(np.stack([drawn(seen[group[0]]) for group in stretches]), titles, "image tokens", TICKS)
