"""Pages with a slider over generated tokens: one picture for each, in one document that fetches nothing."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._page import Page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nnsight_mmflow._look import Look

MOST = 128  # pictures in one document
BODY = """
<p class="controls"><label>generated token <input type="range" id="token" min="0" step="1" value="0">
<output id="token-name"></output></label></p><div id="slide" aria-live="polite"></div>
"""
STYLE = """
#token { width: 220px; vertical-align: middle; }
#slide img { max-width: 100%; height: auto; }
"""
SCRIPT = """
const { slides, element } = page.data, at = (id) => document.getElementById(id)
if (element) {
  const tag = document.createElement("script")
  tag.textContent = new TextDecoder().decode(await page.bytes("circuitsvis"))
  document.head.append(tag)
}
const full = (one) => one.childElementCount && [...one.querySelectorAll("canvas")].every((part) => part.height > 0)
const show = async () => {
  const mine = slides[at("token").value]
  at("token-name").textContent = mine.label
  at("slide").innerHTML = mine.body // markup that Python made; words in it are escaped there
  const drawn = at("drawn")
  if (mine.props) {
    CircuitsVis.render("drawn", CircuitsVis[element], mine.props)
    for (let waited = 0; waited < 400 && !full(drawn); waited++) await new Promise((go) => setTimeout(go, 25))
  }
  await Promise.all([...at("slide").querySelectorAll("img")].map((one) => one.decode()))
  page.fit()
}
at("token").max = slides.length - 1
at("token").addEventListener("input", show)
await show()
new ResizeObserver(page.fit).observe(document.body)
"""


@dataclass(frozen=True)
class Slide:
    """What is shown at one place of the slider.

    Attributes:
        label: beside the slider.
        body: its markup.
        props: of CircuitsVis, drawn into the element "drawn"; None where there is none.
    """

    label: str
    body: str = field(repr=False)
    props: dict | None = field(default=None, repr=False)


def pages_slider(pages: Sequence[tuple[str, Page]], title: str) -> Page:
    """Pages that CircuitsVis draws as one, with a slider; each comes with the label of its place."""
    _check(len(pages))
    slides = [Slide(label, page.body, page.data["props"]) for label, page in pages]
    one = pages[0][1]
    style = "".join(dict.fromkeys(page.style for _, page in pages))
    return _page(title, slides, style, {"element": one.data["element"]}, one.arrays, str(one))


def figures_slider(figures: Sequence[tuple[str, Figure]], title: str) -> Page:
    """Figures as one page with a slider; each comes with the label of its place."""
    _check(len(figures))
    slides = [Slide(label, f'<img alt="{escape(label)}" src="{_embedded(figure)}">') for label, figure in figures]
    return _page(title, slides, "", {}, {}, "")


def no_axes(look: Look) -> None:
    """Refuses a caller's axes for what is a page.

    Raises:
        MMFlowError: they came.
    """
    if look.ax is not None:
        raise MMFlowError(
            "ax= takes one figure, but of generated tokens there is one each, in a page with a slider: draw"
            " result.token(0)."
        )


def _check(count: int) -> None:
    if count > MOST:
        raise MMFlowError(
            f"{count} pictures would stand in one document; {MOST} are the most. Draw one generated token:"
            " result.token(0)."
        )


def _page(title: str, slides: list[Slide], style: str, data: dict, arrays: dict, first: str) -> Page:
    told = f"{title}\n{len(slides)} pictures, a slider goes from one to the next: page.save('tokens.html')"
    plain = [vars(slide) for slide in slides]
    return Page(title, BODY, SCRIPT, style + STYLE, {**data, "slides": plain}, arrays, f"{told}\n{first}".strip())


def _embedded(figure: Figure) -> str:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    return f"data:image/png;base64,{base64.b64encode(drawn.getvalue()).decode()}"
