"""LLaVA-1.5: one grid of patches per image, with or without the class token; with Pixtral's tower, of any shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nnsight_mmflow.adapters.base import Adapter
from nnsight_mmflow.adapters.processing import resized_view, settings, steps_of
from nnsight_mmflow.spans.geometry import CLASS, Cell, ImageGeometry, whole
from nnsight_mmflow.spans.views import View

if TYPE_CHECKING:
    import torch


class Llava(Adapter):
    """LlavaForConditionalGeneration with a CLIP, SigLIP or Pixtral tower."""

    family = "llava"
    handled = frozenset(
        {"image_token_index", "image_token_id", "vision_feature_layer", "vision_feature_select_strategy"}
    )
    towers = {"clip_vision_model": 1, "siglip_vision_model": 0, "pixtral": 0}
    texts = ("llama", "mistral", "qwen2", "phi")

    def images(
        self, inputs: Mapping[str, torch.Tensor], sizes: list[tuple[int, int]], squared: bool
    ) -> list[ImageGeometry]:
        """How each image became tokens: all of one size, or (Pixtral) each in its own shape."""
        processor = self.processor.image_processor
        patch = self.config.vision_config.patch_size
        result = []
        for size, (height, width) in zip(sizes, self._seen(inputs), strict=True):
            if "image_sizes" in inputs:
                view = resized_view(size, squared, (width, height), patch)
            else:
                steps = steps_of(processor, size, squared, (width, height))
                view = View(size, steps, patch, (height // patch, width // patch))
            result.append(ImageGeometry(size, (view,), self._cells(height, width), **settings(processor, squared)))
        return result

    def feature_counts(self, inputs: Mapping[str, torch.Tensor]) -> list[int]:
        """One feature per patch, the class token or the first patch left out where the configuration says so."""
        return [len(self._cells(height, width)) for height, width in self._seen(inputs)]

    def tower_layer(self) -> int | None:
        """The layer that the configuration names, with CLIP's tower."""
        chosen, vision = self.config.vision_feature_layer, self.config.vision_config
        if not isinstance(chosen, int) or chosen == 0 or not self.towers[vision.model_type]:
            return None
        return chosen - 1 if chosen > 0 else vision.num_hidden_layers + chosen

    def _seen(self, inputs: Mapping[str, torch.Tensor]) -> list[tuple[int, int]]:
        """(height, width) of each picture as the tower sees it."""
        pixels = inputs["pixel_values"]
        if "image_sizes" in inputs:  # Pixtral: padding to the largest picture is taken off again
            return [(int(height), int(width)) for height, width in inputs["image_sizes"]]
        self.check_seen((pixels.shape[-1], pixels.shape[-2]))
        return [(pixels.shape[-2], pixels.shape[-1])] * len(pixels)

    def _cells(self, height: int, width: int) -> tuple[Cell | str, ...]:
        """The place of each token of one image."""
        vision = self.config.vision_config
        patches = whole((height // vision.patch_size, width // vision.patch_size))
        tokens: tuple[Cell | str, ...] = (*[CLASS] * self.towers[vision.model_type], *patches)
        # transformers drops the first token here, whether the tower has a class token or not.
        return tokens[1:] if self.config.vision_feature_select_strategy == "default" else tokens
