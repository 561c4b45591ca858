"""Figures of saliency: curves by layer, and what flows from each image token, on the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._figure import ShownFigure
from nnsight_mmflow.show.curves import STYLES, label_layers
from nnsight_mmflow.show.token_values import of_layer, of_prompt

if TYPE_CHECKING:
    from nnsight_mmflow.patterns.disruption import DisruptionResult
    from nnsight_mmflow.patterns.saliency import SaliencyResult
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.show.panels import Panels

LABELS = {
    "S_sys": "system",
    "S_img": "image",
    "S_ins": "instruction",
    "S_vv": "image to image",
    "S_vt": "image to instruction",
}


def saliency_figure(result: SaliencyResult) -> ShownFigure:
    """Saliency per token of the three groups, and of the two flows, each panel scaled to 0 and 1 as a whole."""
    figure = ShownFigure(figsize=(9.6, 3.6), layout="constrained")
    panels = figure.subplots(1, 2).flatten().tolist()
    for axes, names in zip(panels, (("S_sys", "S_img", "S_ins"), ("S_vv", "S_vt")), strict=True):
        curves = result.curves(names)
        for name, (color, dash, marker) in zip(names, STYLES, strict=False):
            axes.plot(
                curves.index, curves[name], color=color, linestyle=dash, marker=marker, markersize=4, label=LABELS[name]
            )
        label_layers(axes, "layer", int(result.header["n_layers"]))
        axes.legend(frameon=False, fontsize=8)
    by = "by target token" if result.header["mode"] == "released" else "by source token"
    panels[0].set_ylabel("saliency, scaled over the panel")
    panels[0].set_title(f"per token of the group, {by}", fontsize=9)
    panels[1].set_title("flows from the image", fontsize=9)
    title = f"Saliency ({result.header['mode']} mode), {result.header['model']}: {result.header['n_prompts']} prompts"
    figure.suptitle(title, fontsize=10)
    return figure


def saliency_panels(result: SaliencyResult, prompt: Prompt, image: int, layers: Sequence[int | None]) -> Panels:
    """What flows from each image token, a panel for each layer; None: summed over layers."""
    import numpy as np

    from nnsight_mmflow.show.panels import Panels, by_position

    tokens, positions, numbers = of_prompt(result.tokens(), prompt), list(prompt.spans["image"]), []
    for layer in layers:
        flows = (tokens if layer is None else of_layer(tokens, layer)).groupby("index")["saliency"].sum()
        if len(flows) != len(positions):
            raise MMFlowError(
                f"the result holds {len(flows)} image tokens of this prompt, which has {len(positions)}: another"
                " prompt, or another picture."
            )
        flow_at = {position: float(flow) for position, flow in zip(positions, flows, strict=True)}
        numbers.append(by_position(prompt, image, flow_at))
    titles = tuple("all layers" if layer is None else f"layer {layer}" for layer in layers)
    label = f"saliency of what flows from the token ({result.header['mode']} mode)"
    return Panels(np.stack(numbers), titles, label + (" (sum over layers)" if layers == [None] else ""))


def disruption_figure(result: DisruptionResult) -> ShownFigure:
    """Score consistency and kept labels by layer, a line per way."""
    curves, names = result.curves(), {"score_consistency": "score consistency", "label_kept": "label kept"}
    figure = ShownFigure(figsize=(9.6, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True).flatten().tolist()
    for axes, (name, label) in zip(panels, names.items(), strict=True):
        for (way, part), (color, dash, marker) in zip(curves.groupby("way", sort=False), STYLES, strict=False):
            axes.plot(
                part["layer"], part[name], color=color, linestyle=dash, marker=marker, markersize=4, label=str(way)
            )
        scope = "first cut layer" if result.header["scope"] == "from_layer" else "cut layer"
        label_layers(axes, scope, int(result.header["n_layers"]))
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(label, fontsize=9)
    panels[0].legend(frameon=False, fontsize=8)
    title = (
        f"Disruption ({result.header['stage']}-softmax), {result.header['model']}: {result.header['n_prompts']} prompts"
    )
    figure.suptitle(title, fontsize=10)
    return figure
