"""A page: one HTML document that holds its own script, style and numbers, and fetches nothing."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from nnsight_mmflow.files.output import write_text

if TYPE_CHECKING:
    import numpy as np


# No address but the document's own: what tries to fetch is refused by the browser itself.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


def pack(array: np.ndarray, *, runs: bool = False) -> str:
    """An array's bytes deflated, as text.

    Args:
        array: of any type; the script sees its bytes.
        runs: look for runs alone. For quantised noise (attention weights) that is seven times as fast as to look for
            repeats, and smaller.
    """
    packer = zlib.compressobj(9, strategy=zlib.Z_RLE) if runs else zlib.compressobj(9)
    return base64.b64encode(packer.compress(array.tobytes()) + packer.flush()).decode()


@dataclass(frozen=True)
class Page:
    """An interactive picture, which notebooks show by itself.

    Attributes:
        title: what it shows.
        body: its markup; text from tokens, questions and labels is escaped by who makes it.
        script: JavaScript that draws it, run when the markup is there. It may use `page.data` (see `data`),
            `await page.bytes(name)` (the array as Uint8Array), `page.fit()` (after the height has changed).
        style: CSS beside `page.css`.
        data: plain values for the script.
        arrays: uint8 arrays for the script, or what `pack` made of them; they are kept deflated.
        summary: what a terminal shows.

    Example:
        >>> from nnsight_mmflow._page import Page
        >>> page = Page("a page", "<p id='told'></p>", "told.textContent = page.data.word", data={"word": "</script>"})
        >>> len(page.html()) < 3000
        True
    """

    title: str
    body: str
    script: str
    style: str = ""
    data: dict = field(default_factory=dict, repr=False)
    arrays: dict[str, np.ndarray | str] = field(default_factory=dict, repr=False)
    summary: str = ""

    def html(self) -> str:
        """The whole document."""
        return self._document

    @cached_property
    def _document(self) -> str:
        """Made once: a notebook asks for it again and again."""
        parts = files("nnsight_mmflow.show.pages")
        packed = {name: array if isinstance(array, str) else pack(array) for name, array in self.arrays.items()}
        # "<" never stands in the script's numbers, so no token can end the element that holds them.
        held = json.dumps({"data": self.data, "arrays": packed}).replace("<", "\\u003c")
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(self.title)}</title>'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            f"<style>{(parts / 'page.css').read_text()}{self.style}</style></head><body>{self.body}"
            f'<script type="application/json" id="held">{held}</script>'
            f"<script>{(parts / 'page.js').read_text()}\n(async () => {{\n{self.script}\npage.ready()\n}})()</script>"
            "</body></html>"
        )

    def save(self, file: str | PathLike[str]) -> Path:
        """Writes the document, which opens in any browser, and returns its path."""
        return write_text(file, self.html())

    def _repr_html_(self) -> str:
        """A frame, so that neither the notebook's style and script nor the page's reach the other."""
        return (
            f'<iframe title="{escape(self.title)}" style="width:100%;border:0;height:480px"'
            f' srcdoc="{escape(self.html())}"></iframe>'
        )

    def __repr__(self) -> str:
        return f"Page({self.title!r}, {len(self.html().encode()) / 1000:.0f} kB)"

    def __str__(self) -> str:
        return self.summary or repr(self)
