"""LLaVA-NeXT (v1.6): the whole picture small (base), then tiles, unpadded, with a newline token after each row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution

from nnsight_mmflow._errors import ModelError
from nnsight_mmflow.adapters.base import Adapter
from nnsight_mmflow.adapters.llava import Llava
from nnsight_mmflow.adapters.processing import resized_view, settings, squared_first
from nnsight_mmflow.spans.geometry import NEWLINE, Cell, ImageGeometry
from nnsight_mmflow.spans.views import Step, View, tile_stretches


class LlavaNext(Adapter):
    """LlavaNextForConditionalGeneration with a CLIP or SigLIP tower."""

    family = "llava_next"
    handled = Llava.handled | {"image_grid_pinpoints"}
    towers = {"clip_vision_model": 1, "siglip_vision_model": 0}
    texts = Llava.texts

    def images(
        self, inputs: Mapping[str, torch.Tensor], sizes: list[tuple[int, int]], squared: bool
    ) -> list[ImageGeometry]:
        """A base view and one of tiles per image."""
        self.check_seen((inputs["pixel_values"].shape[-1], inputs["pixel_values"].shape[-2]))
        vision, processing = self.config.vision_config, settings(self.processor.image_processor, squared)
        result = []
        for size, cells in zip(sizes, self.cells(inputs), strict=True):
            base = resized_view(size, squared, (vision.image_size,) * 2, vision.patch_size, "base")
            result.append(ImageGeometry(size, (base, self.tiles(size, squared)), cells, **processing))
        return result

    def feature_counts(self, inputs: Mapping[str, torch.Tensor]) -> list[int]:
        """As many as the model's own packing gives."""
        return [len(cells) for cells in self.cells(inputs)]

    def tiles(self, size: tuple[int, int], squared: bool) -> View:
        """The view that is divided into tiles: the picture, its shape kept, centred on the best of the resolutions."""
        steps, (width, height) = squared_first(size, squared)
        best_height, best_width = select_best_resolution((height, width), self.config.image_grid_pinpoints)
        blank = np.broadcast_to(np.uint8(0), (3, height, width))
        new_height, new_width = get_patch_output_size(blank, (best_height, best_width), "channels_first")
        steps += [Step("resize", int(new_width), int(new_height)), Step("pad", best_width, best_height)]
        vision = self.config.vision_config
        tiles = best_height // vision.image_size, best_width // vision.image_size
        rows, columns = (tile_stretches(count, vision.image_size, vision.patch_size) for count in tiles)
        grid = len(rows), len(columns)
        return View(size, tuple(steps), vision.patch_size, grid, "tiles", rows, columns)

    def cells(self, inputs: Mapping[str, torch.Tensor]) -> list[tuple[Cell | str, ...]]:
        """The place of each token of each image."""
        return [self.cells_of((height, width)) for height, width in inputs["image_sizes"].tolist()]

    def cells_of(self, size: tuple[int, int]) -> tuple[Cell | str, ...]:
        """The place of each token of an image of (height, width)."""
        vision = self.config.vision_config
        best = select_best_resolution(size, self.config.image_grid_pinpoints)
        columns, side = best[1] // vision.image_size, vision.image_size // vision.patch_size
        return tuple(_cell(int(number), side, columns) for number in self.packed(size))

    def packed(self, size: tuple[int, int], **how: str) -> list[float]:
        """The model's own packing of an image of (height, width), done on numbers instead of features.

        0 is the newline; patch p of the base is -1 - p; patch p of tile t is 1 + t * patches of a tile + p.
        """
        vision = self.config.vision_config
        if self.towers[vision.model_type] != (self.config.vision_feature_select_strategy == "default"):
            raise ModelError(
                f"vision_feature_select_strategy is {self.config.vision_feature_select_strategy!r}, but the tower"
                f" {vision.model_type!r} has {self.towers[vision.model_type]} class token(s): tiles would not line up."
            )
        best = select_best_resolution(size, self.config.image_grid_pinpoints)
        tiles = (best[0] // vision.image_size) * (best[1] // vision.image_size)
        patches = (vision.image_size // vision.patch_size) ** 2
        numbers = torch.arange((1 + tiles) * patches, dtype=torch.float64) - patches + 1
        numbers[:patches] = -1 - torch.arange(patches, dtype=torch.float64)
        packed, _ = self.model.base_model.pack_image_features(
            [numbers.view(1 + tiles, patches, 1)],
            torch.tensor([list(size)]),
            image_newline=torch.zeros(1, dtype=numbers.dtype),
            **(how or {"vision_feature_select_strategy": "default"}),
        )
        return packed[0].flatten().tolist()


def _cell(number: int, side: int, columns: int) -> Cell | str:
    """The place that a packed number stands for; `side` patches a tile, `columns` tiles a row."""
    if number == 0:
        return NEWLINE
    if number < 0:
        return Cell(-1 - number, 0)
    tile, patch = divmod(number - 1, side * side)
    row, column = tile // columns * side + patch // side, tile % columns * side + patch % side
    return Cell(row * columns * side + column, 1, tile)
