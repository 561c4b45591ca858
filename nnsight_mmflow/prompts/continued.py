"""A prompt with the tokens behind it that a model wrote: one longer prompt, whose spans know which tokens these are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import PromptError
from nnsight_mmflow.spans.span import Span

if TYPE_CHECKING:
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.spans.row_spans import Spans

GENERATED = "generated"
KINDS = ("token_type_ids", "mm_token_type_ids")  # what kind each position is of, where a family says so


def continued(prompt: Prompt, ids: Sequence[int], tokens: Sequence[str], kind: int = 0) -> Prompt:
    """The prompt with generated tokens behind it.

    They are the span `generated`, and `generated[k]` is the one at k, counted from 0. All other spans stay what they
    are (`last` is the last position of the prompt that was asked); `all` holds every position.

    Args:
        prompt: what was asked.
        ids: of the generated tokens.
        tokens: the same as the tokenizer writes them.
        kind: what token_type_ids say of them, in families that have such.

    Raises:
        PromptError: the prompt is continued already.
    """
    import torch

    if prompt.continues is not None:
        raise PromptError("this prompt holds generated tokens already; continue the one that was asked.")
    inputs = dict(prompt.inputs)
    given = inputs["input_ids"]
    inputs["input_ids"] = torch.cat([given, given.new_tensor([list(ids)])], 1)
    for name, value in (("attention_mask", 1), *((name, kind) for name in KINDS)):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], inputs[name].new_full((1, len(ids)), value)], 1)
    return replace(prompt, inputs=inputs, spans=_spans(prompt.spans, tokens), continues=prompt)


def _spans(spans: Spans, tokens: Sequence[str]) -> Spans:
    first, end = spans["all"].row
    row, longer = (first, end + len(tokens)), tuple(range(first, end + len(tokens)))
    named = {name: replace(span, row=row) for name, span in spans.named.items()}
    named["all"] = replace(named["all"], positions=longer)
    named[GENERATED] = Span(GENERATED, longer[end - first :], row, each=True)
    return replace(
        spans,
        named=named,
        tokens=(*spans.tokens, *tokens),
        offsets=(*spans.offsets, *[(0, 0)] * len(tokens)),
    )


def in_row(what: str | Span, asked: Prompt, longer: Prompt) -> str | Span:
    """A span of the prompt that was asked, as one of the longer row; names stay names."""
    if isinstance(what, Span) and what.row == asked.spans["all"].row:
        return replace(what, row=longer.spans["all"].row)
    return what


def generated_positions(prompt: Prompt) -> tuple[int, ...]:
    """Where the generated tokens stand; () in a prompt that is as it was asked."""
    return prompt.spans.named[GENERATED].positions if prompt.continues is not None else ()


def generated_kind(prompt: Prompt) -> int:
    """What token_type_ids say of a continued prompt's generated tokens; 0 where nothing does."""
    return next((int(prompt.inputs[name][0, -1]) for name in KINDS if name in prompt.inputs), 0)
