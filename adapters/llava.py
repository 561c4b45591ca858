"""LLaVA-1.5: one grid of patches per image, with or without the class token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nnsight_mmflow.adapters._base import Adapter
from nnsight_mmflow.adapters._processing import steps_of

from nnsight_mmflow._errors import ModelError
from nnsight_mmflow._geometry import ImageGeometry

if TYPE_CHECKING:
    import torch
    from torch import nn


class Llava(Adapter):
    """LlavaForConditionalGeneration with a CLIP or SigLIP tower."""

    family = "llava"
    handled = frozenset(
        {"image_token_index", "image_token_id", "vision_feature_layer", "vision_feature_select_strategy"}
    )
    towers = {"clip_vision_model": 1, "siglip_vision_model": 0}

    def projector(self) -> nn.Module:
        """The two-layer perceptron."""
        return self.model.base_model.multi_modal_projector

    def images(
        self, inputs: Mapping[str, torch.Tensor], sizes: list[tuple[int, int]], squared: bool
    ) -> list[ImageGeometry]:
        """How each image became tokens: all of one size, whatever the picture's."""
        height, width = inputs["pixel_values"].shape[-2:]
        image_processor = self.processor.image_processor
        patch = self.config.vision_config.patch_size
        return [
            ImageGeometry(
                size=size,
                steps=steps_of(image_processor, size, squared, (width, height)),
                patch=patch,
                grid=(height // patch, width // patch),
                cells=self._cells(height, width),
                raster=squared,
                resample=int(image_processor.resample),
                fill=tuple(int(channel * 255) for channel in image_processor.image_mean),
            )
            for size in sizes
        ]

    def feature_counts(self, inputs: Mapping[str, torch.Tensor]) -> list[int]:
        """The same number for each image."""
        pixels = inputs["pixel_values"]
        return [len(self._cells(*pixels.shape[-2:]))] * len(pixels)

    def _cells(self, height: int, width: int) -> tuple[int | None, ...]:
        """The patch of each token of one image; None for a class token."""
        vision = self.config.vision_config
        if (height, width) != (vision.image_size, vision.image_size):
            raise ModelError(
                f"the processor makes pictures of {width}x{height} pixels, the tower reads"
                f" {vision.image_size}x{vision.image_size}: load the processor that belongs to this model."
            )
        patches = (height // vision.patch_size) * (width // vision.patch_size)
        tokens = (*[None] * self.towers[vision.model_type], *range(patches))
        # transformers drops the first token here, whether the tower has a class token or not.
        return tokens[1:] if self.config.vision_feature_select_strategy == "default" else tokens
