"""Processors without their video part. Hugging Face builds that part with torchvision alone; images do not need it."""

from __future__ import annotations

import inspect
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import ModelError

NO_FRAMES = SimpleNamespace(num_frames=None, fps=None)  # some chat templates look at these

if TYPE_CHECKING:
    from transformers import ProcessorMixin


def images_only(cls: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The processor class, made from an image processor and a tokenizer; where it has no video part, itself."""
    if "video_processor" not in inspect.signature(cls.__init__).parameters:
        return cls

    def initialise(self, image_processor=None, tokenizer=None, **settings):  # type: ignore[no-untyped-def]
        settings.pop("video_processor", None)
        cls.__init__(self, image_processor, tokenizer, None, **settings)

    # Hugging Face reads from the signature which parts there are, and from the name what it is.
    return type(
        cls.__name__, (cls,), {"__init__": initialise, "video_processor": NO_FRAMES, "__module__": cls.__module__}
    )


def load_images_only(name: str, **kwargs: object) -> ProcessorMixin:
    """The processor that belongs to a model, without its video part.

    Raises:
        ModelError: the model's family has no processor.
    """
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, model_type_to_module_name

    config = AutoConfig.from_pretrained(name, **kwargs)
    if config.model_type not in PROCESSOR_MAPPING_NAMES:
        raise ModelError(f"transformers has no processor for {config.model_type!r}; pass processor=.")
    module = model_type_to_module_name(config.model_type)
    owner = import_module(f"transformers.models.{module}.processing_{module}")
    cls = images_only(getattr(owner, PROCESSOR_MAPPING_NAMES[config.model_type]))
    return cls.from_pretrained(name, backend="pil", **kwargs)
