"""The graph: one loaded model seen by role, and the ways to run it with patterns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import PromptError
from nnsight_mmflow._later import later
from nnsight_mmflow.arguments.things import prompts_of
from nnsight_mmflow.model.traced import Traced
from nnsight_mmflow.prompts.asked import check_asked, checked_options, named_in_pixels
from nnsight_mmflow.prompts.encode import encode
from nnsight_mmflow.prompts.pictures import LONGEST, open_pictures
from nnsight_mmflow.prompts.prompt import Batch, Making, Prompt, join
from nnsight_mmflow.prompts.templates import render
from nnsight_mmflow.spans.in_pixels import SHARE

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from nnsight_mmflow.model.intervention import Intervention
    from nnsight_mmflow.prompts.pictures import Pictures


class Graph(Traced):
    """One model, its modules by role, its sizes and its processor.

    Attributes:
        name: what it was loaded as.
        model: the nnsight model, unchanged; `graph.model.trace(...)` works as ever.
        processor: the Hugging Face processor.
        family: the adapter's name for the architecture.
        layers: the decoder layers; `embed`, `tower`, `projector`, `norm` and `unembed` are the other roles.
        decoder: the language model around the layers; what it is handed as inputs_embeds is the merged embedding.
        n_layers, n_heads, d_model, head_width: sizes of the language model.
        image_token_id: the id that stands once per image token.
        unknown_operations: what transformers' attention lacks under the names known here, in words; "" for nothing.
    """

    def prompt(
        self,
        image: Pictures,
        question: str,
        answer: str | None = None,
        *,
        template: str | None = None,
        raw: bool = False,
        instruction: str | None = None,
        pad_to_square: bool = False,
        options: Sequence[str] | None = None,
        boxes: Sequence[Sequence[int | float]] | Mapping[str, object] = (),
        masks: Mapping[str, object] | None = None,
        share: int | float = SHARE,
        key: str = "",
        kind: str = "",
        max_aspect_ratio: int | float = LONGEST,
    ) -> Prompt:
        """A Prompt: the question about the picture in the model's own chat form, encoded, with its spans.

        Args:
            image: a path, a PIL image, a uint8 array, a list of these, or None for text alone. It is turned upright
                by its EXIF orientation, and what is transparent becomes white.
            question: exactly the user's text; it becomes the span `question`.
            answer: the right answer, lower case, for experiments that keep correct prompts only.
            template: "chat" (the processor's own, the default), or the paper's "vicuna_v1" or "llava_llama_3".
            raw: take `question` as the whole text, placeholders included; the span `question` is then all after the
                last image, and `suffix` is empty.
            instruction: a sentence after the question, such as "Answer the question using a single word or phrase.";
                it belongs to `suffix`. The paper's templates bring theirs.
            pad_to_square: pad the picture with the mean colour first, as the papers do, where the processor would
                crop; boxes then follow the paper's raster rule.
            options: (true, false) answers that the question offers.
            boxes: what the question is about, (x0, y0, x1, y1) each, in pixels of the upright picture: the span
                `object`. Or by name a box or several, {"object": box, "sky": [box, box]}: spans of these names, of the
                first picture, or by its number: {"object": {1: box}}.
            masks: by name boolean pictures (height, width), as `prompt.spans.having` takes them.
            share: how much of a token's own pixel box a mask must cover for the token to count.
            key: the question's id, for results.
            kind: the question's type, for results.
            max_aspect_ratio: a picture more times as long as wide is refused; the limit on its pixels is Pillow's
                (PIL.Image.MAX_IMAGE_PIXELS).

        Raises:
            PromptError: pictures and text do not fit together, or the tokenizer does not know a word.
            SpanError: no image token shows what a box or mask names.
            DataError: a picture that cannot be read or shown faithfully, or is above a limit.

        Example:
            >>> import nnsight_mmflow as mmf
            >>> graph = mmf.load("nano")
            >>> picture = mmf.nano.samples(1)[0].image
            >>> prompt = graph.prompt(picture, "what color is the circle ?")
            >>> len(prompt.spans["image"])
            64
        """
        check_asked(question, answer, instruction, key, kind)
        offered = checked_options(options)
        pictures = open_pictures(image, max_aspect_ratio)
        about, named = named_in_pixels(boxes, masks, pictures[0].size if pictures else None)
        token = self.processor.image_token
        text, start, end = render(
            self.processor,
            question,
            len(pictures),
            token,
            template=template,
            raw=raw,
            instruction=instruction,
            plain=self.adapter.plain_template,
        )
        inputs, spans = encode(self.adapter, text, (start, end), pictures, pad_to_square)
        spans = spans.having(share=share, **named)
        making = Making((start, end), pad_to_square, max_aspect_ratio)
        asked = text[start:end]
        return Prompt(text, asked, inputs, spans, answer, tuple(pictures), offered, about, key, kind, making)

    def batch(self, prompts: list[Prompt] | tuple[Prompt, ...]) -> Batch:
        """The prompts as one left-padded batch; `batch.spans[i]` are row i's, counted after padding.

        Raises:
            PromptError: no prompt came, or the tokenizer has no token to pad with.
        """
        prompts = prompts_of("prompts", prompts)
        if not prompts:
            raise PromptError("graph.batch needs at least one prompt, but got none.")
        tokenizer = self.processor.tokenizer
        if tokenizer.pad_token_id is None:
            raise PromptError("the tokenizer has no padding token: set graph.processor.tokenizer.pad_token first.")
        return join(list(prompts), self.adapter, tokenizer.pad_token_id, tokenizer.pad_token)

    def to_transformer_lens(self) -> TransformerBridge:
        """A TransformerLens bridge over the same weights; a ModelError where TransformerLens knows no such model."""
        return later("to_bridge")(self)

    def bound(self, bridge: TransformerBridge, prompt: Prompt | Batch) -> TransformerBridge:
        """The bridge bound to a prompt: it and TransformerLens' own tools run with the image."""
        return later("bound_to")(self, bridge, prompt)

    def hooks(
        self, bridge: TransformerBridge, prompt: Prompt | Batch, *patterns: Intervention
    ) -> AbstractContextManager[TransformerBridge]:
        """The patterns at work on a bridge: `with graph.hooks(...) as bound:`; one that changes nothing is an error."""
        return later("hooked")(self, bridge, prompt, patterns)
