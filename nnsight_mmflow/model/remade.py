"""The one way to make a prompt from another: its text with another question, or its other pictures, all else kept."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import PromptError, SpanError
from nnsight_mmflow.prompts.encode import encode
from nnsight_mmflow.prompts.pictures import open_pictures
from nnsight_mmflow.spans.in_pixels import InPixels

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.pictures import OnePicture
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.spans.row_spans import Spans


def made_again(graph: Graph, prompt: Prompt, *, question: str | None = None, image: OnePicture | None = None) -> Prompt:
    """The prompt with another question, or another (first) picture.

    The text around the question stays as it is, whatever template, instruction or raw text it came from; the pictures
    are padded, and bounded, as they were. Answer, options, key and kind are kept; tokens that were put in by hand
    and spans that were added too, where they still have a place. Boxes and masks are in pixels, so they are kept for a
    picture of the same size only.

    Raises:
        PromptError: the new prompt cannot be encoded, or has no place for tokens that were put in by hand.
    """
    pictures = prompt.images
    if image is not None:
        if not pictures:
            raise PromptError(f"prompt {prompt.question!r} has no picture that another could stand for.")
        pictures = (open_pictures([image], prompt.made.max_aspect_ratio)[0], *pictures[1:])
    start, end = prompt.made.place
    asked = prompt.question if question is None else question
    place = start, start + len(asked)
    text = prompt.text[:start] + asked + prompt.text[end:]
    inputs, spans = encode(graph.adapter, text, place, pictures, prompt.made.pad_to_square)
    same = pictures[:1] and pictures[0].size == prompt.images[0].size
    again = replace(
        prompt,
        text=text,
        question=asked,
        inputs=inputs,
        spans=spans,
        images=pictures,
        boxes=prompt.boxes if same else (),
        made=replace(prompt.made, place=place),
    )
    if question is None:
        again = _with_tokens_of(prompt, again)
    elif not _as_written(graph, prompt):
        raise PromptError(
            f"tokens of prompt {prompt.question!r} were replaced by hand (repeat_token), so its question cannot be"
            " replaced as well: replace the question first."
        )
    return _with_spans_of(prompt, again)


def _with_tokens_of(old: Prompt, new: Prompt) -> Prompt:
    """The new prompt with the old one's text tokens, which may have been replaced by hand."""
    here, there = _written(new.spans), _written(old.spans)
    if len(here) != len(there):
        raise PromptError(f"prompt {old.question!r} has tokens behind its text: make it again without them.")
    ids, before = new.inputs["input_ids"], old.inputs["input_ids"]
    if ids[0, here].equal(before[0, there]):
        return new
    ids = ids.clone()
    ids[0, here] = before[0, there]
    tokens = list(new.spans.tokens)
    for position, was in zip(here, there, strict=True):
        tokens[position] = old.spans.tokens[was]
    return replace(new, inputs={**new.inputs, "input_ids": ids}, spans=replace(new.spans, tokens=tuple(tokens)))


def _written(spans: Spans) -> list[int]:
    """The positions that are text: no image token, and nothing that stands between them."""
    images = spans["image"].images
    put_in = {position for image in images for position in (*image.positions, *image.separators)}
    return [position for position in range(len(spans.tokens)) if position not in put_in]


def _as_written(graph: Graph, prompt: Prompt) -> bool:
    """Whether the prompt's tokens are those of its text."""
    made = prompt.made
    inputs, _ = encode(graph.adapter, prompt.text, made.place, prompt.images, made.pad_to_square)
    return bool(inputs["input_ids"].equal(prompt.inputs["input_ids"]))


def _with_spans_of(old: Prompt, new: Prompt) -> Prompt:
    """The new prompt with the spans that were added to the old one, where they still have a place.

    What was named in pixels is found again in a picture of the same size. All else stands where it stood, if every
    position still means the same; if not, words and expressions are looked up anew.
    """
    spans = new.spans
    for name, span in old.spans.named.items():
        if name in new.spans.named:
            continue
        how = old.spans.given.get(name)
        if isinstance(how, InPixels):
            if how.fits(spans["image"]):
                spans = spans.having(**{name: how})
        elif len(old) == len(new):
            spans = spans.having(**{name: span})
            spans = spans if how is None else replace(spans, given={**spans.given, name: how})
        elif how is not None:
            with suppress(SpanError):
                spans = spans.having(**{name: how})
    return replace(new, spans=spans)
