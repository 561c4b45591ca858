"""Figures of pruning: accuracy against image tokens per layer, and which tokens each layer still sees."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

from nnsight_mmflow._look import PLAIN, Look
from nnsight_mmflow.show.curves import short, styles_of
from nnsight_mmflow.show.drawing import Drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nnsight_mmflow.patterns.prune.kept_tokens import KeptTokensResult
    from nnsight_mmflow.patterns.prune.report import PruneReport
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.show.panels import Panels

TICKS = ((0.0, "dropped"), (1.0, "seen"))


def prune_figure(result: PruneReport, look: Look = PLAIN) -> Figure:
    """Share of right answers with 95% intervals against the share of image tokens; methods and controls told apart."""
    scores, header = result.scores(), result.header
    families: dict[str, list] = {}
    for row in scores[scores["method"] != "unpruned"].itertuples():
        kind = re.split(r"[ (,]", str(row.method), maxsplit=1)[0]
        families.setdefault(kind, []).append(row)
    styles = styles_of(look, [*families, "unpruned"])
    drawing = Drawing(look, (7.2, 4.2))
    axes, count = drawing.axes[0], int(header["n_prompts"])
    if "unpruned" in styles:
        plain, style = scores[scores["method"] == "unpruned"].iloc[0], styles["unpruned"]
        color = style.color if look.colors is not None else "0.5"
        axes.axhline(plain["right"], color=color, linewidth=0.8, linestyle="--", label=style.counted(count).label)
    shown = {kind: rows for kind, rows in families.items() if kind in styles}
    for i, (kind, rows) in enumerate(shown.items()):
        style = styles[kind].counted(count)
        rows.sort(key=lambda row: row.tokens_share)
        beside = 0.006 * (i - (len(shown) - 1) / 2)  # methods and controls of one budget stand side by side
        x, y = [row.tokens_share + beside for row in rows], [row.right for row in rows]
        error = [[row.right - row.low for row in rows], [row.high - row.right for row in rows]]
        drawn = style.line() | ({"linestyle": "none"} if kind in ("random", "grid") else {})
        axes.errorbar(x, y, yerr=error, linewidth=1, label=style.label, capsize=2, **drawn)
    axes.set_xlabel(
        "image tokens, share of all" if drawing.small else "image tokens, mean over layers, as a share of all"
    )
    axes.set_ylabel("right answers")
    axes.set_xlim(0, 1.02)
    axes.margins(y=0.09)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    drawing.legend()
    drawing.title(f"Pruning, {short(header['model'])}", ": 95% intervals over prompts")
    return drawing.done()


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
