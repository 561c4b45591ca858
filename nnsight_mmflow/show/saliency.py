"""Figures of saliency: curves by layer, and what flows from each image token, on the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._look import PLAIN, Look
from nnsight_mmflow.show.curves import label_layers, short, styles_of
from nnsight_mmflow.show.drawing import Drawing
from nnsight_mmflow.show.token_values import of_layer, of_prompt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def saliency_figure(result: SaliencyResult, look: Look = PLAIN) -> Figure:
    """Saliency per token of the three groups, and of the two flows, each panel scaled to 0 and 1 as a whole."""
    styles, header = styles_of(look, list(LABELS), LABELS), result.header
    groups = {"S_sys": 0, "S_img": 0, "S_ins": 0, "S_vv": 1, "S_vt": 1}
    kept = sorted({groups[name] for name in styles})
    by = "by target token" if header["mode"] == "released" else "by source token"
    titles = (f"per token of the group, {by}", "flows from the image")
    drawing = Drawing(look, (9.6, 3.6) if len(kept) == 2 else (5.2, 3.6), 1, len(kept))
    for axes, number in zip(drawing.axes, kept, strict=True):
        every = tuple(name for name, group in groups.items() if group == number)
        curves = result.curves(every)  # scaled over the whole panel, whatever is drawn of it
        for name in [name for name in styles if name in every]:
            style = styles[name].counted(int(header["n_prompts"]))
            axes.plot(curves.index, curves[name], label=style.label, **style.line())
        label_layers(axes, "layer", int(header["n_layers"]))
        drawing.panel(axes, titles[number])
    drawing.axes[0].set_ylabel("saliency, scaled" if drawing.small else "saliency, scaled over the panel")
    drawing.legend()
    drawing.title(f"Saliency ({header['mode']} mode), {short(header['model'])}")
    return drawing.done()


def saliency_on_image(
    result: SaliencyResult,
    prompt: Prompt,
    layers: Sequence[int | None],
    image: int,
    view: str | None,
    look: Look = PLAIN,
) -> Figure:
    """What flows from each image token, on the picture."""
    from nnsight_mmflow.show.heat import heat_figure

    panels = saliency_panels(result, prompt, image, layers)
    return heat_figure(prompt, panels, image=image, view=view, look=look)


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
        found = {position: float(flow) for position, flow in zip(positions, flows, strict=True)}
        numbers.append(by_position(prompt, image, found))
    titles = tuple("all layers" if layer is None else f"layer {layer}" for layer in layers)
    label = f"saliency of what flows from the token ({result.header['mode']} mode)"
    return Panels(np.stack(numbers), titles, label + (" (sum over layers)" if layers == [None] else ""))


def disruption_figure(result: DisruptionResult, look: Look = PLAIN) -> Figure:
    """Score consistency and kept labels by layer, a line per way."""
    curves, header = result.curves(), result.header
    styles = styles_of(look, list(dict.fromkeys(map(str, curves["way"]))))
    drawing = Drawing(look, (9.6, 3.6), 1, 2, share="y")
    panels = {"score_consistency": "score consistency", "label_kept": "label kept"}
    for axes, (name, told) in zip(drawing.axes, panels.items(), strict=True):
        for way, one in styles.items():
            part = curves[curves["way"] == way]
            style = one.counted(int(result.table.loc[result.table["way"] == way, "prompt"].nunique()))
            axes.plot(part["layer"], part[name], label=style.label, **style.line())
        label_layers(
            axes, "first cut layer" if header["scope"] == "from_layer" else "cut layer", int(header["n_layers"])
        )
        axes.set_ylim(-0.05, 1.07)
        drawing.panel(axes, told)
    drawing.legend()
    drawing.title(f"Disruption ({header['stage']}-softmax), {short(header['model'])}", ": mean over prompts")
    return drawing.done()
