"""Figures of features and probes: principal components by label, accuracy by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._look import PLAIN, Look
from nnsight_mmflow.show.curves import STYLES, draw_band, label_layers, short, styles_of
from nnsight_mmflow.show.drawing import Drawing

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from nnsight_mmflow.patterns.features.probe_result import ProbeResult
    from nnsight_mmflow.patterns.features.result import FeaturesResult
    from nnsight_mmflow.runs.results import Band

PANELS, COLOURED, POINTS = 6, 8, 2000  # panels, labels with a colour each, points that are drawn
OTHER = "0.75"


def features_figure(
    result: FeaturesResult, layers: Sequence[int] | None, by: Sequence[object] | None, look: Look = PLAIN
) -> Figure:
    """The first two principal components of each layer, a point for each prompt, coloured and shaped by its label."""
    import numpy as np

    panels = _evenly(result.layers) if layers is None else list(layers)
    named = [str(one) if one is not None else "no answer" for one in (result.labels if by is None else by)]
    if len(named) != len(result):
        raise MMFlowError(f"by= holds {len(named)}, but the features are of {len(result)} prompts: one for each.")
    every = [name for name, _ in Counter(named).most_common()]
    frequent = look.chosen(every)[: len(every) if look.rows is not None else COLOURED]
    marks = {name: STYLES[number % len(STYLES)][2] for number, name in enumerate(every)}
    colors = look.color_of(frequent, dict(zip(frequent, _colors(frequent), strict=True)), every)
    labels = look.label_of(frequent, {}, every)
    rest = [] if look.rows is not None else [name not in frequent for name in named]
    columns = min(3, len(panels))
    down = -(-len(panels) // columns)
    drawing = Drawing(look, (max(4.4, 2.9 * columns), 2.7 * down + 0.9), down, columns, count=len(panels))
    drawn = np.arange(len(result))[:: max(1, -(-len(result) // POINTS))]
    large, small = (8, 4) if drawing.small else (16, 8)
    for layer, axes in zip(panels, drawing.axes, strict=True):
        points, shares = components(result, layer)
        for name in frequent:
            x, y = points[[number for number in drawn if named[number] == name]].T
            look_of = {"facecolor": colors[name], "edgecolor": "0.25", "marker": marks[name], "linewidths": 0.4}
            axes.scatter(x, y, s=large, label=labels[name], **look_of)
        at = [number for number in drawn if rest and rest[number]]
        if at:
            label = f"{len(every) - len(frequent)} other labels"
            axes.scatter(points[at, 0], points[at, 1], s=small, color=OTHER, label=label, linewidths=0, zorder=0)
        drawing.panel(axes, "embedding" if layer < 0 else f"layer {layer}")
        for number, put in enumerate((axes.set_xlabel, axes.set_ylabel)):
            part = f"{shares[number]:.0%}" if drawing.small else f"component {number + 1} ({shares[number]:.0%})"
            put(part, fontsize=drawing.size("row"))
        axes.set_xticks([])
        axes.set_yticks([])
    drawing.legend()
    header = result.header
    drawing.title(f"{short(header['model'])} (n={len(result)})", f": {header['site']} at {header['at']}")
    return drawing.done()


def _colors(labels: Sequence[str]) -> list[str]:
    """A colour for each label: its own where all are names of colours, so that none is drawn in another's."""
    from matplotlib.colors import CSS4_COLORS

    if all(label in CSS4_COLORS for label in labels):
        return [CSS4_COLORS[label] for label in labels]
    return [STYLES[number % len(STYLES)][0] for number in range(len(labels))]


def components(result: FeaturesResult, layer: int) -> tuple[np.ndarray, tuple[float, float]]:
    """((prompts, 2) principal components, the share of the variance of each); of every position kept, the mean."""
    import numpy as np

    found = result.values(layer)
    values = np.stack([one.mean(0) for one in found]) if isinstance(found, list) else found
    centred = values.astype(np.float64) - values.mean(0, dtype=np.float64)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    total = float((sizes**2).sum()) or 1.0
    points, shares = np.zeros((len(values), 2)), [0.0, 0.0]
    for number in range(min(2, len(sizes))):
        points[:, number], shares[number] = left[:, number] * sizes[number], float(sizes[number] ** 2) / total
    return points, (shares[0], shares[1])


def _evenly(layers: Sequence[int]) -> list[int]:
    """Up to six of them, the first and the last among them."""
    if len(layers) <= PANELS:
        return list(layers)
    step = (len(layers) - 1) / (PANELS - 1)
    return [layers[round(number * step)] for number in range(PANELS)]


def probe_figure(result: ProbeResult, look: Look = PLAIN) -> Figure:
    """Accuracy of probe and control task by layer, with their intervals, and the most frequent label's share."""
    table, header = result.table, result.header
    names = ["probe", *(["control"] if header["controls"] else []), "majority"]
    labels = {"control": f"control task, {header['n_types']} types", "majority": "most frequent label"}
    styles = styles_of(look, names, labels)
    drawing = Drawing(look, (6.4, 3.9))
    axes, layers = drawing.axes[0], [int(layer) for layer in table["layer"]]
    columns = {"probe": ("accuracy", "low", "high"), "control": ("control", "control_low", "control_high")}
    for name, style in styles.items():
        if name in columns:
            draw_band(axes, layers, _percent(table, *columns[name]), style.counted(int(header["n_counted"])))
        else:
            share = float(table["majority"].iloc[0]) * 100
            color = style.color if look.colors is not None else "0.45"
            axes.axhline(share, color=color, linewidth=1, linestyle=":", label=style.label)
    label_layers(axes, "after layer" if header["site"] == "resid" else "layer", int(header["n_layers"]))
    axes.set_xlim(min(layers) - 0.4, max(layers) + 0.4)
    axes.set_ylim(0, 102)
    axes.set_ylabel("named rightly (%)" if drawing.small else "held-out prompts named rightly (%)")
    drawing.legend()
    drawing.title(
        f"Linear probe, {short(header['model'])}",
        f", {header['site']} at {header['at']}: {len(header['classes'])} labels",
    )
    return drawing.done()


def _percent(table: pd.DataFrame, mean: str, low: str, high: str) -> Band:
    """A line with its interval, in percent."""
    return table[mean].to_numpy() * 100, table[low].to_numpy() * 100, table[high].to_numpy() * 100
