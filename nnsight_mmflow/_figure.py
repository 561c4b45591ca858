"""The figure that every plot returns."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.backend_bases import RendererBase


class ShownFigure(Figure):
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
