"""Numbers of image tokens drawn on the picture: the one way in which all figures do it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnsight_mmflow._figure import ShownFigure
from nnsight_mmflow.show.boxes import drawn_boxes, mosaic
from nnsight_mmflow.show.heat_notes import notes_of

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from PIL.Image import Image as Picture

    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.show.boxes import DrawnBoxes
    from nnsight_mmflow.show.panels import Panels

WIDTH = 9.5  # inches: what a notebook shows at 100 dots per inch without shrinking it
WIDE = 6.2  # inches of a panel with words
MOST_ACROSS = 5
GREY = (0.42, 0.42, 0.42)  # neither dark nor bright parts of a picture look like it
OPAQUE = 0.66  # how much of the colour covers the picture, which is grey and light beneath it
# Orange below 0, blue above, as mmf.show.tokens has them; told apart by colour-blind readers.
SIGNED = ("#A63C00", "#E68A3C", "#FFFFFF", "#4B9CD3", "#00508C")


def heat_figure(
    prompt: Prompt,
    panels: Panels,
    *,
    image: int = 0,
    view: str | None = None,
    signed: bool | None = None,
    max_value: float | int | None = None,
    shade: bool = False,
    wide: bool = False,
    notes: Sequence[str] = (),
) -> ShownFigure:
    """The picture as it is, and a copy of it for each panel, every token's own pixels in the colour of its number.

    Args:
        prompt: the prompt.
        panels: what is drawn; one scale serves all of them.
        image: which image.
        view: as in `drawn_boxes`.
        signed: colours around white at 0; None: where a number is below 0.
        max_value: where the scale ends; the largest number drawn unless given.
        shade: the picture keeps its colours; flat grey covers it instead, the more the smaller the number.
        wide: the one panel is large, the picture small.
        notes: said below beside the others.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    drawn = drawn_boxes(prompt, image, view)
    numbers = panels.numbers[:, list(drawn.tokens)]
    ends, colours, opaque, extend = _scale(numbers, signed, max_value, shade)
    norm = Normalize(*ends)
    figure, axes, across = _axes(prompt.images[image], len(panels.titles), wide)
    _picture(axes[0], prompt.images[image])
    axes[0].set_title("picture", fontsize=9)
    axes[0].set_xlabel(_folded(prompt.question, 34 if across < 4 else 24), fontsize=8, parse_math=False)
    behind = prompt.images[image] if shade else _faint(prompt.images[image])
    for axis, row, title in zip(axes[1:], numbers, panels.titles, strict=True):
        _picture(axis, behind)
        axis.set_title(title, fontsize=9, parse_math=False)
        _lay(axis, drawn, row, norm, colours, opaque)
    shown = ScalarMappable(norm, _over(behind, colours, opaque))
    bar = figure.colorbar(shown, ax=axes, extend=extend, aspect=25, pad=0.01, panchor=False)
    bar.set_label("\n".join(_lines(panels.label, 46)), fontsize=8, parse_math=False)
    bar.ax.tick_params(labelsize=8)
    if panels.ticks:
        bar.set_ticks([number for number, _ in panels.ticks], labels=[word for _, word in panels.ticks])
    below = " ".join([*notes, *notes_of(prompt, panels.numbers, drawn, image, ends, view, shares=not wide)])
    told = _lines(below, int(16.5 * figure.get_figwidth()))
    figure.supxlabel("\n".join(told), fontsize=7.5, x=0.01, ha="left", parse_math=False)
    figure.set_figheight(figure.get_figheight() + 0.14 * len(told))
    return figure


def largest(prompt: Prompt, panels: Panels, image: int = 0, view: str | None = None) -> float:
    """The size of the largest number that is drawn, for a scale that several figures share."""
    import numpy as np

    return float(np.nanmax(np.abs(panels.numbers[:, list(drawn_boxes(prompt, image, view).tokens)])))


