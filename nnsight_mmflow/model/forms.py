"""The form of a generation: how it will run the model, read from the settings that transformers would merge.

Settings come from arguments, from a `generation_config=`, from the checkpoint's generation config and from its config.
What no pattern can follow is refused here, before any forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.forwards import cached_positions
from nnsight_mmflow.inside.names import cache_in
from nnsight_mmflow.model.generation_settings import merged_settings, short

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from nnsight_mmflow.model.loaded import Loaded

# What runs the model in ways of its own: other prompts beside ours, other prompts than ours, or other code.
UNKNOWN_FORWARDS = {
    "guidance_scale": "runs the model a second time beside each step, on other tokens",
    "negative_prompt_ids": "runs the model a second time beside each step, on other tokens",
    "custom_generate": "runs code of its own",
    "assistant_early_exit": "runs this model's first layers by themselves to guess tokens",
    "dola_layers": "runs code that is no longer part of transformers",
    "penalty_alpha": "runs code that is no longer part of transformers",
    "num_beam_groups": "runs code that is no longer part of transformers",
    "constraints": "runs code that is no longer part of transformers",
    "force_words_ids": "runs code that is no longer part of transformers",
    "token_healing": "changes the prompt's last token, so that spans mean something else",
}
CACHES = (None, "dynamic", "static")  # whose keys lie where they stand in the sequence
SEVERAL = ("prompt_lookup_num_tokens", "assistant_model", "use_mtp")
NEUTRAL: Mapping[str, object] = {"guidance_scale": 1.0, "penalty_alpha": 0.0, "num_beam_groups": 1}
HERE = "graph.generate(prompt, pattern, "


@dataclass(frozen=True)
class Form:
    """How a generation runs the model; plain values.

    Attributes:
        cached: keys and values are kept, so that each position is computed once.
        factor: rows for each prompt (beams, or returned sequences).
        static: the cache has its full size from the start.
        several: the setting by which a forward may hold several new tokens; "" where each holds one.
        past: positions that a cache given by the user holds already.
        chunk: the prompt comes in parts of so many positions; 0: whole.
    """

    cached: bool = True
    factor: int = 1
    static: bool = False
    several: str = ""
    past: int = 0
    chunk: int = 0
    fixed: Mapping[str, object] = field(default_factory=dict, repr=False)

    def parts(self, length: int) -> bool:
        """Whether the prompt does not come whole in one forward."""
        return bool(self.past or 0 < self.chunk < length)


PLAIN = Form()


def form_of(graph: Loaded, settings: Mapping[str, object], shape: Sequence[int]) -> Form:
    """The form of a generation with these keyword arguments.

    Args:
        graph: the model.
        settings: as `graph.generate` takes them.
        shape: (prompts, positions of the padded prompt).

    Raises:
        MMFlowError: settings that no pattern can follow, or that transformers itself refuses.
    """
    prompts, length = shape
    merged, rest = merged_settings(graph, settings)
    for name, reason in UNKNOWN_FORWARDS.items():
        value = rest.get(name, getattr(merged, name, None))
        if value is not None and value is not False and value != NEUTRAL.get(name):
            raise MMFlowError(
                f"{name}={short(value)} {reason}, so patterns cannot tell what a forward holds. Leave it out"
                f"{_where(graph, settings, name)}."
            )
    past = _past(cache_in(rest), prompts, length)
    if past is not None and merged.use_cache is False:
        raise MMFlowError("past_key_values came with use_cache=False: leave one of them out.")
    kind = merged.cache_implementation
    static = kind == "static" or (past is not None and _is_static(cache_in(rest)))
    if kind not in CACHES:
        where = _where(graph, settings, "cache_implementation")
        raise MMFlowError(
            f"cache_implementation={kind!r} keeps keys elsewhere than where they stand in the sequence, so masks cannot"
            f" be closed in it. Set cache_implementation='dynamic' (or 'static'){where}."
        )
    cached = merged.use_cache is not False or past is not None
    if merged.prompt_lookup_num_tokens and graph.image_token_id not in (merged.suppress_tokens or ()):
        raise MMFlowError(
            f"prompt_lookup_num_tokens={merged.prompt_lookup_num_tokens} guesses tokens that stand in the prompt, image"
            " tokens among them, for which there is no picture. Add suppress_tokens=[graph.image_token_id]."
        )
    several = [name for name in SEVERAL if rest.get(name, getattr(merged, name, None))]
    form = Form(
        cached,
        max(merged.num_beams or 1, merged.num_return_sequences or 1),
        static and cached,
        several[0] if several else "",
        past or 0,
        int(merged.prefill_chunk_size or 0),
    )
    _check(graph, form, prompts, length, rest)
    own = settings.get("generation_config") or graph.adapter.model.generation_config
    said = settings.get("max_length") or getattr(own, "max_length", None)  # transformers' own default counts anew
    if merged.max_new_tokens is None and said is not None and merged.max_length <= length:
        raise MMFlowError(
            f"max_length={merged.max_length} counts the prompt's {length} positions too, so nothing could be written."
            " Give max_new_tokens instead."
        )
    return Form(**{**vars(form), "fixed": _fixed(graph, merged, settings)})


def _past(cache: object, prompts: int, length: int) -> int | None:
    """How many positions a cache of the user's holds; None if none came."""
    if cache is None:
        return None
    if not hasattr(cache, "get_seq_length") or not hasattr(cache, "layers"):
        raise MMFlowError(
            f"past_key_values is a {type(cache).__name__}; expected a transformers Cache, such as DynamicCache()."
        )
    kinds = {type(layer).__name__ for layer in cache.layers} - {"DynamicLayer", "DynamicSlidingWindowLayer"}
    kinds -= {"StaticLayer"}
    if kinds:
        raise MMFlowError(
            f"past_key_values has layers of type {', '.join(sorted(kinds))}, which keep keys elsewhere than where they"
            " stand in the sequence. Give a DynamicCache or a StaticCache of a model without a sliding window."
        )
    past = cached_positions(cache)  # type: ignore[arg-type]
    keys = getattr(cache.layers[0], "keys", None) if past and cache.layers else None
    if keys is not None and len(keys) != prompts:
        raise MMFlowError(f"past_key_values holds {len(keys)} row(s), but {prompts} prompt(s) came.")
    if past >= length:
        raise MMFlowError(
            f"past_key_values holds {past} positions, the prompt has {length}: a cache given to a generation holds the"
            " first positions of the same prompt, and at least one must be left to run."
        )
    return past


