"""One file per model family. An adapter says where things are; nothing else in the package knows a family's name.

The table maps the Hugging Face class of a model to the adapter that reads it, as "module:class" so that only the
adapter in use is imported. Another package adds its own by an entry point:

    [project.entry-points."nnsight_mmflow.adapters"]
    MyModelForConditionalGeneration = "my_package.my_adapter:MyAdapter"
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import ModelError
from nnsight_mmflow._later import lazily
from nnsight_mmflow.adapters.processor_fit import check_image_token, check_processor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from nnsight_mmflow.adapters.base import Adapter

GROUP = "nnsight_mmflow.adapters"
TABLE = {
    "LlavaForConditionalGeneration": "nnsight_mmflow.adapters.llava:Llava",
    "LlavaNextForConditionalGeneration": "nnsight_mmflow.adapters.llava_next:LlavaNext",
    "LlavaOnevisionForConditionalGeneration": "nnsight_mmflow.adapters.llava_onevision:LlavaOnevision",
    "Qwen2VLForConditionalGeneration": "nnsight_mmflow.adapters.qwen2_vl:Qwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "nnsight_mmflow.adapters.qwen2_5_vl:Qwen2_5_VL",
    "Qwen3VLForConditionalGeneration": "nnsight_mmflow.adapters.qwen3_vl:Qwen3VL",
    "Gemma3ForConditionalGeneration": "nnsight_mmflow.adapters.gemma3:Gemma3",
    "Idefics3ForConditionalGeneration": "nnsight_mmflow.adapters.idefics3:Idefics3",
    "SmolVLMForConditionalGeneration": "nnsight_mmflow.adapters.idefics3:Idefics3",
    "InternVLForConditionalGeneration": "nnsight_mmflow.adapters.internvl:InternVL",
    "PaliGemmaForConditionalGeneration": "nnsight_mmflow.adapters.paligemma:PaliGemma",
}


def known() -> dict[str, str]:
    """All adapters: the package's own, and those that other packages have registered."""
    return {**TABLE, **{entry.name: entry.value for entry in entry_points(group=GROUP)}}


def adapter_for(model: PreTrainedModel, processor: ProcessorMixin | None) -> Adapter:
    """The adapter of a model's family, its configuration checked.

    Raises:
        ModelError: no adapter covers the class, the configuration holds a setting that the adapter does not handle, or
            the processor is of another family.
    """
    module, cls = known_class(type(model).__name__).split(":")
    if processor is not None:  # without one the configuration alone is checked
        check_processor(model, processor)
    adapter = getattr(import_module(module), cls)(model, processor)
    if processor is not None:
        check_image_token(adapter)
    return adapter


def known_class(name: str) -> str:
    """Where the adapter of a Hugging Face class is, as "module:class".

    Raises:
        ModelError: there is none.
    """
    there = known()
    if name not in there:
        raise ModelError(
            f"there is no adapter for {name}; there are adapters for {', '.join(there)}. To add one, copy"
            " nnsight_mmflow/adapters/qwen2_vl.py (one file, under 100 lines), register it as the entry point"
            f' [project.entry-points."{GROUP}"] {name} = "package.module:Class", and run `mmflow check` on a model.'
        )
    return there[name]


def __getattr__(name: str) -> object:
    """The adapters and what one is made of, loaded when first used: `from nnsight_mmflow.adapters import Llava`."""
    there = {"Adapter": "adapters.base", "TextModel": "adapters.text"}
    own = (place.removeprefix("nnsight_mmflow.").split(":") for place in TABLE.values())
    return lazily(name, __name__, there | {cls: module for module, cls in own})
