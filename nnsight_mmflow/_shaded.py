"""A number per image token, drawn on the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nnsight_mmflow._plots import ShownFigure

if TYPE_CHECKING:
    from nnsight_mmflow._prompt import Prompt


def shaded_picture(prompt: Prompt, numbers: Mapping[int, float], title: str) -> ShownFigure:
    """The prompt's (first) picture, each token's own pixels the darker the smaller its number is.

    Args:
        prompt: the prompt.
        numbers: by position, 0 or more; tokens without one stay as they are.
        title: above the picture; the question stands below.
    """
    from matplotlib.patches import Rectangle

    image, largest = prompt.spans["image"].images[0], max(numbers.values(), default=0.0) or 1.0
    height = 4.4 * prompt.images[0].height / prompt.images[0].width + 0.5
    figure = ShownFigure(figsize=(4.4, height), layout="constrained")
    axes = figure.subplots()
    axes.imshow(prompt.images[0])
    for token, position in enumerate(image.positions):
        box = image.geometry.token_box(token)
        if box is None or position not in numbers:
            continue
        left, top, right, bottom = box
        shade = 0.85 * (1 - numbers[position] / largest)
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, color="black", alpha=shade, lw=0))
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(prompt.question, fontsize=9)
    return figure
