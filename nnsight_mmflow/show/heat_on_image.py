"""Heat maps over the original picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._look import Look
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.show.generated import by_token
from nnsight_mmflow.show.heat import heat_figure, largest
from nnsight_mmflow.show.image_values import panels_of
from nnsight_mmflow.show.pages.slides import figures_slider, no_axes

if TYPE_CHECKING:
    from nnsight_mmflow._look import Colors, Figure, Labels, Places, Rows, Size
    from nnsight_mmflow._page import Page
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.show.image_values import Drawable


@checked
def on_image(
    prompt: Prompt,
    values: Drawable,
    *,
    image: int = 0,
    view: str | None = None,
    label: str = "",
    titles: Sequence[str] | None = None,
    signed: bool | None = None,
    max_value: float | int | None = None,
    ax: Places = None,
    rows: Rows = None,
    figsize: Size = None,
    colors: Colors = None,
    labels: Labels = None,
) -> Figure | Page:
    """A figure: the picture, and beside it a heat map over it for each row of values, each token at its own pixels.

    All panels share one scale. The notes below say which tokens have no pixels (row ends, class tokens), which lie
    under finer ones, and what share of the values is theirs. Of attention or contributions with generated tokens it is
    a page with a slider, a figure for each token on one scale; `result.token(k)` is drawn as a figure.

    Args:
        prompt: with at least one image.
        values: one number per image token, or (panels, tokens); a mapping from position; attention (a panel per
            layer: the mean over its targets and heads); or the result of `mmf.contributions` and `mmf.saliency` (summed
            over layers) or `mmf.knockout_by_patch`. NaN: no value.
        image: which of the prompt's images, counted from 0.
        view: "base" (the whole picture, small) or "tiles", where the processor divided the picture; None: at each
            pixel the finest.
        label: what the values are, with their unit, for the colour bar.
        titles: what stands above each panel.
        signed: True: orange below 0, white at 0, blue above; False: from dark to light; None: signed where a drawn
            value is below 0.
        max_value: where the scale ends; the largest drawn value unless given. What lies beyond is counted.
        ax: as in every result's plot, like all that follow: axes for the picture and each panel, or one for all.
        rows: which panels are drawn, by their titles.
        figsize: (width, height) in inches.
        colors: the name of a colour map.
        labels: what stands above the panels that are drawn.

    Raises:
        MMFlowError: values that do not fit the image's tokens, too many generated tokens for one page, or `ax` of one.
        SpanError: a view that the picture does not have.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> prompt = mmf.nano.prompts(graph, 1)[0]
        >>> maps = mmf.attention(graph, prompt, target="last", source="image", layers=[2, 5])
        >>> len(mmf.show.on_image(prompt, maps).axes)  # the picture, two panels, the colour bar
        4
    """
    if max_value is not None and not 0 < max_value < float("inf"):
        raise MMFlowError(f"max_value={max_value} must be above 0: it is where the scale ends.")
    look = Look(ax, rows, figsize, colors, labels)
    parts = by_token(values, prompt)
    if not parts:
        panels = panels_of(prompt, image, values, label, titles)
        return heat_figure(prompt, panels, image=image, view=view, signed=signed, max_value=max_value, look=look)
    no_axes(look)
    drawn = [(name, panels_of(prompt, image, part, label, titles)) for name, part in parts]
    ends = max_value or max(largest(prompt, panels, image, view) for _, panels in drawn) or None
    figures = [
        (name, heat_figure(prompt, panels, image=image, view=view, signed=signed, max_value=ends, look=look))
        for name, panels in drawn
    ]
    return figures_slider(figures, f"generated tokens: {drawn[0][1].label}")
