"""InternVL: the picture squeezed onto a canvas of tiles, then the whole picture small; four patches make one token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from nnsight_mmflow.adapters.base import Adapter
from nnsight_mmflow.adapters.processing import image_defaults, resized_view, settings
from nnsight_mmflow.spans.geometry import ImageGeometry, tiled, whole
from nnsight_mmflow.spans.views import View

if TYPE_CHECKING:
    import torch


class InternVL(Adapter):
    """InternVLForConditionalGeneration with a Qwen2, Qwen3 or Llama text model."""

    family = "internvl"
    handled = frozenset("image_token_id downsample_ratio vision_feature_layer vision_feature_select_strategy".split())
    handled_vision = frozenset(
        """use_qk_norm norm_type layer_scale_init_value use_mean_pooling use_absolute_position_embeddings
        attention_bias use_mask_token""".split()
    )
    ignored = frozenset({"dropout"})
    towers = {"internvl_vision": 1}
    texts = ("qwen2", "qwen3", "llama")

    def images(
        self, inputs: Mapping[str, torch.Tensor], sizes: list[tuple[int, int]], squared: bool
    ) -> list[ImageGeometry]:
        """A view of tiles and one of the whole picture per image; one view where one tile is enough."""
        side, per_side = inputs["pixel_values"].shape[-1], self._per_side()
        self.check_seen((inputs["pixel_values"].shape[-1], inputs["pixel_values"].shape[-2]))
        patch = side // per_side
        processing = settings(self.processor.image_processor, squared)
        result = []
        for size in sizes:
            views: tuple[View, ...]
            rows, columns = self._tiles((max(size), max(size)) if squared else size, side)
            if rows * columns == 1:
                views = (resized_view(size, squared, (side, side), patch),)
                cells = whole(views[0].grid)
            else:
                views = (
                    resized_view(size, squared, (columns * side, rows * side), patch, "tiles"),
                    resized_view(size, squared, (side, side), patch, "base"),
                )
                cells = (*tiled((rows, columns), (per_side, per_side)), *whole(views[1].grid, 1))
            result.append(ImageGeometry(size, views, cells, **processing))
        return result

    def feature_counts(self, inputs: Mapping[str, torch.Tensor]) -> list[int]:
        """The same number for each tile."""
        return [self._per_side() ** 2] * len(inputs["pixel_values"])

    def _per_side(self) -> int:
        vision = self.config.vision_config
        return int(vision.image_size[0] // vision.patch_size[0] * self.config.downsample_ratio)

    def _tiles(self, size: tuple[int, int], side: int) -> tuple[int, int]:
        """(rows, columns) of tiles: the processor's own rule."""
        processor = self.processor.image_processor
        if not image_defaults(self.processor).get("crop_to_patches", processor.crop_to_patches):
            return 1, 1
        columns, rows = get_optimal_tiled_canvas(
            (size[1], size[0]), (side, side), processor.min_patches, processor.max_patches
        )
        return rows, columns
