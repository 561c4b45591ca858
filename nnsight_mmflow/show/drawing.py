"""One way to make a plot's figure: its panels, or the caller's axes; letters, legend and title that fit its width."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._figure import ShownFigure, with_truetype

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure

    from nnsight_mmflow._look import Look

COLUMN = 4.6  # inches: narrower figures are a paper's column, with its letters
SIZES = {  # points: in a figure of its own, in a column
    "title": (10.5, 7.5),
    "panel": (10.0, 7.0),
    "axis": (10.0, 7.0),
    "tick": (9.0, 6.5),
    "legend": (9.0, 6.5),
    "row": (8.0, 6.5),
    "cell": (7.0, 6.0),
    "note": (7.5, 6.0),
}
LETTER = 0.58  # mean width of a letter, of its height


class Drawing:
    """A figure with panels side by side, or the caller's axes in their place.

    Attributes:
        figure: where it is drawn.
        axes: the panels, row by row.
        own: whether the figure was made here: titles and legends then have a place of their own in it.
        small: whether it is as narrow as a column.
    """

    def __init__(
        self,
        look: Look,
        size: tuple[float | int, float | int],
        down: int = 1,
        across: int = 1,
        *,
        count: int | None = None,
        share: str = "",
        ratios: Sequence[float | int] | None = None,
    ) -> None:
        """Makes it.

        Args:
            look: what the caller asks.
            size: (width, height) in inches unless the caller asks for another.
            down: rows of panels.
            across: panels side by side.
            count: how many panels there are, if not all places are taken.
            share: axes that panels have in common: "x", "y".
            ratios: of the widths of the panels.
        """
        count = down * across if count is None else count
        self.own = look.ax is None
        self.figure: Figure
        if self.own:
            self.figure = ShownFigure(figsize=look.figsize or size, layout="constrained")
            shared: dict[str, Any] = {"sharex": "x" in share, "sharey": "y" in share, "width_ratios": ratios}
            places = self.figure.subplots(down, across, squeeze=False, **shared).flatten().tolist()
            for spare in places[count:]:
                spare.remove()
            self.axes = places[:count]
            self.width, self.height = map(float, self.figure.get_size_inches())
            self.small = self.width < COLUMN
        else:
            self.axes = _given(look.ax, down, across, count, ratios)
            self.figure = self.axes[0].figure.figure  # of a subfigure the figure
            box = self.axes[0].get_position()
            self.width = float(self.figure.get_figwidth() * box.width * across * 1.3)
            self.height = float(self.figure.get_figheight() * box.height * down * 1.3)
            self.small = self.width < COLUMN
            for axes in self.axes[1:]:
                if "y" in share:
                    axes.sharey(self.axes[0])
        if self.small and self.own:
            tight: Any = self.figure.get_layout_engine()
            tight.set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.02)

    def size(self, what: str) -> float:
        """The size of letters, in points."""
        return SIZES[what][self.small]

    def letters(self, what: str, inches: float | int) -> int:
        """How many letters have room there."""
        return max(6, int(72 * inches / (LETTER * self.size(what))))

    def title(self, text: str, more: str = "") -> None:
        """The figure's title; `more` where there is room. On the caller's axes there is none: it is their figure."""
        if self.own:
            told = text if self.small else text + more
            size = self.size("title")
            self.figure.suptitle(_wrapped(told, self.letters("title", self.width - 0.15)), fontsize=size)

    def panel(self, axes: Axes, text: str, **kwargs: Any) -> None:
        """A panel's title."""
        room = self.width / max(1, self._across()) - (0.1 if self.small else 0.3)
        axes.set_title(_wrapped(text, self.letters("panel", room)), fontsize=self.size("panel"), **kwargs)

    def legend(self, title: str | None = None) -> None:
        """What lines are: below the panels, in as many columns as fit; on the caller's axes in the first of them."""
        found: dict[str, Any] = {}
        for axes in self.axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                found.setdefault(label, handle)
        if not found:
            return
        size = self.size("legend")
        style: dict[str, Any] = {"frameon": False, "fontsize": size, "title": title, "title_fontsize": size}
        if self.small:
            style |= {"handlelength": 2.4, "columnspacing": 1.0, "labelspacing": 0.3, "handletextpad": 0.5}
            style |= {"borderaxespad": 0.2, "borderpad": 0.1}
        if not self.own:
            own = self.axes[0].legend(list(found.values()), [_wrapped(label, 30) for label in found], **style)
            own.set_in_layout(False)  # wider than a narrow panel, it would take the room of all
            return
        handle = (3.9 if self.small else 4.8) * size / 72
        texts, across = _columns(list(found), self.width - 0.15, handle, size)
        self.figure.legend(list(found.values()), texts, loc="outside lower center", ncols=across, **style)

    def colorbar(self, shown: ScalarMappable, axes: Sequence[Axes], label: str, **kwargs: Any) -> Colorbar:
        """A colour bar beside panels, away from what stands next to it."""
        bar = self.figure.colorbar(shown, ax=list(axes), **{"pad": 0.02, "aspect": 25, **kwargs})
        bar.set_label(_wrapped(label, self.letters("axis", max(0.9, self.height - 0.9))), fontsize=self.size("axis"))
        bar.ax.tick_params(labelsize=self.size("tick"))
        bar.ax.yaxis.get_offset_text().set_fontsize(self.size("tick"))
        return bar

    def done(self) -> Figure:
        """The figure, its letters as they fit."""
        from matplotlib.text import Text

        for axes in self.axes:
            if self.own:
                axes.tick_params(labelsize=self.size("tick"))
                for label in (axes.xaxis.label, axes.yaxis.label):
                    label.set_fontsize(min(label.get_fontsize(), self.size("axis")))
            else:
                for text in axes.findobj(Text):  # words of models and prompts are no formulas
                    text.set_parse_math(False)
        with_truetype(self.figure)
        return self.figure

    def _across(self) -> int:
        spec = self.axes[0].get_subplotspec()
        return 1 if spec is None else int(spec.get_gridspec().ncols)


