"""The paper's edges, and the spans that a prompt's boxes and options add.

Source: Cross-modal Information Flow, spec sections 1.3 and 4.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._errors import SpanError

if TYPE_CHECKING:
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.spans.row_spans import Spans
    from nnsight_mmflow.spans.span import Span

PAPER = ("image->last", "question->last", "last->last", "image->question")
WITH_BOXES = ("object->question", "other->question")
WITH_OPTIONS = ("true_option->last", "false_option->last", "question_without_options->last")
NEEDS = {
    "object": "boxes",
    "other": "boxes",
    **dict.fromkeys(("true_option", "false_option", "question_without_options"), "options"),
}


def default_edges(prompts: list[Prompt]) -> tuple[str, ...]:
    """The paper's four edges; with boxes and options given, those they allow as well."""
    edges = list(PAPER)
    if any(prompt.boxes for prompt in prompts):
        edges += WITH_BOXES
    if any(prompt.options for prompt in prompts):
        edges += WITH_OPTIONS
    return tuple(edges)


def named_spans(prompt: Prompt) -> tuple[Spans, dict[str, str]]:
    """The prompt's spans with `object`, `other` and the options beside them, and why any of them could not be made."""
    spans, missing = prompt.spans, {}
    if prompt.boxes and prompt.images:
        try:
            found = spans["image[0]"].box(*prompt.boxes)
            spans = spans.having(object=found, other=spans["image"] - found)
        except SpanError as error:
            missing["boxes"] = str(error)
    else:
        missing["boxes"] = "the prompt has no boxes: graph.prompt(..., boxes=((x0, y0, x1, y1),))"
    if prompt.options:
        try:
            true, false = (_option(spans, option) for option in prompt.options)
            rest = spans["question"] - true - false
            spans = spans.having(true_option=true, false_option=false, question_without_options=rest)
        except SpanError as error:
            missing["options"] = str(error)
    else:
        missing["options"] = "the prompt has no options: graph.prompt(..., options=(true, false))"
    return spans, missing


def _option(spans: Spans, option: str) -> Span:
    """The option's tokens in the question: whole words, the first of several."""
    start, end = spans.question
    found = spans.text(option, 0)
    if not set(found) & set(spans["question"]):
        raise SpanError(f"option {option!r} does not stand in the question {spans.prompt_text[start:end]!r}.")
    return found
