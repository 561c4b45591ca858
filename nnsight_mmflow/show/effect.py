"""The figure of attention beside its effect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._figure import ShownFigure
from nnsight_mmflow.show.curves import STYLES, label_layers

if TYPE_CHECKING:
    from nnsight_mmflow.patterns.attention_and_effect import AttentionAndEffectResult


def effect_figure(result: AttentionAndEffectResult) -> ShownFigure:
    """Attention mass above, change of the answer's probability below; a band is the range over random spans."""
    curves, header = result.curves(), result.header
    figure = ShownFigure(figsize=(6.4, 5.6), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True).tolist()
    layers = [int(layer) for layer in curves.index]
    labels = {"mass": "attention mass (%)", "change_percent": "change of the answer's\nprobability (%)"}
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        scale = 100 if name == "mass" else 1
        axes.axhline(0, color="0.4", linewidth=0.8)
        color, dash, marker = STYLES[1]
        axes.plot(
            layers, curves[name] * scale, color=color, linestyle=dash, marker=marker, markersize=5, label="the source"
        )
        if header["controls"]:
            color, dash, marker = STYLES[2]
            shown = f"{header['controls']} random spans: mean, range"
            mean, low, high = (curves[f"{name}_{part}"] * scale for part in ("control", "low", "high"))
            axes.plot(layers, mean, color=color, linestyle=dash, marker=marker, markersize=5, label=shown)
            axes.fill_between(layers, low, high, color=color, alpha=0.2, linewidth=0)
        label_layers(axes, "", int(header["n_layers"]))
        axes.set_ylabel(label, fontsize=9)
    panels[0].set_title("looked at: attention mass", fontsize=9, loc="left")
    panels[1].set_title("used: that edge knocked out in one layer", fontsize=9, loc="left")
    panels[1].set_xlabel("layer")
    panels[0].legend(frameon=False, fontsize=8)
    edge = f"{header['source']} \u2192 {header['target']}".replace("_", " ")
    name = str(header["model"]).rstrip("/").split("/")[-1]
    figure.suptitle(f"{name}: {edge}, {header['tokens']} tokens; answer {header['prediction']!r}", fontsize=10)
    return figure
