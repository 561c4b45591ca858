"""Results with a number for each image token in each layer, which can be drawn on the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._later import later
from nnsight_mmflow._look import Look
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.runs.results import Result

if TYPE_CHECKING:
    from nnsight_mmflow._look import Colors, Figure, Labels, Places, Rows, Size
    from nnsight_mmflow._page import Page
    from nnsight_mmflow.prompts.prompt import Prompt


class ImageResult(Result):
    """A result whose numbers of each image token can be drawn on a prompt's picture."""

    image_by: ClassVar[str]  # the figure of `on_image`, by its name in _later.py

    @checked
    def on_image(
        self,
        prompt: Prompt,
        layer: int | Sequence[int] | None = None,
        *,
        image: int = 0,
        view: str | None = None,
        ax: Places = None,
        rows: Rows = None,
        figsize: Size = None,
        colors: Colors = None,
        labels: Labels = None,
    ) -> Figure | Page:
        """The numbers of a prompt's image tokens, drawn on its picture.

        With generated tokens it is a page with a slider: the target, then one token after another.

        Args:
            prompt: one of the prompts that were measured.
            layer: which layer is drawn; several give a panel each; None draws the sum over layers.
            image: which picture of the prompt, counted from 0.
            view: "base" (the whole picture, small) or "tiles"; None: the finest that there is at each place.
            ax: as in every result's plot, like all that follow: axes for the picture and each panel, or one for all.
            rows: which panels are drawn, by their titles.
            figsize: (width, height) in inches.
            colors: the name of a colour map.
            labels: the panels' titles.

        Raises:
            MMFlowError: `ax` of a page; `result.token(k)` is drawn on axes.
        """
        layers = [layer] if layer is None or isinstance(layer, int) else list(layer)
        look = Look(ax, rows, figsize, colors, labels)
        return later(self.image_by)(self, prompt, layers, image, view, look)
