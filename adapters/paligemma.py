"""PaliGemma: one grid of fixed size, and a prompt whose positions all read one another, forwards and backwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nnsight_mmflow.adapters.base import Adapter
from nnsight_mmflow.adapters.processing import resized_view, settings
from nnsight_mmflow.spans.geometry import ImageGeometry, whole

if TYPE_CHECKING:
    import torch

    from nnsight_mmflow.spans.row_spans import Spans


class PaliGemma(Adapter):
    """PaliGemmaForConditionalGeneration, the first (Gemma) and the second (Gemma 2)."""

    family = "paligemma"
    handled = frozenset("image_token_index image_token_id".split())
    ignored = frozenset("num_positions num_image_tokens".split())
    towers = {"siglip_vision_model": 0}
    texts = ("gemma", "gemma2")
    causal = False
    generated_type = 1  # what is written reads backwards alone
    plain_template = ("{images}", "")

    def prepared(self, text: str, question: tuple[int, int]) -> tuple[str, tuple[int, int]]:
        """The processor puts <bos> after the last image and a newline at the end."""
        start, end = question
        bos, images_end = self.processor.tokenizer.bos_token, text.rfind(self.processor.image_token)
        after = images_end + len(self.processor.image_token) if images_end >= 0 else 0
        moved = len(bos) * (after <= start)
        return f"{text[:after]}{bos}{text[after:]}\n", (start + moved, end + moved)

    def images(
        self, inputs: Mapping[str, torch.Tensor], sizes: list[tuple[int, int]], squared: bool
    ) -> list[ImageGeometry]:
        """One view per image, squeezed to a square."""
        vision = self.config.vision_config
        seen = (inputs["pixel_values"].shape[-1], inputs["pixel_values"].shape[-2])
        self.check_seen(seen)
        views = [resized_view(size, squared, seen, vision.patch_size) for size in sizes]
        processing = settings(self.processor.image_processor, squared)
        return [ImageGeometry(view.size, (view,), whole(view.grid), **processing) for view in views]

    def feature_counts(self, inputs: Mapping[str, torch.Tensor]) -> list[int]:
        """One feature per patch."""
        vision = self.config.vision_config
        return [(vision.image_size // vision.patch_size) ** 2] * len(inputs["pixel_values"])

    def bidirectional(self, spans: Spans) -> tuple[tuple[int, int], ...]:
        """The whole prompt; not what the model wrote behind it."""
        first, end = spans["all"].row
        written = spans.named.get("generated")
        return ((first, end - len(written) if written is not None and written.each else end),)
