"""The paper's edges, and the spans that a prompt's boxes and options add.

Source: Cross-modal Information Flow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import SpanError
from nnsight_mmflow.runs.answers import ANSWER
from nnsight_mmflow.spans.row_spans import NEEDS

if TYPE_CHECKING:
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.spans.row_spans import Spans

PAPER = ("image->last", "question->last", "last->last", "image->question")
WITH_BOXES = ("object->question", "other->question")
WITH_OPTIONS = ("true_option->last", "false_option->last", "question_without_options->last")


def default_edges(prompts: list[Prompt]) -> tuple[str, ...]:
    """The paper's four edges; with boxes and options given, those they allow as well."""
    edges = list(PAPER)
    if any(prompt.boxes or "object" in prompt.spans for prompt in prompts):
        edges += WITH_BOXES
    if any(prompt.options for prompt in prompts):
        edges += WITH_OPTIONS
    return tuple(edges)


def without_answer(spans: Spans, edges: Iterable[str]) -> tuple[str, ...]:
    """Those of the edges that an answer of one token leaves empty: nothing stands behind the prompt then."""
    if ANSWER not in spans or len(spans[ANSWER]):
        return ()
    naming = re.compile(rf"\b{ANSWER}\b")
    return tuple(
        edge for edge in edges if any(naming.search(side) and not len(spans[side.strip()]) for side in edge.split("->"))
    )


def named_spans(prompt: Prompt) -> tuple[Spans, dict[str, str]]:
    """The prompt's spans with those of its boxes and options among them, and why any of them could not be made."""
    spans, missing = prompt.spans, {}
    for name, what in NEEDS.items():
        try:
            spans = spans.having(**{name: prompt.spans[name]})
        except SpanError as error:
            missing[what] = str(error)
    return spans, missing
