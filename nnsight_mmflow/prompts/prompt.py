"""Prompt and Batch: the tensors that the model takes, and the spans of each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from nnsight_mmflow._later import later
from nnsight_mmflow.prompts.pictures import LONGEST
from nnsight_mmflow.spans.row_spans import Spans
from nnsight_mmflow.spans.span import Span
from nnsight_mmflow.spans.views import Box

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as Picture

    from nnsight_mmflow.adapters.base import Adapter


@dataclass(frozen=True)
class Making:
    """What a prompt was made with, beside its text and its pictures; `made_again` needs it.

    Attributes:
        place: (start, end) of the question in the prompt's text.
        pad_to_square: whether each picture was padded to a square first.
        max_aspect_ratio: how many times as long as wide a picture may be.
    """

    place: tuple[int, int] = (0, 0)
    pad_to_square: bool = False
    max_aspect_ratio: int | float = LONGEST


@dataclass(frozen=True)
class Prompt:
    """One prompt, encoded.

    Attributes:
        text: the whole text, images as placeholders.
        question: the user's question as it stands in the text.
        inputs: what the model takes: input_ids and attention_mask (1, positions), pixel_values if there are images.
        spans: its positions by name: image, question, last and the rest.
        answer: the right answer, if known.
        images: the pictures, upright and in RGB.
        options: (true, false) answer that the question offers.
        boxes: what the question is about, (x0, y0, x1, y1) each, in pixels of the (first) picture in `images`.
        key: tells prompts apart in results; the question's id where the data has one.
        kind: the question's type, where the data has one.
        made: what else it was made with.
        continues: the prompt that was asked, where generated tokens stand behind it (the span `generated`).
    """

    text: str
    question: str
    inputs: Mapping[str, torch.Tensor] = field(repr=False)
    spans: Spans = field(repr=False)
    answer: str | None = None
    images: tuple[Picture, ...] = field(default=(), repr=False)
    options: tuple[str, str] | None = None
    boxes: tuple[Box, ...] = ()
    key: str = ""
    kind: str = ""
    made: Making = field(default=Making(), repr=False)
    continues: Prompt | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Its spans know the boxes and options, which name spans too."""
        if (self.spans.boxes, self.spans.options) != (self.boxes, self.options):
            object.__setattr__(self, "spans", replace(self.spans, boxes=self.boxes, options=self.options))

    def __len__(self) -> int:
        """The number of positions."""
        return int(self.inputs["input_ids"].shape[1])

    def _repr_html_(self) -> str:

        return later("prompt_html")(self)

    def __repr__(self) -> str:
        known = {
            "answer": self.answer,
            "options": self.options,
            "boxes": self.boxes,
            "named": tuple(self.spans.given),
            "kind": self.kind,
            "key": self.key,
        }
        facts = "".join(f", {name}={value!r}" for name, value in known.items() if value)
        return f"Prompt({self.question!r}{facts}; {len(self)} positions, {len(self.spans['image'])} of them image)"

    def accepts(self, text: str) -> bool:
        """Whether a text is the right answer, whatever its case and the space around it; False without an answer."""
        return self.answer is not None and text.strip().lower() == self.answer.strip().lower()

    def rows(self) -> tuple[Spans, ...]:
        """The spans of each row (here one), as Batch has them."""
        return (self.spans,)

    def digest(self) -> str:
        """A short fingerprint of text and pictures."""
        mixed = sha256(self.text.encode())
        for name in sorted(self.inputs):
            mixed.update(self.inputs[name].cpu().numpy().tobytes())
        return mixed.hexdigest()[:16]


@dataclass(frozen=True)
class Batch:
    """Several prompts as one left-padded batch; spans[i] are those of row i, counted after padding."""

    prompts: tuple[Prompt, ...]
    inputs: Mapping[str, torch.Tensor] = field(repr=False)
    spans: tuple[Spans, ...] = field(repr=False)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __repr__(self) -> str:
        return f"Batch({len(self)} prompts, padded to {self.inputs['input_ids'].shape[1]} positions)"

    def _repr_html_(self) -> str:

        return later("batch_html")(self)

    def rows(self) -> tuple[Spans, ...]:
        """The spans of each row."""
        return self.spans


def join(prompts: list[Prompt], adapter: Adapter, pad_token_id: int, pad_token: str) -> Batch:
    """The prompts as one batch, padded on the left to the longest."""
    import torch

    length = max(len(prompt) for prompt in prompts)
    missing = [length - len(prompt) for prompt in prompts]
    rows = [{"attention_mask": torch.ones_like(prompt.inputs["input_ids"]), **prompt.inputs} for prompt in prompts]
    ids = [
        torch.nn.functional.pad(row["input_ids"], (before, 0), value=pad_token_id)
        for row, before in zip(rows, missing, strict=True)
    ]
    inputs = {"input_ids": torch.cat(ids), **adapter.join(rows)}
    spans = tuple(_shifted(prompt.spans, before, pad_token) for prompt, before in zip(prompts, missing, strict=True))
    return Batch(tuple(prompts), inputs, spans)


def _shifted(spans: Spans, by: int, pad_token: str) -> Spans:
    named: dict[str, Span] = {name: span.shifted(by) for name, span in spans.named.items()}
    tokens, offsets = (pad_token,) * by + spans.tokens, ((0, 0),) * by + spans.offsets
    return replace(spans, named=named, tokens=tokens, offsets=offsets)
