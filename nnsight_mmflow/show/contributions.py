"""Figures of attention contributions: by layer, by patch, on the picture, and of right against wrong answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnsight_mmflow._figure import ShownFigure
from nnsight_mmflow.runs.results import bootstrap_band
from nnsight_mmflow.show.curves import STYLES, draw_band, label_layers
from nnsight_mmflow.show.token_values import of_result

if TYPE_CHECKING:
    from nnsight_mmflow._page import Page
    from nnsight_mmflow.patterns.contributions.result import ContributionsResult
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.show.panels import Panels


def contributions_figure(result: ContributionsResult) -> ShownFigure:
    """The source's share of all contributions by layer, and the mean norm of each patch over prompts and layers."""
    table = result.summed()
    shares = table.groupby(["prompt", "layer"])["share"].sum().unstack()
    patches = table.dropna(subset=["row"])
    figure = ShownFigure(figsize=(9.5 if len(patches) else 5.5, 3.6), layout="constrained")
    left, *right = figure.subplots(1, 2 if len(patches) else 1, squeeze=False).flatten().tolist()
    draw_band(
        left, [int(layer) for layer in shares.columns], bootstrap_band(shares), str(result.header["source"]), STYLES[0]
    )
    label_layers(left, "layer", int(result.header["n_layers"]))
    left.set_ylabel("share of all contributions")
    left.set_title(f"{result.header['source']} to {result.header['target']}", fontsize=10)
    for axes in right:
        grid = patches.pivot_table(index="row", columns="column", values="norm", aggfunc="mean")
        image = axes.imshow(grid.to_numpy(dtype=float), cmap="cividis")
        axes.set_title("mean norm by patch, all layers", fontsize=10)
        axes.set(xticks=[], yticks=[])
        figure.colorbar(image, ax=axes)
    told = f"Attention contributions, {result.header['model']}: {result.header['n_prompts']} prompts"
    figure.suptitle(told + ", norm of the sum over heads", fontsize=10)
    return figure


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
    result: ContributionsResult, prompt: Prompt, layers: Sequence[int | None], image: int, view: str | None
) -> ShownFigure | Page:
    """The norms on the picture; with generated tokens a page with a slider over them, on one scale."""
    from nnsight_mmflow.show.generated import by_token
    from nnsight_mmflow.show.heat import heat_figure, largest
    from nnsight_mmflow.show.pages.slides import figures_slider

    drawn = [(name, contribution_panels(one, prompt, image, layers)) for name, one in by_token(result)]
    if not drawn:
        return heat_figure(prompt, contribution_panels(result, prompt, image, layers), image=image, view=view)
    ends = max(largest(prompt, panels, image, view) for _, panels in drawn) or None
    figures = [(name, heat_figure(prompt, panels, image=image, view=view, max_value=ends)) for name, panels in drawn]
    return figures_slider(figures, f"generated tokens: contributions of {result.header['source']}")


def correctness_figure(result: ContributionsResult) -> ShownFigure:
    """The mean summed norm by layer with 95% intervals: prompts answered rightly, and wrongly."""
    from nnsight_mmflow.patterns.contributions.controls import per_prompt

    found = per_prompt(result)
    figure = ShownFigure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    for (right, part), style in zip(found.groupby("correct", sort=True), (STYLES[1], STYLES[2]), strict=False):
        each = part.pivot_table(index="prompt", columns="layer", values="norm")
        label = f"{'right' if right else 'wrong'} answers (n={len(each)})"
        draw_band(axes, [int(layer) for layer in each.columns], bootstrap_band(each), label, style)
    label_layers(axes, "layer", int(result.header["n_layers"]))
    axes.set_ylabel(f"norm, {result.header['source']} to {result.header['target']}", fontsize=8)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(f"Attention contributions, {result.header['model']}", fontsize=10)
    return figure
