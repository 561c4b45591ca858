"""Generation settings, merged as transformers merges them: arguments, a config, the checkpoint's; and plain ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.names import with_its_cache

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from nnsight_mmflow.model.loaded import Loaded

COUNTS = (
    "num_beams",
    "num_return_sequences",
    "max_new_tokens",
    "max_length",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
)
SWITCHES = ("use_cache", "do_sample")
# Arguments of transformers' generate that are neither settings nor go to the model's forward.
ARGUMENTS = (
    "assistant_model",
    "assistant_tokenizer",
    "custom_generate",
    "logits_processor",
    "negative_prompt_attention_mask",
    "negative_prompt_ids",
    "prefix_allowed_tokens_fn",
    "stopping_criteria",
    "synced_gpus",
    "tokenizer",
    "trust_remote_code",
)
NNSIGHT = ("backend", "blocking", "job_id", "remote", "fn", "trace", "streamer")  # ... nor transformers' at all
ALWAYS = ("do_sample", "num_beams", "num_return_sequences", "use_cache", "max_new_tokens")
PLAINLY: Mapping[str, object] = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "use_cache": True}


def merged_settings(graph: Loaded, settings: Mapping[str, object]) -> tuple[GenerationConfig, dict]:
    """(the settings that transformers will use, the keyword arguments that are none).

    Raises:
        MMFlowError: transformers refuses them.
    """
    from transformers import GenerationConfig

    model = with_checkpoint_settings(graph.adapter.model)
    given = with_its_cache(model, {name: value for name, value in settings.items() if name not in NNSIGHT})
    _check_types(given)
    arguments = {name: given.pop(name) for name in ARGUMENTS if name in given}
    config, assistant = given.pop("generation_config", None), arguments.get("assistant_model")
    if config is not None and not isinstance(config, GenerationConfig):
        raise MMFlowError(
            f"generation_config is a {type(config).__name__}; expected a transformers GenerationConfig, or the settings"
            " by name: num_beams=3."
        )
    if assistant is not None and not hasattr(assistant, "generation_config"):
        raise MMFlowError(f"assistant_model is a {type(assistant).__name__}; expected a loaded Hugging Face model.")
    try:
        merged, rest = model._prepare_generation_config(config, **given)
        model._validate_model_kwargs(dict(rest))
        if arguments.get("custom_generate") is None:
            mode = merged.get_generation_mode(assistant)
            model._validate_generation_mode(mode, merged, {"assistant_model": assistant} if assistant else {})
    except (ValueError, TypeError) as error:
        raise MMFlowError(f"transformers refuses these generation settings: {error}") from None
    if merged.stop_strings is not None and arguments.get("tokenizer") is None:
        raise MMFlowError("stop_strings needs the tokenizer too: tokenizer=graph.processor.tokenizer.")
    return merged, {**rest, **{name: value for name, value in arguments.items() if value is not None}}


def _check_types(given: Mapping[str, object]) -> None:
    """Refuses settings of a wrong type, which transformers would meet in the middle of a run."""
    wrong = [
        name
        for name in (*COUNTS, *SWITCHES)
        if given.get(name) is not None
        and (
            not isinstance(given[name], bool)
            if name in SWITCHES
            else not isinstance(given[name], int) or isinstance(given[name], bool) or given[name] < 1  # type: ignore[operator]
        )
    ]
    if "use_cache" in given and given["use_cache"] is None:  # transformers would keep keys and run all tokens again
        wrong.insert(0, "use_cache")
    if wrong:
        kind = "True or False" if wrong[0] in SWITCHES else "a whole number, 1 or more"
        raise MMFlowError(f"{wrong[0]}={short(given[wrong[0]])}: expected {kind}.")


def settings_used(graph: Loaded, settings: Mapping[str, object]) -> dict[str, object]:
    """What a generation with these keyword arguments uses, wherever it comes from: all that is not left at None."""
    merged, _ = merged_settings(graph, settings)
    known = {**merged.to_dict(), **{name: getattr(merged, name) for name in ALWAYS}}
    return {
        name: value
        for name, value in known.items()
        if value is not None and not name.startswith("_") and name != "transformers_version" and _plain(value)
    }


def plain_settings(graph: Loaded, **chosen: object) -> dict[str, object]:
    """Keyword arguments for a greedy generation, one row a prompt, that takes nothing from the checkpoint.

    What the checkpoint's generation config sets is set back to transformers' defaults by name, but for the special
    tokens (which end an answer); `chosen` is set on top.
    """
    from transformers import GenerationConfig

    own = with_checkpoint_settings(graph.adapter.model).generation_config
    plain = GenerationConfig()
    defaults = {**plain.to_dict(), **plain._get_default_generation_params()}
    back = {
        name: defaults.get(name)
        for name, value in own.to_dict().items()
        if value not in (None, defaults.get(name))  # None: it says nothing
        and not name.startswith("_")
        and not name.endswith(("_token_id", "_version"))
    }
    return {**back, **PLAINLY, **chosen}


def _plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str | list | tuple | dict)


def with_checkpoint_settings(model: PreTrainedModel) -> PreTrainedModel:
    """The model; one without weights gets its checkpoint's generation config, which only loading weights reads."""
    from transformers import GenerationConfig

    if model.device.type == "meta" and not getattr(model, "_mmflow_settings_read", False):
        model._mmflow_settings_read = True  # type: ignore[assignment]
        try:
            name, revision = model.config._name_or_path, getattr(model.config, "_commit_hash", None)
            model.generation_config = GenerationConfig.from_pretrained(name, revision=revision)
        except (OSError, ValueError):  # the checkpoint has none
            pass
    return model


def short(value: object) -> str:
    """A value as a message shows it."""
    written = repr(value)
    return written if len(written) < 60 else f"<{type(value).__name__}>"
