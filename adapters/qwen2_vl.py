"""Qwen2-VL: pictures of any shape, four patches merged into one token, positions in three dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nnsight_mmflow.adapters.base import Adapter
from nnsight_mmflow.adapters.processing import resized_view, settings
from nnsight_mmflow.spans.geometry import ImageGeometry, whole

if TYPE_CHECKING:
    import torch


class Qwen2VL(Adapter):
    """Qwen2VLForConditionalGeneration. Its projector merges patches; spans are in the language model's order."""

    family = "qwen2_vl"
    handled = frozenset("image_token_id video_token_id vision_start_token_id vision_end_token_id".split())
    handled_vision = frozenset(
        """depth embed_dim hidden_size mlp_ratio num_heads in_channels spatial_merge_size temporal_patch_size
        out_hidden_size""".split()
    )
    ignored = frozenset("vision_token_id in_chans spatial_patch_size".split())
    towers = {"qwen2_vl_vision": 0, "qwen2_vl": 0}
    texts = ("qwen2_vl_text",)
    projector_path = "visual.merger"

    def images(
        self, inputs: Mapping[str, torch.Tensor], sizes: list[tuple[int, int]], squared: bool
    ) -> list[ImageGeometry]:
        """One view per image, as large as the processor made it."""
        vision = self.config.vision_config
        token = vision.patch_size * vision.spatial_merge_size
        result = []
        for size, (rows, columns) in zip(sizes, self._grids(inputs), strict=True):
            view = resized_view(size, squared, (columns * token, rows * token), token)
            result.append(
                ImageGeometry(size, (view,), whole(view.grid), **settings(self.processor.image_processor, squared))
            )
        return result

    def feature_counts(self, inputs: Mapping[str, torch.Tensor]) -> list[int]:
        """The patches, divided by how many are merged into one token."""
        return [rows * columns for rows, columns in self._grids(inputs)]

    def _grids(self, inputs: Mapping[str, torch.Tensor]) -> list[tuple[int, int]]:
        """(rows, columns) of tokens of each image."""
        merged = self.config.vision_config.spatial_merge_size
        return [(height // merged, width // merged) for _, height, width in inputs["image_grid_thw"].tolist()]
