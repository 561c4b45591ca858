"""Gemma 3: a pooled grid of fixed size per picture, crops beside it on request, image blocks that are not causal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from nnsight_mmflow.adapters.base import Adapter
from nnsight_mmflow.adapters.processing import image_defaults, resized_view, settings
from nnsight_mmflow.spans.geometry import Cell, ImageGeometry, whole
from nnsight_mmflow.spans.views import Step, View

if TYPE_CHECKING:
    import torch

    from nnsight_mmflow.spans.row_spans import Spans


class Gemma3(Adapter):
    """Gemma3ForConditionalGeneration, with or without pan and scan."""

    family = "gemma3"
    handled = frozenset("image_token_index image_token_id boi_token_index eoi_token_index mm_tokens_per_image".split())
    windowed_blocks = True
    ignored = frozenset("cache_implementation sliding_window_pattern _sliding_window_pattern".split())
    towers = {"siglip_vision_model": 0}
    texts = ("gemma3_text",)

    def images(
        self, inputs: Mapping[str, torch.Tensor], sizes: list[tuple[int, int]], squared: bool
    ) -> list[ImageGeometry]:
        """One view of the whole picture per image, then one of each crop."""
        self.check_seen((inputs["pixel_values"].shape[-1], inputs["pixel_values"].shape[-2]))
        side = self.config.vision_config.image_size
        patch = side // self._per_side()
        result = []
        for size in sizes:
            crops = self._crops((max(size), max(size)) if squared else size)
            base = resized_view(size, squared, (side, side), patch, "base" if crops else "image")
            views = [base]
            for cut in crops:
                steps = (*base.steps[:-1], cut, Step("resize", side, side))
                views.append(View(size, steps, patch, base.grid, "tiles"))
            cells = [
                cell if view == 0 else Cell(cell.patch, view, view - 1)
                for view in range(len(views))
                for cell in whole(base.grid, view)
            ]
            processing = settings(self.processor.image_processor, squared)
            result.append(ImageGeometry(size, tuple(views), tuple(cells), **processing))
        return result

    def feature_counts(self, inputs: Mapping[str, torch.Tensor]) -> list[int]:
        """The same number for each picture and each crop."""
        return [self.config.mm_tokens_per_image] * len(inputs["pixel_values"])

    def bidirectional(self, spans: Spans) -> tuple[tuple[int, int], ...]:
        """Each unbroken stretch of image tokens."""
        return runs(spans["image"].positions)

    def _per_side(self) -> int:
        return int(self.config.mm_tokens_per_image**0.5)

    def _crops(self, size: tuple[int, int]) -> list[Step]:
        """Where the processor cuts its crops out: its own rule, applied to coordinates instead of colours."""
        processor, defaults = self.processor.image_processor, image_defaults(self.processor)
        names = [f"pan_and_scan_{name}" for name in ("min_crop_size", "max_num_crops", "min_ratio_to_activate")]
        how = {name: defaults.get(name, getattr(processor, name, None)) for name in ("do_pan_and_scan", *names)}
        if not how.pop("do_pan_and_scan"):
            return []
        width, height = size
        coordinates = np.stack(np.meshgrid(np.arange(width), np.arange(height)))
        return [
            Step("cut", crop.shape[2], crop.shape[1], int(crop[0, 0, 0]), int(crop[1, 0, 0]))
            for crop in processor.pan_and_scan(coordinates, **how)
        ]


def runs(positions: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(first, end) of each unbroken stretch of sorted positions."""
    starts = [p for i, p in enumerate(positions) if i == 0 or positions[i - 1] != p - 1]
    ends = [p + 1 for i, p in enumerate(positions) if i == len(positions) - 1 or positions[i + 1] != p + 1]
    return tuple(zip(starts, ends, strict=True))
