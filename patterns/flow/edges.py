"""The paper's edges, and the spans that a prompt's boxes and options add.

Source: Cross-modal Information Flow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._errors import SpanError
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


def named_spans(prompt: Prompt) -> tuple[Spans, dict[str, str]]:
    """The prompt's spans with those of its boxes and options among them, and why any of them could not be made."""
    spans, missing = prompt.spans, {}
    for name, what in NEEDS.items():
        try:
            spans = spans.having(**{name: prompt.spans[name]})
        except SpanError as error:
            missing[what] = str(error)
    return spans, missing
