"""What a run is: its model with every weight, its settings, and each prompt whole. Folders go on with that run alone.

The place is not part of it: CPU and GPU round differently, as two versions of a driver do. What was measured on a
server, whose weights are not seen from here, is never continued with weights that are here, nor on another server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import ModelError
from nnsight_mmflow._progress import say
from nnsight_mmflow.runs.fingerprint import fingerprint, weights_digest
from nnsight_mmflow.runs.journal import Journal
from nnsight_mmflow.runs.results import versions

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt

# Of a configuration: where it came from and how it was loaded; what matters of it is said by name.
NOT_COMPARED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_commit_hash", "architectures")


def prompt_names(prompts: Sequence[Prompt]) -> list[str]:
    """What tables call each prompt: its key or number, with its number behind where keys repeat."""
    keys = [prompt.key or str(number) for number, prompt in enumerate(prompts)]
    return [key if keys.count(key) == 1 else f"{key} ({number})" for number, key in enumerate(keys)]


def journal_of(
    graph: Graph,
    folder: str | PathLike[str] | None,
    experiment: str,
    report: Callable[[str], None] = say,
    **arguments: object,
) -> Journal:
    """The journal of a run in a folder; in memory alone without one.

    Args:
        graph: the model.
        folder: where it is kept.
        experiment: its name: no other experiment goes on with the folder.
        report: where trouble with the folder is told.
        arguments: by name, all that changes a number; None leaves one out.

    Raises:
        DataError: the folder holds another run; what differs is told.
    """
    if folder is None:
        return Journal(None, {}, report)
    given = {name: value for name, value in arguments.items() if value is not None}
    return Journal(folder, {"experiment": experiment, **model_identity(graph), **given}, report)


def model_identity(graph: Graph) -> dict[str, object]:
    """What of a model changes its numbers, by name.

    Raises:
        ModelError: it was loaded without weights, and runs neither on a server nor on workers.
    """
    known = graph.known_as if graph.known_as is not None else model_facts(graph)
    return {"model": graph.name, **known}


def model_facts(graph: Graph) -> dict[str, object]:
    """The same without its name, which is another where a worker loads it."""
    model, config = graph.model._module, graph.adapter.config
    types = sorted({str(weight.dtype)[6:] for weight in model.parameters()})
    known: dict[str, object] = {
        "family": graph.family,
        "weights": _weights(graph),
        "dtype": "" if _elsewhere(graph) else ", ".join(types),
        "quantisation": _quantisation(config),
        "attention": graph.backend,
        "tower_attention": _tower_attention(graph),
        "config": fingerprint(_compared(config.to_dict())),
        "tokenizer": _tokenizer(graph),
        "revision": getattr(config, "_commit_hash", None) or getattr(graph.model, "revision", None),
        "edits": [fingerprint(_reduced(edit)) for edit in graph.model._edits],
        "versions": versions(),
    }
    return {name: value for name, value in known.items() if value not in (None, "", [])}


def _elsewhere(graph: Graph) -> bool:
    """Whether a server has the weights: nothing here tells what they are, nor their number type."""
    return bool(graph.remote) and graph.remote != "local"


def _weights(graph: Graph) -> str:
    """The fingerprint of the weights, or where they are."""
    if _elsewhere(graph):
        from nnsight.schema.config import CONFIG

        host = graph.remote if isinstance(graph.remote, str) else CONFIG.API.HOST
        return f"on the server {host}, not known here ({graph.model.to_model_key()})"
    model = graph.model._module
    if all(weight.is_meta for weight in model.parameters()):
        raise ModelError(
            f"{graph.name} was loaded without its weights (dispatch=False), so a folder cannot tell whose numbers it"
            " holds: load it with them, run it on NDIF (remote=True), or on workers (mmf.flow(..., workers=N))."
        )
    return weights_digest(model)


def _quantisation(config: object) -> str:
    given = getattr(config, "quantization_config", None)
    if given is None:
        return ""
    plain = given if isinstance(given, dict) else given.to_dict()
    return ", ".join(f"{name}={plain[name]}" for name in sorted(plain))


def _tower_attention(graph: Graph) -> str:
    """The attention implementation of the vision tower, which need not be the language model's."""
    towers = [getattr(graph.adapter.config, name, None) for name in ("vision_config", "vision_tower_config")]
    return next((str(config._attn_implementation) for config in towers if config is not None), "")


def _compared(plain: dict) -> dict:
    return {
        name: _compared(value) if isinstance(value, dict) else value
        for name, value in plain.items()
        if name not in NOT_COMPARED and not str(name).startswith("_attn_implementation")
    }


def _tokenizer(graph: Graph) -> str:
    """The fingerprint of what ids mean: answers are tokenised, and what is generated is read."""
    from nnsight_mmflow.runs.sweep import end_tokens

    tokenizer = graph.processor.tokenizer
    words = "\n".join(f"{number} {word!r}" for word, number in sorted(tokenizer.get_vocab().items()))
    return fingerprint([words, tokenizer.special_tokens_map, sorted(end_tokens(graph))])


def _reduced(edit: object) -> object:
    """A stored edit of an nnsight model, as it would travel: its source and the values that it uses."""
    state: dict = edit.__getstate__()  # type: ignore[assignment]
    return state["reduced"]


def prompt_identity(prompt: Prompt) -> str:
    """The fingerprint of a prompt's content: tensors, text, spans (added ones too), answer, options, boxes.

    Its key and kind are labels: a prompt that is called otherwise is the same prompt.
    """
    inputs = dict(prompt.inputs)
    return fingerprint(
        [prompt.text, prompt.question, inputs, prompt.spans, prompt.answer, prompt.options, prompt.boxes]
    )


def _patterns(patterns: Iterable[object]) -> list[str]:
    return [fingerprint(pattern) for pattern in patterns]


def drawn_by(seed: int, *given: object) -> int:
    """The seed of a draw that belongs to what is drawn for: the same wherever it stands in a list."""
    return int(fingerprint([seed, *given])[:15], 16)


def identities(prompts: list[Prompt]) -> list[str]:
    """What the journal calls each prompt: its key, for people, and its identity."""
    return [f"{prompt.key}:{prompt_identity(prompt)}" for prompt in prompts]