def _scale(
    numbers: np.ndarray, signed: bool | None, max_value: float | int | None, shade: bool
) -> tuple[tuple[float, float], Colormap, float | None, str]:
    """(the ends of the scale, colours, how opaque they are (None: they say it themselves), where the scale is cut)."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
    if signed or (signed is None and low < 0):
        end = max_value or max(abs(low), abs(high)) or 1.0
        extend = ("neither", "max", "min", "both")[(high > end) + 2 * (low < -end)]
        return (-end, end), LinearSegmentedColormap.from_list("signed", SIGNED), OPAQUE, extend
    start = min(0.0, low)
    end = max_value or (high if high > start else start + 1.0)
    extend = "max" if high > end else "neither"
    if shade:
        grey = LinearSegmentedColormap.from_list("shade", [(*GREY, 0.92), (*GREY, 0)])
        return (start, end), grey, None, extend
    return (start, end), colormaps["cividis"], OPAQUE, extend


def _axes(picture: Picture, panels: int, wide: bool) -> tuple[ShownFigure, list[Axes], int]:
    """A figure with a place for the picture and each panel, the places, and how many stand side by side."""
    shape = picture.height / picture.width
    if wide:
        beside = WIDTH - 1.1 - WIDE
        figure = ShownFigure(figsize=(WIDTH, min(WIDE * shape, 1.4 * WIDE) + 0.7), layout="constrained")
        axes = figure.subplots(1, 2, width_ratios=(beside, WIDE)).tolist()
        axes[0].set_anchor("N")
        return figure, axes, 5
    across = min(panels + 1, 2 if shape < 0.45 else MOST_ACROSS if panels > 7 else 4)
    down = math.ceil((panels + 1) / across)
    each = min(4.0, (WIDTH - 1.1) / across, 6.0 / shape)
    figure = ShownFigure(figsize=(each * across + 1.1, down * (each * shape + 0.3) + 0.35), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten().tolist()
    for spare in axes[panels + 1 :]:
        spare.remove()
    return figure, axes[: panels + 1], across


def _picture(axis: Axes, picture: Picture) -> None:
    width, height = picture.size
    axis.imshow(picture, extent=(0, width, height, 0), interpolation="antialiased")
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])


def _lay(
    axis: Axes, drawn: DrawnBoxes, numbers: np.ndarray, norm: Normalize, colours: Colormap, opaque: float | None
) -> None:
    """The colours, as one mesh: rectangles that touch or overlap would show seams."""
    import numpy as np

    cells = mosaic(drawn.boxes)
    which = np.array(cells.which)
    values = np.ma.masked_invalid(np.where(which < 0, np.nan, numbers[which]))
    axis.pcolormesh(
        np.array(cells.columns), np.array(cells.rows), values, norm=norm, cmap=colours, alpha=opaque, rasterized=True
    )


def _faint(picture: Picture) -> Picture:
    """Grey and light, so that colours over it stay what they are."""
    return picture.convert("L").point(lambda level: 105 + level * 0.588).convert("RGB")


def _over(picture: Picture, colours: Colormap, opaque: float | None) -> Colormap:
    """The colours as they look over the picture's mean, for the colour bar; shades as they look over white."""
    import numpy as np
    from matplotlib.colors import ListedColormap

    shown = colours(np.linspace(0, 1, 256))
    alpha = shown[:, 3:] if opaque is None else opaque
    beneath = 1.0 if opaque is None else np.asarray(picture).mean() / 255
    return ListedColormap(np.hstack([shown[:, :3] * alpha + beneath * (1 - alpha), np.ones((256, 1))]))


def _lines(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width) or [""]


def _folded(text: str, width: int, most: int = 3) -> str:
    """At most so many lines; what is cut ends in dots."""
    lines = _lines(text, width)
    return "\n".join(lines[:most]) + (" ..." if len(lines) > most else "")


def drawn_words(words: Sequence[str]) -> list[str]:
    """The words, signs that the figure's font lacks as a square: matplotlib would warn, and draw something else."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap()
    return ["".join(sign if ord(sign) in known else "\u25a1" for sign in word) for word in words]
