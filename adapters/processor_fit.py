"""Does a processor belong to a model? Told when the model is loaded, with what differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from nnsight_mmflow.adapters.base import Adapter


def check_processor(model: PreTrainedModel, processor: object) -> None:
    """Refuses what is no processor, and one that transformers has for another family.

    A subclass, a class of one's own, and one without its video part are taken.

    Raises:
        ModelError: it is of another family, or lacks a part.
    """
    lacking = [part for part in ("tokenizer", "image_processor", "image_token") if not hasattr(processor, part)]
    if lacking or isinstance(processor, str | type):
        raise ModelError(
            "a processor is expected, which holds a tokenizer and an image processor:"
            f" AutoProcessor.from_pretrained(...); a {type(processor).__name__} came"
            + (f", without {', '.join(lacking)}." if lacking else ".")
        )
    known, wanted = _processors(), _wanted(model)
    classes = [cls.__name__ for cls in type(processor).__mro__]
    others = [name for name in classes if name in known]
    if others and wanted and not set(others) & set(wanted):
        raise ModelError(
            f"the processor is a {others[0]}, but {type(model).__name__} models are read with a"
            f" {' or '.join(wanted)}: its image tokens and pictures would be another model's. Load the one that belongs"
            " to the model: mmf.load does so by itself, or AutoProcessor.from_pretrained(the model's folder or id)."
        )


def check_image_token(adapter: Adapter) -> None:
    """Refuses a processor whose image token has another id than the model looks for.

    Raises:
        ModelError: with both ids.
    """
    processor, ids = adapter.processor, []
    for holder in (
        processor,
        processor.tokenizer,
    ):  # some families put another token in the text, and this one in the ids
        number = getattr(holder, "image_token_id", None)
        ids += [number] if isinstance(number, int) else []
    if ids and adapter.image_token_id not in ids:
        raise ModelError(
            f"the processor's image token {processor.image_token!r} has the id {ids[0]}, the model puts image"
            f" features at the id {adapter.image_token_id}: the processor (or its tokenizer) belongs to another model."
        )


def _processors() -> set[str]:
    """The processor classes that transformers has for its families."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    return {name for name in PROCESSOR_MAPPING_NAMES.values() if isinstance(name, str)}


def _wanted(model: PreTrainedModel) -> list[str]:
    """The classes that go with the model: its family's, and its tower's (LLaVA with Pixtral's)."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    config = model.config
    kinds = [config.model_type, getattr(getattr(config, "vision_config", None), "model_type", "")]
    return [name for name in (PROCESSOR_MAPPING_NAMES.get(kind) for kind in kinds) if isinstance(name, str)]
