"""Idefics 3 and SmolVLM: the picture in tiles, each named by a token of text, then the whole picture small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from nnsight_mmflow._errors import ModelError
from nnsight_mmflow.adapters.base import Adapter, mentions
from nnsight_mmflow.adapters.processing import settings, squared_first
from nnsight_mmflow.spans.geometry import ImageGeometry, tiled, whole
from nnsight_mmflow.spans.views import Step, View, tile_stretches

if TYPE_CHECKING:
    import torch


class Idefics3(Adapter):
    """Idefics3ForConditionalGeneration and SmolVLMForConditionalGeneration."""

    family = "idefics3"
    handled = frozenset("image_token_id scale_factor".split())
    ignored = frozenset(
        """image_seq_len use_base_siglip max_image_size size neftune_noise_alpha perceiver_config qk_layer_norms
        use_resampler _flash_attn_2_enabled is_llama_config pixel_shuffle_factor rope_interleaved
        transformers.js_config use_reentrant_checkpointing""".split()
    )
    towers = {"idefics3_vision": 0, "smolvlm_vision": 0}
    texts = ("llama",)
    projector_path = "connector"

    def check_config(self) -> None:
        """Refuses also what transformers 5.20 does not run: SmolVLM with other counts than its patches' size."""
        super().check_config()
        merger = getattr(type(self.model.model), "inputs_merger", None)
        vision = self.config.vision_config
        tokens = self._per_side(vision.image_size) ** 2
        if merger is not None and mentions(merger, "vision_config") and tokens % vision.patch_size:
            raise ModelError(
                f"{type(self.model).__name__} of the transformers installed merges image features in blocks of"
                f" {vision.patch_size}, but each tile has {tokens} tokens: it would end in an error. Install"
                " transformers 5.21 or later."
            )

    def images(
        self, inputs: Mapping[str, torch.Tensor], sizes: list[tuple[int, int]], squared: bool
    ) -> list[ImageGeometry]:
        """A view of tiles and one of the whole picture per image; the latter alone where it is not divided."""
        processing = settings(self.processor.image_processor, squared)
        side = self._side(inputs)
        result = []
        for size in sizes:
            steps, (width, height) = self._resized(size, squared)
            whole_view = View(size, (*steps, Step("resize", side, side)), self._patch(), (self._per_side(side),) * 2)
            tiles = (height // side, width // side)
            if not self._divides() or tiles == (1, 1):
                result.append(ImageGeometry(size, (whole_view,), whole(whole_view.grid), **processing))
                continue
            per_side = self._per_side(side)
            rows, columns = (tile_stretches(count, side, self._patch()) for count in tiles)
            divided = View(size, steps, self._patch(), (len(rows), len(columns)), "tiles", rows, columns)
            base = View(size, whole_view.steps, self._patch(), whole_view.grid, "base")
            cells = (*tiled(tiles, (per_side, per_side)), *whole(base.grid, 1))
            result.append(ImageGeometry(size, (divided, base), cells, **processing))
        return result

    def feature_counts(self, inputs: Mapping[str, torch.Tensor]) -> list[int]:
        """The same number for each tile; pictures of zeros only fill up a batch."""
        pixels = inputs["pixel_values"].flatten(0, 1)
        shown = int((pixels != 0).flatten(1).any(1).sum())
        return [self._per_side(self._side(inputs)) ** 2] * shown

    def _side(self, inputs: Mapping[str, torch.Tensor]) -> int:
        self.check_seen((inputs["pixel_values"].shape[-1], inputs["pixel_values"].shape[-2]))
        return inputs["pixel_values"].shape[-1]

    def _patch(self) -> int:
        return self.config.vision_config.patch_size * self.config.scale_factor

    def _per_side(self, side: int) -> int:
        return side // self._patch()

    def _divides(self) -> bool:
        return bool(self.processor.image_processor.do_image_splitting)

    def _resized(self, size: tuple[int, int], squared: bool) -> tuple[tuple[Step, ...], tuple[int, int]]:
        """The steps before the picture is divided, and its (width, height) after them: the processor's own rules."""
        processor = self.processor.image_processor
        steps, (width, height) = squared_first(size, squared)
        longest = dict(processor.size).get("longest_edge")
        if not (processor.do_resize and longest):
            raise ModelError(f"the processor resizes by {processor.size}; longest_edge is handled.")
        picture: np.ndarray = np.zeros((3, height, width), np.uint8)
        picture = processor.resize(picture, processor.size, resample=processor.resample)
        steps.append(Step("resize", picture.shape[2], picture.shape[1]))
        if self._divides():
            side = dict(processor.max_image_size)["longest_edge"]
            picture = processor.resize_for_vision_encoder(picture, side, resample=processor.resample)
            steps.append(Step("resize", picture.shape[2], picture.shape[1]))
        return tuple(steps), (picture.shape[2], picture.shape[1])
