"""Whether a figure can be read: texts that leave it, lie over one another, or are too small."""

from __future__ import annotations

import itertools
import warnings

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

COLUMN = (3.3, 2.4)  # inches
SMALLEST = 6.0  # points
SLACK = 1.0  # pixels at 200 dots per inch


def texts_of(figure) -> list[tuple[str, Text, object]]:
    """(what it says, the text, where it stands) of each text that is seen, once the figure is drawn."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, found = canvas.get_renderer(), []
    hidden = {id(text) for axes in figure.axes if not axes.get_visible() for text in axes.findobj(Text)}
    for axes in figure.axes:  # ticks that lie outside the view are kept, but not drawn
        for axis in (axes.xaxis, axes.yaxis):
            drawn = {id(label) for tick in axis._update_ticks() for label in (tick.label1, tick.label2)}
            every = [label for tick in (*axis.majorTicks, *axis.minorTicks) for label in (tick.label1, tick.label2)]
            hidden |= {id(label) for label in every if id(label) not in drawn}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden:
            found.append((text.get_text(), text, text.get_window_extent(renderer)))
    return found


def faults(figure, dpi: int = 200) -> list[str]:
    """What a reader of the figure would stumble over; [] if nothing."""
    figure.set_dpi(dpi)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that collapses says so
        found = texts_of(figure)
    width, height = figure.get_size_inches() * dpi
    wrong = []
    for told, text, box in found:
        if box.x0 < -SLACK or box.y0 < -SLACK or box.x1 > width + SLACK or box.y1 > height + SLACK:
            wrong.append(f"outside: {told!r} at {box.extents.round()} of {width:.0f} x {height:.0f}")
        if text.get_fontsize() < SMALLEST:
            wrong.append(f"small: {told!r}, {text.get_fontsize():.1f} pt")
    for (one, _, a), (two, _, b) in itertools.combinations(found, 2):
        across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        if across > SLACK and down > SLACK:
            wrong.append(f"overlap: {one!r} and {two!r} by {across:.0f} x {down:.0f} pixels")
    return wrong
