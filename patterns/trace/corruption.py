"""Corrupt runs for causal tracing: the question's constraint replaced, or the image, or noise on its embedding.

Text corruption leaves every position before the constraint as it was, the image's included: restoring the image then
does nothing, by causality. To trace the image, corrupt the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from numbers import Integral
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import PromptError
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.model.remade import made_again
from nnsight_mmflow.patterns.patch import Patch
from nnsight_mmflow.patterns.values import noise
from nnsight_mmflow.prompts.asked import checked_boxes
from nnsight_mmflow.runs.fingerprint import fingerprint
from nnsight_mmflow.runs.identity import _patterns, prompt_identity

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.prompts.pictures import OnePicture
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.spans.views import Number


@dataclass(frozen=True)
class Corruption:
    """A corrupt run.

    Attributes:
        prompt: the prompt that the corrupt run is of.
        how: the mode, and what was put in, as pictures and tables state it.
        patterns: applied to that run (noise on the embedding).
    """

    prompt: Prompt
    how: str
    patterns: tuple[Pattern, ...] = ()


@checked
def replace_phrase(graph: Graph, prompt: Prompt, constraint: str, phrase: str) -> Corruption:
    """The constraint of the question replaced by another phrase of as many tokens.

    Raises:
        PromptError: the constraint does not stand in the question, or the phrase has another number of tokens.

    Source: arXiv 2406.04236 ("phrase").
    """
    start = prompt.question.find(constraint)
    if start < 0 or not constraint:
        raise PromptError(f"the constraint {constraint!r} does not stand in the question {prompt.question!r}.")
    question = prompt.question[:start] + phrase + prompt.question[start + len(constraint) :]
    corrupt = made_again(graph, prompt, question=question)
    if len(corrupt) != len(prompt):
        raise PromptError(
            f"with {phrase!r} for {constraint!r} the prompt has {len(corrupt)} tokens instead of {len(prompt)}, so"
            " positions would not mean the same. Choose a phrase of as many tokens, or repeat_token(...)."
        )
    return Corruption(corrupt, f"phrase {phrase!r} for {constraint!r}")


@checked
def repeat_token(graph: Graph, prompt: Prompt, constraint: str, word: str) -> Corruption:
    """Every token of the constraint replaced by the first token of a word: the length stays (the released default).

    Raises:
        PromptError: the word is unknown to the tokenizer.
        SpanError: the constraint does not stand in the question.

    Source: arXiv 2406.04236 ("repeat-token").
    """
    from dataclasses import replace

    tokenizer = graph.processor.tokenizer
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if not ids or ids[0] == tokenizer.unk_token_id:
        raise PromptError(f"the tokenizer does not know {word!r}.")
    positions = list(prompt.spans.text(constraint, 0))
    changed = prompt.inputs["input_ids"].clone()
    changed[0, positions] = ids[0]
    tokens = list(prompt.spans.tokens)
    for position in positions:
        tokens[position] = tokenizer.convert_ids_to_tokens(ids[0])
    spans = replace(prompt.spans, tokens=tuple(tokens))
    corrupt = replace(prompt, inputs={**prompt.inputs, "input_ids": changed}, spans=spans)
    return Corruption(corrupt, f"repeated token {word!r} for {constraint!r}")


@checked
def other_image(graph: Graph, prompt: Prompt, image: OnePicture, how: str = "another image") -> Corruption:
    """The same question about another image, which must give as many tokens.

    Raises:
        PromptError: it gives another number of tokens, or the prompt has no picture.
        DataError: a picture that cannot be read.
    """
    if image is None:
        raise PromptError("image is None; expected the other picture: a path, a PIL image or an array.")
    corrupt = made_again(graph, prompt, image=image)
    if len(corrupt) != len(prompt):
        raise PromptError(
            f"the other image gives a prompt of {len(corrupt)} tokens instead of {len(prompt)}: resize it to"
            f" {prompt.images[0].size[0]}x{prompt.images[0].size[1]} first."
        )
    return Corruption(corrupt, how)


@checked
def blank_image(graph: Graph, prompt: Prompt, color: Sequence[int] = (127, 127, 127)) -> Corruption:
    """The same question about an empty picture of one colour."""
    from PIL import Image

    fill = _color(color)
    return other_image(graph, prompt, Image.new("RGB", _first(prompt).size, fill), f"blank image {fill}")


@checked
def masked_box(
    graph: Graph, prompt: Prompt, boxes: Sequence[Sequence[Number]], color: Sequence[int] = (127, 127, 127)
) -> Corruption:
    """The same question about the picture with boxes painted over, (x0, y0, x1, y1) each in original pixels.

    Every pixel that a box touches is painted.

    Raises:
        PromptError: a box that is none or lies outside the picture, or no box.
    """
    from PIL import ImageDraw

    painted = _first(prompt).copy()
    masks = checked_boxes(boxes, painted.size)
    if not masks:
        raise PromptError("boxes: no box was given; each is (x0, y0, x1, y1) in pixels of the picture.")
    for left, top, right, bottom in masks:
        corners = floor(left), floor(top), ceil(right) - 1, ceil(bottom) - 1
        ImageDraw.Draw(painted).rectangle(corners, fill=_color(color))
    return other_image(graph, prompt, painted, f"{len(masks)} box(es) masked")


def _first(prompt: Prompt) -> Picture:
    if not prompt.images:
        raise PromptError(f"prompt {prompt.question!r} has no picture to corrupt.")
    return prompt.images[0]


def _color(color: Sequence[int]) -> tuple[int, int, int]:
    if len(color) != 3 or not all(isinstance(level, Integral) and 0 <= level <= 255 for level in color):
        raise PromptError(f"a colour is three whole numbers from 0 to 255, but {color!r} came.")
    red, green, blue = map(int, color)
    return red, green, blue


@checked
def noisy_image(prompt: Prompt, scale: float = 3.0, seed: int = 0) -> Corruption:
    """Gaussian noise on the merged embedding of every image token: the classic, which cannot be undone in one place.

    Source: arXiv 2406.04236 ("standard"); there it shows nothing, by construction almost.
    """
    return Corruption(
        prompt,
        f"noise of {scale} standard deviations on the image",
        (Patch(at="image", site="embed", value=noise(scale, seed)),),
    )


def first_difference(clean: Prompt, corruption: Corruption) -> tuple[int, list[int]]:
    """The first position that differs between the runs, and the text positions that differ."""
    ids = (clean.inputs["input_ids"] != corruption.prompt.inputs["input_ids"])[0].nonzero().flatten().tolist()
    pixels = any(
        name != "input_ids" and not torch.equal(value, corruption.prompt.inputs[name])
        for name, value in clean.inputs.items()
        if name in corruption.prompt.inputs
    )
    image = clean.spans["image"].positions
    starts = [*ids[:1], *(image[:1] if pixels or corruption.patterns else ())]
    return min(starts, default=len(clean)), ids


def corruption_identity(corruption: Corruption) -> str:
    """The fingerprint of a corrupt run: what is run, and what is done to it."""
    return fingerprint([prompt_identity(corruption.prompt), corruption.how, _patterns(corruption.patterns)])
