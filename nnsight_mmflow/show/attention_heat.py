"""Attention by layer as a heat map: which span reads which."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._look import PLAIN, Look
from nnsight_mmflow.show.curves import short
from nnsight_mmflow.show.drawing import Drawing
from nnsight_mmflow.show.layer_heat import layer_heat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nnsight_mmflow.patterns.attention.result import AttentionResult


def attention_figure(result: AttentionResult, look: Look = PLAIN) -> Figure:
    """A heat map of the attention mass between spans: a row per source and target, a column per layer."""
    table = result.table.assign(edge=result.table["source"] + "->" + result.table["target"])
    edges, layers = list(dict.fromkeys(table["edge"])), list(dict.fromkeys(table["layer"]))
    values = table.pivot(index="edge", columns="layer", values="mass").loc[edges, layers]
    edges = [edge for edge in edges if values.loc[edge].max() > 0]  # not what lies behind a target it cannot read
    chosen = look.chosen(edges)
    labels = look.label_of(chosen, {edge: " to ".join(edge.split("->")) for edge in edges}, edges)
    drawn = values.loc[chosen].to_numpy()
    drawing = Drawing(look, (min(9.0, 3.6 + 0.5 * len(layers)), 1.4 + 0.32 * len(chosen)))
    axes, ends = drawing.axes[0], (0.0, float(drawn.max()) or 1.0)
    image = layer_heat(drawing, axes, drawn, [labels[edge] for edge in chosen], layers, ends, look.color_map("cividis"))
    axes.set_xlabel("layer")
    drawing.colorbar(image, [axes], "attention mass")
    heads = f"mean over {len(result.heads)} head{'s' if len(result.heads) > 1 else ''}"
    drawing.title(
        f"Attention{f', {short(result.model)}' if result.model else ''}",
        f": what a target gives a source in all, {heads}",
    )
    return drawing.done()
