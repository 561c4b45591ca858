"""The figure that every plot returns."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.backend_bases import RendererBase

TRUETYPE = {"pdf.fonttype": 42, "ps.fonttype": 42}  # as journals ask: letters stay letters, which can be searched


class TrueTypeFigure(Figure):
    """A figure whose PDF and PostScript files embed TrueType fonts.

    The settings hold while this figure is written and for no other: a setting of the whole process would change figures
    that have nothing to do with this package, and be lost with the next `rcdefaults`.
    """

    def savefig(self, fname: object, **kwargs: object) -> None:
        """Writes it; into a document of several pages (PdfPages) with the document's own fonts, which it embeds."""
        from matplotlib import rc_context
        from matplotlib.backends.backend_pdf import PdfPages

        with rc_context({} if isinstance(fname, PdfPages) else TRUETYPE):
            super().savefig(fname, **kwargs)  # type: ignore[arg-type]


class ShownFigure(TrueTypeFigure):
    """A figure that notebooks show without pyplot, which would keep every figure in memory.

    Its texts are shown as they are: a "$" in a model's name, a span or a token is no formula.
    """

    def draw(self, renderer: RendererBase) -> None:
        """Draws it, no text as a formula; also those that the axes make while they are drawn."""
        from matplotlib import rc_context
        from matplotlib.text import Text

        for text in self.findobj(Text):
            text.set_parse_math(False)
            text.set_usetex(False)
        plain = {"text.parse_math": False, "text.usetex": False, "axes.formatter.use_mathtext": False}
        with rc_context(plain):
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=100)
        return drawn.getvalue()


def with_truetype(figure: Figure) -> None:
    """A caller's own figure, on whose axes something was drawn, from now on embeds TrueType too."""
    if type(figure) is Figure:  # a class of the caller's own keeps its own ways
        figure.__class__ = TrueTypeFigure
