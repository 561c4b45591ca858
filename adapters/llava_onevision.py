"""LLaVA-OneVision: as LLaVA-NeXT, with the tiles' features shrunk where they are many; several images get no tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nnsight_mmflow.adapters.llava_next import LlavaNext
from nnsight_mmflow.adapters.processing import resized_view, settings
from nnsight_mmflow.spans.geometry import NEWLINE, Cell, ImageGeometry, whole
from nnsight_mmflow.spans.views import View, tile_stretches

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as Picture

UNBOUNDED = "anyres_max_1000000"  # so many patches that nothing is shrunk


class LlavaOnevision(LlavaNext):
    """LlavaOnevisionForConditionalGeneration."""

    family = "llava_onevision"
    handled = LlavaNext.handled | {"video_token_index", "video_token_id", "vision_aspect_ratio"}
    texts = LlavaNext.texts

    def nested(self, pictures: list[Picture]) -> list:
        """Several pictures of one prompt come as one group: then, as in training, none of them is divided."""
        return [pictures]

    def images(
        self, inputs: Mapping[str, torch.Tensor], sizes: list[tuple[int, int]], squared: bool
    ) -> list[ImageGeometry]:
        """A base view and one of tiles; where there are several images, each padded to a square."""
        if len(sizes) == 1:
            return super().images(inputs, sizes, squared)
        side = self.config.vision_config.image_size
        processing = settings(self.processor.image_processor, squared)
        views = [resized_view(size, True, (side, side), self.config.vision_config.patch_size) for size in sizes]
        return [ImageGeometry(view.size, (view,), (*whole(view.grid), NEWLINE), **processing) for view in views]

    def cells(self, inputs: Mapping[str, torch.Tensor]) -> list[tuple[Cell | str, ...]]:
        """The place of each token of each image; those of a group are one grid and one newline."""
        alone = [count == 1 for count in inputs["batch_num_images"].tolist() for _ in range(count)]
        vision = self.config.vision_config
        undivided: tuple[Cell | str, ...] = (*whole((vision.image_size // vision.patch_size,) * 2), NEWLINE)
        sizes = inputs["image_sizes"].tolist()
        return [self.cells_of((h, w)) if divided else undivided for (h, w), divided in zip(sizes, alone, strict=True)]

    def cells_of(self, size: tuple[int, int]) -> tuple[Cell | str, ...]:
        """The place of each token of an image of (height, width)."""
        exact = super().cells_of(size)
        rows, columns = self._shrunk(size)
        if not rows:
            return exact
        kept = [cell for cell in exact if isinstance(cell, Cell) and cell.view == 1]
        width = super().tiles((size[1], size[0]), False).grid[1]
        first, last = divmod(kept[0].patch, width), divmod(kept[-1].patch, width)
        tile_at = {divmod(cell.patch, width): cell.tile for cell in kept}
        base = [cell for cell in exact if isinstance(cell, Cell) and cell.view == 0]
        cells: list[Cell | str] = [*base]
        for row in range(rows):
            for column in range(columns):  # a shrunk token counts to the tile that holds its centre
                down = first[0] + int((row + 0.5) * (last[0] - first[0] + 1) / rows)
                across = first[1] + int((column + 0.5) * (last[1] - first[1] + 1) / columns)
                cells.append(Cell(row * columns + column, 1, tile_at[down, across]))
            cells.append(NEWLINE)
        return tuple(cells)

    def tiles(self, size: tuple[int, int], squared: bool) -> View:
        """The view that is divided into tiles; where its features are shrunk, as if its pixels had been."""
        view = super().tiles(size, squared)
        seen = (max(size), max(size)) if squared else (size[1], size[0])
        rows, columns = self._shrunk(seen)
        if not rows:
            return view
        kept = [cell.patch for cell in super().cells_of(seen) if isinstance(cell, Cell) and cell.view == 1]
        (top, left), (bottom, right) = divmod(kept[0], view.grid[1]), divmod(kept[-1], view.grid[1])
        side, patch = self.config.vision_config.image_size, view.patch
        down = tile_stretches(view.grid[0] * patch // side + 1, side, patch, rows, (top, bottom + 1))
        across = tile_stretches(view.grid[1] * patch // side + 1, side, patch, columns, (left, right + 1))
        return View(size, view.steps, patch, (rows, columns), "tiles", down, across)

    def packed(self, size: tuple[int, int], aspect: str = UNBOUNDED) -> list[float]:  # type: ignore[override]
        """The model's own packing of numbers, not shrunk unless the model's own `aspect` is given."""
        return super().packed(size, vision_aspect_ratio=aspect)

    def _shrunk(self, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of the shrunk grid of an image of (height, width); zeros where it is not shrunk."""
        packed = self.packed(size, self.config.vision_aspect_ratio)
        if len(packed) == len(self.packed(size)):
            return 0, 0
        rows = sum(number == 0 for number in packed)
        patches = sum(number < 0 for number in packed)
        return rows, (len(packed) - patches) // rows - 1
