"""One colour for each span, the same in every figure, table and page; and the order in which spans are shown.

Okabe and Ito's colours, told apart by colour-blind readers. No figure depends on them alone: places, dashes and labels
say the same in grey.
"""

from __future__ import annotations

import re

SPAN_COLORS = {
    "prefix": "#7F7F7F",
    "image": "#0072B2",
    "other": "#56B4E9",
    "object": "#D55E00",
    "question": "#009E73",
    "question_without_options": "#4D8F77",
    "true_option": "#00573F",
    "false_option": "#8F8000",
    "suffix": "#CC79A7",
    "generated": "#E69F00",
    "last": "#000000",
}
INCREASE = "#882255"  # what becomes more likely; drawn dashed as well
PALE = {  # behind black text: at least 12 to 1
    "prefix": "#E6E6E6",
    "image": "#CFE6F5",
    "other": "#DDF0FB",
    "object": "#FBDDC8",
    "question": "#CDEFE3",
    "suffix": "#F6DFEB",
    "generated": "#FBEBC8",
    "last": "#FFF3B0",
}
_ORDER = {name: number for number, name in enumerate(SPAN_COLORS)}


def base_span(expression: str) -> str:
    """The known span that an expression starts from: of "image[0].tile[2]" the image, of "text('red')" the question."""
    named = [word for word in re.findall(r"[a-z_]+", expression) if word in SPAN_COLORS]
    return named[0] if named else "question"


def span_color(expression: str) -> str:
    """The colour of a span, or of an expression's first one."""
    return SPAN_COLORS[base_span(expression)]


def in_order(expressions: list[str]) -> list[str]:
    """Each once, as they stand in a prompt: the image first, `last` last, an expression behind the span it is of."""
    names = dict.fromkeys(expressions)
    return sorted(names, key=lambda name: (_ORDER[base_span(name)], name not in SPAN_COLORS))
