"""The figure of attention beside its effect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._look import PLAIN, Look
from nnsight_mmflow.show.curves import label_layers, short, styles_of
from nnsight_mmflow.show.drawing import Drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nnsight_mmflow.patterns.attention_and_effect import AttentionAndEffectResult


def effect_figure(result: AttentionAndEffectResult, look: Look = PLAIN) -> Figure:
    """Attention mass above, change of the answer's probability below; a band is the range over random spans."""
    curves, header = result.curves(), result.header
    names = ["source", *(["control"] if header["controls"] else [])]
    labels = {"source": "the source", "control": f"{header['controls']} random spans: mean, range"}
    styles = styles_of(look, names, labels)
    drawing = Drawing(look, (6.4, 5.6), 2, 1, share="x")
    layers = [int(layer) for layer in curves.index]
    told = {"mass": "attention mass (%)", "change_percent": "change of the answer's\nprobability (%)"}
    if drawing.small:
        told = {"mass": "mass (%)", "change_percent": "change (%)"}
    for axes, (name, label) in zip(drawing.axes, told.items(), strict=True):
        scale = 100 if name == "mass" else 1
        axes.axhline(0, color="0.4", linewidth=0.8)
        if "source" in styles:
            style = styles["source"]
            axes.plot(layers, curves[name] * scale, label=style.label, **style.line())
        if "control" in styles:
            style = styles["control"]
            mean, low, high = (curves[f"{name}_{part}"] * scale for part in ("control", "low", "high"))
            axes.plot(layers, mean, label=style.label, **style.line())
            axes.fill_between(layers, low, high, color=style.color, alpha=0.2, linewidth=0)
        label_layers(axes, "", int(header["n_layers"]))
        axes.set_ylabel(label)
    drawing.panel(drawing.axes[0], "looked at: attention mass", loc="left")
    drawing.panel(drawing.axes[1], "used: that edge knocked out in one layer", loc="left")
    drawing.axes[1].set_xlabel("layer")
    drawing.legend()
    edge = f"{header['source']} \u2192 {header['target']}".replace("_", " ")
    drawing.title(f"{short(header['model'])}: {edge}", f", {header['tokens']} tokens; answer {header['prediction']!r}")
    return drawing.done()
