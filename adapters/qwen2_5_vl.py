"""Qwen2.5-VL: Qwen2-VL with a tower that looks through windows; its projector's rows are in window order."""

from __future__ import annotations

from nnsight_mmflow.adapters.qwen2_vl import Qwen2VL


class Qwen2_5_VL(Qwen2VL):  # noqa: N801 (the name of the model)
    """Qwen2_5_VLForConditionalGeneration. Spans are in the language model's order, row by row."""

    family = "qwen2_5_vl"
    handled_vision = Qwen2VL.handled_vision | {"tokens_per_second", "window_size", "fullatt_block_indexes"}
    towers = {"qwen2_5_vl_vision": 0, "qwen2_5_vl": 0}
    texts = ("qwen2_5_vl_text",)
