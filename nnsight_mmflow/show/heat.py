"""Numbers of image tokens drawn on the picture: the one way in which all figures do it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nnsight_mmflow._look import PLAIN, Look
from nnsight_mmflow.show.boxes import drawn_boxes, mosaic
from nnsight_mmflow.show.drawing import Drawing
from nnsight_mmflow.show.heat_notes import notes_of

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from PIL.Image import Image as Picture

    from nnsight_mmflow._look import Size
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.show.boxes import DrawnBoxes
    from nnsight_mmflow.show.panels import Panels
    from nnsight_mmflow.spans.views import Box

WIDTH = 9.5  # inches: what a notebook shows at 100 dots per inch without shrinking it
WIDE = 6.2  # inches of a panel with words
MOST_ACROSS = 5
PANEL = "values on the picture"
GREY = (0.42, 0.42, 0.42)  # neither dark nor bright parts of a picture look like it
OPAQUE = 0.3, 0.75  # how much of the colour covers the picture, which is grey and light beneath it: least, most
BOX = "#ff2d2d"  # around what the question is about
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
    look: Look = PLAIN,
) -> Figure:
    """The picture as it is, and a copy of it for each panel, every token's own pixels in the colour of its number.

    Small numbers cover the picture least, so that it is seen beneath; boxes that the prompt has are drawn on each copy.

    Args:
        prompt: the prompt that holds the picture.
        panels: what is drawn; one scale serves all of them.
        image: which of the prompt's images, counted from 0.
        view: "base" (the whole picture, small) or "tiles"; None: the finest that there is at each pixel.
        signed: colours around white at 0; None: where a number is below 0.
        max_value: where the scale ends; the largest number drawn unless given.
        shade: the picture keeps its colours; flat grey covers it instead, the more the smaller the number.
        wide: the one panel is large, the picture small.
        notes: said below beside the others.
        look: what the caller asks; its rows and labels are the panels'.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    chosen = look.chosen(panels.titles) if look.rows is not None else list(panels.titles)
    kept = [panels.titles.index(title) for title in chosen] if look.rows is not None else list(range(len(chosen)))
    called = (
        look.label_of(chosen, {}, panels.titles) if look.labels is not None else dict(zip(chosen, chosen, strict=False))
    )
    drawn = drawn_boxes(prompt, image, view)
    whole = panels.numbers[kept]
    numbers = whole[:, list(drawn.tokens)]
    ends, colours, extend = _scale(numbers, signed, max_value, shade, look)
    norm = Normalize(*ends)
    drawing, across = _drawing(prompt.images[image], len(chosen), wide, look)
    axes, boxes = drawing.axes, prompt.boxes if image == 0 else ()
    _picture(axes[0], prompt.images[image], boxes)
    drawing.panel(axes[0], "picture")
    if len(chosen) <= 3 or not drawing.small:
        room = drawing.letters("note", drawing.width / across - 0.3)
        axes[0].set_xlabel(_folded(prompt.question, room), fontsize=drawing.size("note"), parse_math=False)
    behind = prompt.images[image] if shade else _faint(prompt.images[image])
    for axis, row, title in zip(axes[1:], numbers, chosen, strict=True):
        _picture(axis, behind, boxes)
        axis.set_gid(PANEL)
        drawing.panel(axis, called[title], parse_math=False)
        _lay(axis, drawn, row, norm, colours)
    bar = drawing.colorbar(ScalarMappable(norm, _over(behind, colours)), axes, "", extend=extend, panchor=False)
    high = drawing.letters("note", drawing.height - 0.6)
    bar.set_label("\n".join(_lines(panels.label, high)), fontsize=drawing.size("note"), parse_math=False)
    if panels.ticks:
        bar.set_ticks([number for number, _ in panels.ticks], labels=[word for _, word in panels.ticks])
    if drawing.own:
        below = " ".join([*notes, *notes_of(prompt, whole, drawn, image, ends, view, shares=not wide)])
        told = _lines(below, drawing.letters("note", drawing.width - 0.2))
        size = drawing.size("note")
        drawing.figure.supxlabel("\n".join(told), fontsize=size, x=0.01, ha="left", parse_math=False)
        if look.figsize is None:
            drawing.figure.set_figheight(drawing.height + 0.14 * len(told))
    return drawing.done()


def largest(prompt: Prompt, panels: Panels, image: int = 0, view: str | None = None) -> float:
    """The size of the largest number that is drawn, for a scale that several figures share."""
    import numpy as np

    return float(np.nanmax(np.abs(panels.numbers[:, list(drawn_boxes(prompt, image, view).tokens)])))


