"""Processors without their video part. Hugging Face builds that part with torchvision alone; images do not need it."""

from __future__ import annotations

import inspect
from importlib import import_module
from types import FunctionType, SimpleNamespace
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import ModelError

NO_FRAMES = SimpleNamespace(num_frames=None, fps=None)  # some chat templates look at these

if TYPE_CHECKING:
    from transformers import ProcessorMixin


def images_only(cls: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The processor class, made from an image processor and a tokenizer; where it has no video part, itself."""
    first = cls.__init__
    if "video_processor" not in inspect.signature(first).parameters:
        return cls
    # The same constructor, its video part no longer required; Hugging Face reads names and settings from its code.
    required = first.__code__.co_argcount - 1 - len(first.__defaults__ or ())
    defaults = (None,) * required + (first.__defaults__ or ())
    again = FunctionType(first.__code__, first.__globals__, first.__name__, defaults, first.__closure__)
    parts = [name for name in cls.get_attributes() if name != "video_processor"]
    members = {
        "__init__": again,
        "__module__": cls.__module__,
        "get_attributes": classmethod(lambda cls: parts),
        "video_processor": NO_FRAMES,
    }
    return type(cls.__name__, (cls,), members)


def load_images_only(name: str, **kwargs: object) -> ProcessorMixin:
    """The processor that belongs to a model, without its video part.

    Raises:
        ModelError: the model's family has no processor, or one that cannot do without torchvision.
        OSError: nothing is there under that name.
    """
    from transformers import AutoConfig, ProcessorMixin
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, model_type_to_module_name

    saved, _ = ProcessorMixin.get_processor_dict(name, **kwargs)
    kind = AutoConfig.from_pretrained(name, **kwargs).model_type
    asked = saved.get("processor_class") or PROCESSOR_MAPPING_NAMES.get(kind)
    homes = [kind, *(home for home, cls in PROCESSOR_MAPPING_NAMES.items() if cls == asked)]
    for module in map(model_type_to_module_name, homes):
        try:
            owner = import_module(f"transformers.models.{module}.processing_{module}")
        except ImportError as error:
            if "torchvision" in str(error):
                raise _lacks_torchvision(asked) from error
            continue
        if asked and hasattr(owner, asked):
            try:
                return images_only(getattr(owner, asked)).from_pretrained(name, backend="pil", **kwargs)
            except ValueError as error:
                if "dependencies: torchvision" in str(error):  # 5.17 looks for Idefics 3's where torchvision is
                    raise _lacks_torchvision(asked) from error
                raise
    raise ModelError(f"transformers has no processor {asked!r} for {kind!r} models: pass processor=.")


def _lacks_torchvision(asked: str | None) -> ModelError:
    import transformers

    return ModelError(
        f"{asked} of transformers {transformers.__version__} cannot be loaded without torchvision: pip install"
        " torchvision."
    )
