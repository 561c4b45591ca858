"""Qwen3-VL: Qwen2-VL, with features of earlier tower layers added between the first decoder layers (DeepStack)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow.adapters.qwen2_vl import Qwen2VL

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


class Qwen3VL(Qwen2VL):
    """Qwen3VLForConditionalGeneration."""

    family = "qwen3_vl"
    handled_vision = Qwen2VL.handled_vision | {"num_position_embeddings", "deepstack_visual_indexes"}
    towers = {"qwen3_vl_vision": 0, "qwen3_vl": 0}
    texts = ("qwen3_vl_text",)

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        super().__init__(model, processor)
        self.enters_after = len(self.config.vision_config.deepstack_visual_indexes)
