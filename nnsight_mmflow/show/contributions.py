"""Figures of attention contributions: by layer, by patch, on the picture, and of right against wrong answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnsight_mmflow._look import PLAIN, Look
from nnsight_mmflow.runs.results import bootstrap_band
from nnsight_mmflow.show.curves import draw_band, label_layers, short, styles_of
from nnsight_mmflow.show.drawing import Drawing
from nnsight_mmflow.show.token_values import of_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nnsight_mmflow._page import Page
    from nnsight_mmflow.patterns.contributions.result import ContributionsResult
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.show.panels import Panels


def contributions_figure(result: ContributionsResult, look: Look = PLAIN) -> Figure:
    """The source's share of all contributions by layer, and the mean norm of each patch over prompts and layers."""
    table, header = result.summed(), result.header
    shares = table.groupby(["prompt", "layer"])["share"].sum().unstack()
    patches = table.dropna(subset=["row"])
    (style,) = styles_of(look, [str(header["source"])]).values()
    drawing = Drawing(look, (9.5 if len(patches) else 5.5, 3.6), 1, 2 if len(patches) else 1)
    left, *right = drawing.axes
    draw_band(left, [int(layer) for layer in shares.columns], bootstrap_band(shares), style.counted(len(shares)))
    label_layers(left, "layer", int(header["n_layers"]))
    left.set_ylabel("share" if drawing.small else "share of all contributions")
    drawing.panel(left, f"{header['source']} to {header['target']}")
    for axes in right:
        grid = patches.pivot_table(index="row", columns="column", values="norm", aggfunc="mean")
        image = axes.imshow(grid.to_numpy(dtype=float), cmap="cividis")
        drawing.panel(axes, "mean norm by patch, all layers")
        axes.set(xticks=[], yticks=[])
        drawing.colorbar(image, [axes], "norm")
    drawing.legend()
    drawing.title(f"Attention contributions, {short(header['model'])}", ": norm of the sum over heads, 95% band")
    return drawing.done()


def contribution_panels(
    result: ContributionsResult, prompt: Prompt, image: int, layers: Sequence[int | None]
) -> Panels:
    """The norm of what is taken from each image token, a panel for each layer; None: summed over layers."""
    import numpy as np

    from nnsight_mmflow.show.panels import Panels, by_position

    numbers = np.stack([by_position(prompt, image, of_result(prompt, result, layer, "norm")[0]) for layer in layers])
    titles = tuple("all layers" if layer is None else f"layer {layer}" for layer in layers)
    edge = f"{result.header['source']} to {result.header['target']}"
    return Panels(numbers, titles, f"contribution, {edge}: norm" + (" (sum over layers)" if layers == [None] else ""))


def contributions_on_image(
    result: ContributionsResult,
    prompt: Prompt,
    layers: Sequence[int | None],
    image: int,
    view: str | None,
    look: Look = PLAIN,
) -> Figure | Page:
    """The norms on the picture; with generated tokens a page with a slider over them, on one scale."""
    from nnsight_mmflow.show.generated import by_token
    from nnsight_mmflow.show.heat import heat_figure, largest
    from nnsight_mmflow.show.pages.slides import figures_slider, no_axes

    parts = [(name, one) for name, one in by_token(result, prompt) if isinstance(one, type(result))]
    drawn = [(name, contribution_panels(one, prompt, image, layers)) for name, one in parts]
    if not drawn:
        panels = contribution_panels(result, prompt, image, layers)
        return heat_figure(prompt, panels, image=image, view=view, look=look)
    no_axes(look)
    ends = max(largest(prompt, panels, image, view) for _, panels in drawn) or None
    figures = [
        (name, heat_figure(prompt, panels, image=image, view=view, max_value=ends, look=look)) for name, panels in drawn
    ]
    return figures_slider(figures, f"generated tokens: contributions of {result.header['source']}")


def correctness_figure(result: ContributionsResult, look: Look = PLAIN) -> Figure:
    """The mean summed norm by layer with 95% intervals: prompts answered rightly, and wrongly."""
    from nnsight_mmflow.patterns.contributions.controls import per_prompt

    found = per_prompt(result)
    there = [name for name, right in (("right", True), ("wrong", False)) if (found["correct"] == right).any()]
    styles = styles_of(look, there, {name: f"{name} answers" for name in there})
    drawing = Drawing(look, (5.6, 3.6))
    axes = drawing.axes[0]
    for name, style in styles.items():
        part = found[found["correct"] == (name == "right")]
        each = part.pivot_table(index="prompt", columns="layer", values="norm")
        draw_band(axes, [int(layer) for layer in each.columns], bootstrap_band(each), style.counted(len(each)))
    label_layers(axes, "layer", int(result.header["n_layers"]))
    axes.set_ylabel("norm" if drawing.small else f"norm, {result.header['source']} to {result.header['target']}")
    drawing.legend()
    drawing.title(f"Attention contributions, {short(result.header['model'])}", ": 95% bands")
    return drawing.done()
