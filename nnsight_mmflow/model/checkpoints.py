"""Checkpoints: what can be told before their weights are read, and whether all of them were there."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from nnsight_mmflow._errors import ModelError
from nnsight_mmflow._kinds import came
from nnsight_mmflow.model.weight_files import damage, weight_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.utils.loading_report import LoadStateDictInfo

SHOWN = 6
ORIGINAL = re.compile(r"^(?P<told>[A-Za-z_][\w.]*(?:Error|Exception)\b: .*)$", re.MULTILINE)
ONE_AT_A_TIME = Lock()


def read_config(name: str, where: Mapping[str, object], given: Mapping[str, object]) -> PretrainedConfig | None:
    """The model's configuration; None where nothing is there, which the processor tells better.

    Raises:
        ModelError: transformers does not know such models.
    """
    if given.get("config") is not None or "gguf_file" in given:
        return given.get("config")  # type: ignore[return-value]
    if Path(name).is_dir() and not os.path.lexists(Path(name) / "config.json"):
        return None
    try:
        return AutoConfig.from_pretrained(name, **where)
    except OSError as error:
        wrong = damage([path for path in weight_files(name) if path.name == "config.json"])
        if wrong or "valid JSON" in str(error):
            raise ModelError(f"the configuration of {name!r} cannot be read: {wrong or first_words(error)}.") from error
        return None
    except Exception as error:  # a model type of nobody's, code of its own, a field of the wrong type
        raise ModelError(f"the configuration of {name!r} cannot be read: {first_words(error)}.") from error


def architecture(config: PretrainedConfig) -> str:
    """The class that transformers builds for a configuration."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as FOUND

    if type(config) in FOUND:
        return FOUND[type(config)].__name__
    own = (getattr(config, "auto_map", None) or {}).get("AutoModelForImageTextToText", "")
    return own.rpartition(".")[2] or next(iter(config.architectures or ()), f"{config.model_type!r} models")


def outline(config: PretrainedConfig, given: Mapping[str, object]) -> PreTrainedModel | None:
    """The model without weights; None where transformers cannot build it so."""
    trust = {"trust_remote_code": True} if given.get("trust_remote_code") else {}
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(copy.deepcopy(config), **trust).eval()
    except Exception:  # the load tells what is wrong, or nothing is
        return None


def check_settings(given: Mapping[str, object]) -> None:
    """Refuses a number type or a device that is not there.

    Raises:
        ModelError: with what there is.
    """
    from nnsight.modeling.quantization import QUANTIZATIONS

    for name in ("dtype", "torch_dtype"):
        kind = given.get(name)
        if kind is None or isinstance(kind, torch.dtype | Mapping):
            continue
        plain = kind.removeprefix("torch.") if isinstance(kind, str) else ""
        if (
            plain != "auto"
            and plain.lower() not in QUANTIZATIONS
            and not isinstance(getattr(torch, plain, None), torch.dtype)
        ):
            raise ModelError(
                f"{name}={came(kind)} is no number type: 'float32', 'bfloat16', 'float16', 'auto', or quantised"
                f" {', '.join(map(repr, QUANTIZATIONS))}."
            )
    for name in ("device", "device_map"):
        place = given.get(name)
        if (
            isinstance(place, int)
            and not isinstance(place, bool)
            and place >= 0
            and not torch.accelerator.is_available()
        ):
            raise ModelError(f"{name}={place}: numbers name GPUs, and torch {torch.__version__} finds none here.")
        if not isinstance(place, str | torch.device) or place in ("auto", "balanced", "balanced_low_0", "sequential"):
            continue
        try:
            device = torch.device(place)
        except RuntimeError:
            raise ModelError(f"{name}={place!r} is no device: such as 'cpu', 'cuda', 'cuda:1' or 'mps'.") from None
        if device.type == "cuda" and not torch.cuda.is_available():
            built = "is built without CUDA" if not torch.version.cuda else "finds no GPU"
            raise ModelError(f"{name}={str(place)!r}: there is no CUDA here (torch {torch.__version__} {built}).")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ModelError(f"{name}={str(place)!r}: there are {torch.cuda.device_count()} GPUs, counted from 0.")


@contextmanager
def weights_of(name: str, revision: object = None) -> Iterator[list[LoadStateDictInfo]]:
    """While a model is loaded: gives what transformers says of its tensors, and its errors in words.

    Raises:
        ModelError: weights that are not there, cut, mere pointers, or of other shapes.
    """
    from transformers import modeling_utils

    infos: list[LoadStateDictInfo] = []
    report = modeling_utils.log_state_dict_report

    def kept(*args: object, loading_info: LoadStateDictInfo, **rest: object) -> None:
        infos.append(loading_info)
        if not (loading_info.missing_keys or loading_info.mismatched_keys):  # these are told below, once
            report(*args, loading_info=loading_info, **rest)  # type: ignore[arg-type]

    with ONE_AT_A_TIME:
        modeling_utils.log_state_dict_report = kept  # type: ignore[assignment]
        try:
            yield infos
        except ModelError:
            raise
        except Exception as error:
            wrong = damage(weight_files(name, revision))
            raise ModelError(
                f"the weights of {name!r} cannot be loaded: {wrong}."
                if wrong
                else f"no model can be loaded from {name!r}: {first_words(error)}."
            ) from error
        finally:
            modeling_utils.log_state_dict_report = report


def check_loaded(name: str, model: PreTrainedModel, infos: list[LoadStateDictInfo]) -> None:
    """Refuses a model some of whose tensors were not in its checkpoint, or hold no numbers.

    Raises:
        ModelError: naming the tensors.
    """
    missing = sorted({key for info in infos for key in info.missing_keys})
    if missing:
        raise ModelError(
            f"the checkpoint {name!r} lacks {len(missing)} tensor(s) of {type(model).__name__}, which would be random:"
            f" {_some(missing)}. Is a shard missing, or is it a checkpoint of another model (of a part of one)?"
        )
    wrong = sorted({(key, tuple(there), tuple(here)) for info in infos for key, there, here in info.mismatched_keys})
    if wrong:
        shapes = [f"{key} is {there} in the checkpoint, {here} by its config" for key, there, here in wrong]
        raise ModelError(f"the checkpoint {name!r} does not fit its configuration: {_some(shapes)}.")
    check_finite(name, model)


def check_finite(name: str, model: torch.nn.Module) -> None:
    """Refuses weights that are NaN or infinite; those that are not here are left alone.

    Raises:
        ModelError: naming the tensors.
    """
    wrong = [where for where, weight in model.named_parameters() if not _is_finite(weight)]
    if wrong:
        raise ModelError(
            f"{len(wrong)} weight(s) of {name!r} hold NaN or infinite numbers: {_some(wrong)}. Was it trained or"
            " converted wrongly, or is a file damaged? Every result would be NaN."
        )


def _is_finite(weight: torch.Tensor) -> bool:
    here = getattr(weight, "_local_tensor", weight).detach()  # of a model split over processes, this one's part
    if here.is_meta or not here.is_floating_point() or not here.numel() or here.element_size() < 2:
        return True
    low, high = torch.aminmax(here)  # one pass, no copy; both are NaN if any number is
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def first_words(error: BaseException) -> str:
    """An error's own words, cut; where a pipeline put tracebacks behind its own, those of the first of them."""
    inner = ORIGINAL.search(str(error).partition("Traceback (most recent")[2])
    text = inner["told"] if inner else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:600].rstrip(".")
