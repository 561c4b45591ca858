"""One file per model family. An adapter says where things are; nothing else in the package knows a family's name.

The table maps the Hugging Face class of a model to the adapter that reads it, as "module:class" so that only the
adapter in use is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import ModelError

if TYPE_CHECKING:
    from nnsight_mmflow.adapters._base import Adapter
    from transformers import PreTrainedModel, ProcessorMixin

TABLE = {
    "LlavaForConditionalGeneration": "nnsight_mmflow.adapters.llava:Llava",
}


def adapter_for(model: PreTrainedModel, processor: ProcessorMixin) -> Adapter:
    """The adapter of a model's family, its configuration checked.

    Raises:
        ModelError: no adapter covers the class, or the configuration holds a setting that the adapter does not handle.
    """
    name = type(model).__name__
    if name not in TABLE:
        raise ModelError(
            f"there is no adapter for {name}; there are adapters for {', '.join(TABLE)}."
            " To add one, copy nnsight_mmflow/adapters/llava.py and enter it in nnsight_mmflow.adapters.TABLE."
        )
    module, cls = TABLE[name].split(":")
    return getattr(import_module(module), cls)(model, processor)
