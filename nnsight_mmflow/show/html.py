"""The pieces that notebooks show things with: boxes, tables, pictures. Static HTML that brings its own colours.

Every style stands in its element, so that nothing leaks into the notebook, and dark themes change nothing. What comes
from tokens, questions or files is escaped here, and nowhere else.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from PIL.Image import Image as Picture

INK = "color:#222;background:#fff"
CELL = f"{INK};padding:2px 10px 2px 0;border:0;border-bottom:1px solid #ddd;text-align:left;vertical-align:top"
ROWS, LONGEST = 24, 160


class Markup(str):
    """HTML that is safe already; every other text is escaped."""


def box(*parts: str) -> str:
    """Parts under one another, in a frame that stays white and black in every theme."""
    style = f"{INK};font:13px/1.45 system-ui,sans-serif;padding:8px 12px;border:1px solid #ddd;border-radius:4px"
    return f'<div style="{style};max-width:1000px;overflow-x:auto">{"".join(parts)}</div>'


def heading(text: str, note: str = "") -> str:
    """A line that says what is shown, and a smaller one under it."""
    under = f'<div style="{INK};color:#555;font-size:12px">{escape(note)}</div>' if note else ""
    return f'<div style="{INK};font-weight:600">{escape(text)}</div>{under}'


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table of its first rows; it says how many more there are."""
    top = "".join(f'<th scope="col" style="{CELL};font-weight:600">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr style="{INK}">' + "".join(f'<td style="{CELL}">{shown(cell)}</td>' for cell in row) + "</tr>"
        for row in rows[:ROWS]
    )
    more = f'<div style="{INK};color:#555">and {len(rows) - ROWS} rows more</div>' if len(rows) > ROWS else ""
    style = f"{INK};border-collapse:collapse;margin:6px 0;font-size:12px"
    return f'<table style="{style}"><thead><tr style="{INK}">{top}</tr></thead><tbody>{body}</tbody></table>{more}'


def frame_table(frame: pd.DataFrame) -> str:
    """A pandas table."""
    return table([str(name) for name in frame.columns], [list(row) for row in frame.itertuples(index=False)])


def shown(cell: object) -> str:
    """A cell: numbers short, text escaped and cut where it is long, markup as it is."""
    if isinstance(cell, Markup):
        return cell
    if isinstance(cell, float):
        return "" if cell != cell else f"{cell:.4g}"
    text = str(cell)
    return escape(text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")


def swatch(color: str, text: str) -> Markup:
    """A name behind a patch of its colour."""
    patch = f"display:inline-block;width:10px;height:10px;margin-right:6px;background:{color}"
    return Markup(f'<span style="{patch}"></span>{escape(text)}')


def png(drawn: bytes, meaning: str, style: str = "max-width:100%;background:#fff") -> Markup:
    """A picture inside the document; `told` for those who do not see it."""
    data = base64.b64encode(drawn).decode()
    return Markup(f'<img alt="{escape(meaning)}" style="{style}" src="data:image/png;base64,{data}">')


def figure(drawn: Figure, meaning: str) -> Markup:
    """A matplotlib figure."""
    held = io.BytesIO()
    drawn.savefig(held, format="png", dpi=100)
    return png(held.getvalue(), meaning)


def thumbnail(picture: Picture, meaning: str, side: int = 160) -> Markup:
    """A picture at most so many pixels wide and high; a tiny one is enlarged, its pixels sharp."""
    from PIL.Image import Resampling

    longest = max(picture.size)
    size = tuple(max(1, round(length * side / longest)) for length in picture.size)
    small = picture.resize((size[0], size[1]), Resampling.NEAREST if longest < side else Resampling.LANCZOS)
    held = io.BytesIO()
    small.save(held, format="PNG")
    return png(held.getvalue(), meaning, f"width:{size[0]}px;height:{size[1]}px;max-width:none;margin:4px 8px 4px 0")
