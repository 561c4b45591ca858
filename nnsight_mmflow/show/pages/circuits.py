"""CircuitsVis inside a page: its own script and properties, moved where no token can break them and nothing is fetched.

What CircuitsVis returns would open google.com at every display, and then import its script from a CDN or write 1.3 MB;
tokens stand in it unescaped. Here its script is kept deflated (0.5 MB), its properties in the page's data.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._page import Page

if TYPE_CHECKING:
    from circuitsvis.utils.render import RenderedHTML

# Okabe and Ito's: told apart by colour-blind readers; black text stays readable on the lighter two.
BLUE, LIGHT_BLUE, ORANGE = "#0072B2", "#56B4E9", "#E69F00"

# An inline script that a script makes is as inline as any: the page's policy stays as strict as it is.
SCRIPT = """
const drawn = document.getElementById("drawn")
const tag = document.createElement("script")
tag.textContent = new TextDecoder().decode(await page.bytes("circuitsvis"))
document.head.append(tag)
CircuitsVis.render("drawn", CircuitsVis[page.data.element], page.data.props)
const full = () => drawn.childElementCount && [...drawn.querySelectorAll("canvas")].every((one) => one.height > 0)
for (let waited = 0; waited < 400 && !full(); waited++) await new Promise((go) => setTimeout(go, 25))
new ResizeObserver(page.fit).observe(document.body)
"""
STYLE = """
canvas { image-rendering: auto; }
#drawn { max-width: 720px; }
.colored-tokens > span { margin-right: 3px; }
h1 { font-size: 16px; margin: 0 0 4px; } h3 { font-size: 13px; } h4 { font-size: 11px; }
table { border-collapse: collapse; font-size: 12px; margin: 8px 0; }
th, td { text-align: left; padding: 1px 14px 1px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
"""


def circuits() -> None:
    """Refuses to go on without CircuitsVis.

    Raises:
        MMFlowError: it is not installed; the message says what to type.
    """
    try:
        import circuitsvis  # noqa: F401
    except ImportError as error:
        raise MMFlowError(
            "this picture is drawn by CircuitsVis, which is not installed: pip install 'nnsight-mmflow[circuitsvis]'"
            " (or circuitsvis alone)."
        ) from error


def circuits_page(drawn: RenderedHTML, title: str, above: str, below: str, summary: str) -> Page:
    """A page around what CircuitsVis drew.

    Args:
        drawn: what one of its functions returned.
        title: of the page.
        above: markup over the picture, escaped by who makes it.
        below: markup under it.
        summary: what a terminal shows.

    Raises:
        MMFlowError: this CircuitsVis writes its pages otherwise.
    """
    import numpy as np

    code, element, props = parts_of(drawn.local_src)
    return Page(
        title,
        f'{above}<div id="drawn"></div>{below}',
        SCRIPT,
        STYLE,
        {"element": element, "props": props},
        {"circuitsvis": np.frombuffer(code.encode(), dtype=np.uint8)},
        summary,
    )


def parts_of(source: str) -> tuple[str, str, dict]:
    """(script, element, properties) of a page as CircuitsVis writes it.

    Raises:
        MMFlowError: this CircuitsVis writes its pages otherwise.
    """
    head = re.match(r'\s*<div id="(circuits-vis-[0-9a-f-]+)"[^>]*>\s*<script[^>]*>', source)
    if head:  # its random name stands in no token
        call = re.compile(rf'CircuitsVis\.render\(\s*"{head[1]}",\s*CircuitsVis\.(\w+),\s*(?=\{{)').search(source)
        if call:
            props, end = json.JSONDecoder().raw_decode(source, call.end())
            if re.fullmatch(r"\s*\)\s*</script>\s*", source[end:]):
                code = re.sub(r"//# sourceMappingURL=\S+", "", source[head.end() : call.start()])
                return code, call[1], props
    import circuitsvis

    raise MMFlowError(
        f"circuitsvis {circuitsvis.__version__} writes its pages in a way that is not known here (1.43.3 is):"
        " pip install 'circuitsvis==1.43.3'."
    )