def _is_static(cache: object) -> bool:
    return any(type(layer).__name__ == "StaticLayer" for layer in getattr(cache, "layers", ()))


def _check(graph: Loaded, form: Form, prompts: int, length: int, rest: Mapping[str, object]) -> None:
    """Refuses what does not go together."""
    if form.chunk and not form.cached:
        raise MMFlowError(
            f"prefill_chunk_size={form.chunk} needs a cache, which use_cache=False takes away: leave one of them out."
        )
    if form.several and prompts > 1:
        raise MMFlowError(
            f"{form.several} takes back tokens that were guessed wrong, which transformers does for one prompt at a"
            f" time, but {prompts} came: leave it out, or generate prompt by prompt."
        )
    if form.static and graph.adapter.sliding_window() is not None:
        raise MMFlowError(
            f"a static cache of {graph.family} with a sliding window moves its keys about, so masks cannot be closed in"
            " it. Set cache_implementation='dynamic'."
        )
    if form.static and graph.device.type == "cuda" and not rest.get("disable_compile"):
        raise MMFlowError(
            "with a static cache transformers compiles the model on a GPU, and a compiled model runs without patterns."
            f" Type {HERE}..., disable_compile=True), or cache_implementation='dynamic'."
        )
    if form.past and form.factor > 1:
        raise MMFlowError(
            f"past_key_values has a row for each prompt, but this generation has {form.factor}: leave it out, or set"
            " num_beams=1 and num_return_sequences=1."
        )
    if form.several and (form.static or not form.cached):
        raise MMFlowError(
            f"{form.several} takes back tokens that were guessed wrong, which needs a cache that can shrink: leave"
            " use_cache and cache_implementation out."
        )
    if form.several and _shares(rest.get("assistant_model"), graph.adapter.model):
        raise MMFlowError(
            "assistant_model holds modules of the model itself, so patterns would act while it guesses too. Load the"
            " assistant by itself."
        )
    apart = [problem for problem, here in _beyond_apart(form, length) if here]
    if graph.apart and form.cached and apart:
        raise MMFlowError(
            f"{apart[0]} cannot be followed in a generation whose blocks run apart from the model (NDIF with an"
            " ordinary key): leave it out. A key that NDIF trusts has no such limit: graph.at(True, trusted=True)."
        )


def _beyond_apart(form: Form, length: int) -> list[tuple[str, bool]]:
    return [
        ("a static cache", form.static),
        (form.several, bool(form.several)),
        ("past_key_values", form.past > 0),
        (f"prefill_chunk_size={form.chunk}", 0 < form.chunk < length),
    ]


def _shares(assistant: object, model: PreTrainedModel) -> bool:
    if assistant is None:
        return False
    ours = {id(module) for module in model.modules()}
    return any(id(module) in ours for module in assistant.modules())  # type: ignore[attr-defined]


def _fixed(graph: Loaded, merged: GenerationConfig, settings: Mapping[str, object]) -> dict[str, object]:
    """What is said in the call although a default stands for it: a server's, or nnsight's, may be another."""
    names = ["num_beams"] if "generation_config" in settings and (merged.num_beams or 1) > 1 else []
    if graph.remote:
        names = ["use_cache", "num_beams", "num_return_sequences", "cache_implementation", "prefill_chunk_size"]
    fixed = {name: getattr(merged, name) for name in names if name not in settings}
    return {name: value for name, value in fixed.items() if value is not None}


def _where(graph: Loaded, settings: Mapping[str, object], name: object) -> str:
    """How to be rid of a setting that the call does not name."""
    if name in settings or "generation_config" in settings:
        return ""
    return (
        f": the checkpoint's generation config sets it, and graph.adapter.model.generation_config.{name} can be unset"
    )