def _columns(labels: Sequence[str], width: float, handle: float, size: float) -> tuple[list[str], int]:
    """(the labels, folded; in how many columns): as low as the width allows, and as few columns as that takes."""
    best: tuple[int, int, list[str]] | None = None
    for across in range(1, min(len(labels), 6) + 1):
        rows = -(-len(labels) // across)
        across = -(-len(labels) // rows)
        for letters in (60, 34, 26, 20, 16):
            texts = [_wrapped(label, letters) for label in labels]
            parts = [texts[start : start + rows] for start in range(0, len(texts), rows)]
            if sum(max(_width(text, size) for text in part) + handle for part in parts) > width:
                continue
            lines = max(sum(text.count("\n") + 1 for text in part) for part in parts)
            if best is None or (lines, across) < best[:2]:
                best = lines, across, texts
            break
    return (best[2], best[1]) if best else ([_wrapped(label, 16) for label in labels], 1)


def _width(text: str, size: float) -> float:
    """Inches of the longest line."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    letters = FontProperties(size=size)
    plain = text.replace("$", "S")  # a dollar's width, but no formula
    return max(float(TextPath((0, 0), line or " ", prop=letters).get_extents().x1) for line in plain.splitlines()) / 72


def _wrapped(text: str, letters: int) -> str:
    return (
        "\n".join(line for part in text.splitlines() for line in textwrap.wrap(part, letters, break_on_hyphens=False))
        or text
    )


def _given(ax: Any, down: int, across: int, count: int, ratios: Sequence[float | int] | None) -> list[Axes]:
    """The caller's axes, one for each panel; a single one is divided.

    Raises:
        MMFlowError: something else, or another number of them.
    """
    from matplotlib.axes import Axes

    flat = ax.flatten().tolist() if hasattr(ax, "flatten") else ax
    listed = list(flat) if isinstance(flat, list | tuple) else [flat]
    if not listed or not all(isinstance(one, Axes) for one in listed):
        raise MMFlowError(f"ax= is matplotlib axes, as plt.subplots() gives them, but {type(ax).__name__} came.")
    if len(listed) == count:
        return listed
    if len(listed) > 1:
        raise MMFlowError(f"{len(listed)} axes came for a plot of {count} panels: give one for each, or one for all.")
    return _divided(listed[0], down, across, count, ratios)


def _divided(axes: Axes, down: int, across: int, count: int, ratios: Sequence[float | int] | None) -> list[Axes]:
    """Panels in the place of one; it becomes the first of them."""
    spec, figure = axes.get_subplotspec(), axes.figure
    if spec is not None:
        grid = spec.subgridspec(down, across, width_ratios=ratios, wspace=0.08, hspace=0.15)
        axes.set_subplotspec(grid[0, 0])
        return [axes, *(figure.add_subplot(grid[divmod(number, across)]) for number in range(1, count))]
    left, bottom, width, height = axes.get_position().bounds
    each, tall = width / across, height / down
    places = [
        (left + column * each, bottom + (down - 1 - row) * tall, 0.78 * each, 0.7 * tall)
        for row, column in (divmod(number, across) for number in range(count))
    ]
    axes.set_position(places[0])
    return [axes, *(figure.add_axes(place) for place in places[1:])]