def _scale(
    numbers: np.ndarray, signed: bool | None, max_value: float | int | None, shade: bool, look: Look
) -> tuple[tuple[float, float], Colormap, str]:
    """(the ends of the scale, colours that say how opaque they are, where the scale is cut)."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
    if signed or (signed is None and low < 0):
        end = max_value or max(abs(low), abs(high)) or 1.0
        extend = ("neither", "max", "min", "both")[(high > end) + 2 * (low < -end)]
        asked = look.colors is not None
        colours = colormaps[look.color_map("")] if asked else LinearSegmentedColormap.from_list("signed", SIGNED)
        return (-end, end), _clear(colours, np.abs(np.linspace(-1, 1, 256))), extend
    start = min(0.0, low)
    end = max_value or (high if high > start else start + 1.0)
    extend = "max" if high > end else "neither"
    if shade and look.colors is None:
        return (start, end), LinearSegmentedColormap.from_list("shade", [(*GREY, 0.92), (*GREY, 0)]), extend
    return (start, end), _clear(colormaps[look.color_map("cividis")], np.linspace(0, 1, 256)), extend


def _clear(colours: Colormap, sizes: np.ndarray) -> Colormap:
    """The colours, the smaller numbers the clearer."""
    import numpy as np
    from matplotlib.colors import ListedColormap

    shown = colours(np.linspace(0, 1, 256))
    shown[:, 3] = OPAQUE[0] + (OPAQUE[1] - OPAQUE[0]) * sizes
    return ListedColormap(shown)


def _drawing(picture: Picture, panels: int, wide: bool, look: Look) -> tuple[Drawing, int]:
    """A figure with a place for the picture and each panel, and how many stand side by side."""
    shape = picture.height / picture.width
    if wide:
        beside = WIDTH - 1.1 - WIDE
        size = WIDTH, min(WIDE * shape, 1.4 * WIDE) + 0.7
        drawing = Drawing(look, size, 1, 2, ratios=(beside, WIDE))
        drawing.axes[0].set_anchor("N")
        return drawing, 5
    across = min(panels + 1, 2 if shape < 0.45 else MOST_ACROSS if panels > 7 else 4)
    if look.figsize is not None:
        across = max(range(1, panels + 2), key=lambda count: _side(count, panels + 1, shape, look.figsize))
    down = math.ceil((panels + 1) / across)
    each = min(4.0, (WIDTH - 1.1) / across, 6.0 / shape)
    size = each * across + 1.1, down * (each * shape + 0.3) + 0.35
    return Drawing(look, size, down, across, count=panels + 1), across


def _side(across: int, count: int, shape: float, figsize: Size) -> float:
    """How wide a picture gets, in inches, if so many stand side by side in a figure of that size."""
    width, height = figsize or (WIDTH, WIDTH)
    return min((width - 0.8) / across, ((height - 0.5) / math.ceil(count / across) - 0.3) / shape)


def _picture(axis: Axes, picture: Picture, boxes: Sequence[Box] = ()) -> None:
    from matplotlib.patches import Rectangle

    width, height = picture.size
    axis.imshow(picture, extent=(0, width, height, 0), interpolation="antialiased")
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    for x0, y0, x1, y1 in boxes:
        for color, line, dash in (("white", 1.6, "-"), (BOX, 1.0, "--")):
            style: dict[str, Any] = {
                "fill": False,
                "edgecolor": color,
                "linewidth": line,
                "linestyle": dash,
                "zorder": 4,
            }
            axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **style))


def _lay(axis: Axes, drawn: DrawnBoxes, numbers: np.ndarray, norm: Normalize, colours: Colormap) -> None:
    """The colours, as one mesh: rectangles that touch or overlap would show seams."""
    import numpy as np

    cells = mosaic(drawn.boxes)
    which = np.array(cells.which)
    values = np.ma.masked_invalid(np.where(which < 0, np.nan, numbers[which]))
    axis.pcolormesh(np.array(cells.columns), np.array(cells.rows), values, norm=norm, cmap=colours, rasterized=True)


def _faint(picture: Picture) -> Picture:
    """Grey and light, so that colours over it stay what they are."""
    return picture.convert("L").point(lambda level: 105 + level * 0.588).convert("RGB")


def _over(picture: Picture, colours: Colormap) -> Colormap:
    """The colours as they look over the picture's mean, for the colour bar; shades as they look over white."""
    import numpy as np
    from matplotlib.colors import ListedColormap

    shown = colours(np.linspace(0, 1, 256))
    alpha = shown[:, 3:]
    beneath = 1.0 if alpha.min() == 0 else np.asarray(picture).mean() / 255
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
