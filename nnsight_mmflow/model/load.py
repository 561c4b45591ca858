"""Graphs from a name, a folder, or a model that the user already has."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

# nnsight mounts `.save` on every object; what defines classes with slots must be imported before it.
import anyio  # noqa: F401
from nnsight import Envoy, TransformersModel
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils import is_torchvision_available, logging

from nnsight_mmflow._errors import ModelError
from nnsight_mmflow._kinds import came, place_of
from nnsight_mmflow._later import later
from nnsight_mmflow.adapters import adapter_for, known_class
from nnsight_mmflow.model.checkpoints import (
    architecture,
    check_finite,
    check_loaded,
    check_settings,
    first_words,
    outline,
    read_config,
    weights_of,
)
from nnsight_mmflow.model.graph import Graph
from nnsight_mmflow.model.images_only import load_images_only
from nnsight_mmflow.model.split import make_ready
from nnsight_mmflow.model.token_counts import check_counts_of
from nnsight_mmflow.model.weight_files import check_files, damage, weight_files

TASK = "image-text-to-text"
NANO = Path(__file__).parent.parent / "nano" / "data"  # the model in the box


def load(name: str, *, processor: ProcessorMixin | None = None, remote: bool | str = False, **kwargs: object) -> Graph:
    """A graph of the model: "nano" (ships with the package), a Hugging Face id, or a folder written by save_pretrained.

    Args:
        name: "nano", a Hugging Face id such as "llava-hf/llava-1.5-7b-hf", or a folder.
        processor: the processor to use; the model's own unless given.
        remote: run everything on NDIF (True, or a host): spans are made here, no weights are loaded.
        kwargs: go to nnsight's TransformersModel and on to from_pretrained, untouched (dtype, also "nf4" or "int8",
            quantization_config, device_map, distributed_config, attn_implementation, revision). The weights are loaded
            at once; dispatch=False leaves them out (for remote runs, and where workers load them).

    Raises:
        ModelError: nothing is there under that name; no adapter covers it, or its settings (told from the configuration
            alone, before weights are read); the processor does not fit; weights are missing, cut, mere pointers, of
            other shapes, or NaN (the tensors are named).

    Example:
        >>> import nnsight_mmflow as mmf
        >>> mmf.load("nano").n_layers
        10
    """
    if not isinstance(name, str | PathLike) or not str(name):
        raise ModelError(f"a model is named by 'nano', a Hugging Face id or a folder, but {came(name)} came.")
    place_of("remote", remote)
    asked = name = str(name)
    if name == "nano":
        name = str(NANO)
    where = _revision(kwargs)
    check_settings(kwargs)
    config = read_config(name, where, kwargs)
    if config is not None:
        known_class(architecture(config))
    try:
        processor = processor or _processor(name, where)
    except ModelError:
        raise
    except Exception as error:  # whatever the many files of a processor can do wrong
        wrong = damage(weight_files(name, kwargs.get("revision")))
        why = wrong or first_words(error)
        raise ModelError(
            f"no processor can be loaded from {name!r}: {why}. Expected 'nano', a Hugging Face id, or a folder that"
            " holds both model.save_pretrained and processor.save_pretrained."
        ) from error
    kwargs.setdefault("dispatch", not remote)
    empty = outline(config, kwargs) if config is not None else None
    if empty is not None:  # all that can be told without weights
        check_counts_of(adapter_for(empty, processor))
    if kwargs["dispatch"]:
        check_files(name)
    make_ready(kwargs)
    shown = logging.is_progress_bar_enabled()
    if asked == "nano" and shown:  # loads at once: a bar would only flicker
        logging.disable_progress_bar()
    try:
        with weights_of(name, kwargs.get("revision")) as infos:
            model = TransformersModel(name, task=TASK, processor=processor, **kwargs)
    finally:
        if shown:
            logging.enable_progress_bar()
    check_loaded(asked, model._module, infos)
    return _graph(model, processor, asked).at(remote)


def adapt(model: object, processor: ProcessorMixin | None = None) -> Graph:
    """A graph of a model that is there already: an nnsight model, a Hugging Face one, or a TransformerLens bridge.

    Args:
        model: an nnsight TransformersModel, a Hugging Face model (it is wrapped, not copied or changed), or a
            TransformerBridge (the graph shares its weights; `graph.hooks(bridge, ...)` then works on it).
        processor: its processor; needed unless the nnsight model holds one.

    Raises:
        ModelError: the processor is missing or another family's, no adapter covers the model, or weights are NaN.
    """
    processor = processor or getattr(model, "processor", None)
    bridged = hasattr(model, "original_model") and hasattr(model, "hook_dict")
    if processor is None:
        raise ModelError(
            "the processor is missing: mmf.adapt(model, processor=AutoProcessor.from_pretrained(...)) - spans come from"
            " the processor's own ids."
        )
    if bridged:
        return later("graph_for")(model, processor)  # type: ignore[arg-type]
    if isinstance(model, PreTrainedModel):
        model = TransformersModel(model, task=TASK, processor=processor)
    if not isinstance(model, Envoy):
        raise ModelError(
            f"adapt takes an nnsight or a Hugging Face model or a TransformerLens bridge, not {type(model).__name__}."
        )
    graph = _graph(model, processor)
    check_finite(graph.name, graph.adapter.model)
    return graph


def _graph(model: TransformersModel, processor: ProcessorMixin, name: str = "") -> Graph:
    return Graph(model, adapter_for(model._module, processor), name)


def _processor(name: str, where: dict[str, object]) -> ProcessorMixin:
    """The model's own, with the image processor that needs no torchvision: results must not depend on it."""
    if is_torchvision_available():
        return AutoProcessor.from_pretrained(name, backend="pil", **where)
    return load_images_only(name, **where)


def _revision(kwargs: dict[str, object]) -> dict[str, object]:
    return {key: kwargs[key] for key in ("revision", "trust_remote_code", "cache_dir", "token") if key in kwargs}
