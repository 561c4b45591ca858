"""MultEdit: a fact written into the output projection of an MLP, at the question's constraint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from os import PathLike
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError, ModelError, NoEffectError
from nnsight_mmflow._progress import say
from nnsight_mmflow.model.pattern import layer_list
from nnsight_mmflow.model.split import whole_here
from nnsight_mmflow.patterns.edit.result import EditResult, edited_view, weight_digests
from nnsight_mmflow.patterns.edit.update import Update, solve
from nnsight_mmflow.patterns.edit.value import EditSettings, Fact, Found, find_changes, read_keys, settings_of
from nnsight_mmflow.remote.words import needs_gradients
from nnsight_mmflow.runs.answers import answer_scores
from nnsight_mmflow.runs.arrays import packed, unpacked
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.fingerprint import fingerprint
from nnsight_mmflow.runs.identity import prompt_identity
from nnsight_mmflow.runs.results import versions
from nnsight_mmflow.runs.runner import Study, Task, run_study

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.runs.workers import Workers


@experiment
def edit(
    graph: Graph,
    facts: Fact | Sequence[Fact],
    layers: int | Iterable[int],
    *,
    settings: str | EditSettings = "paper",
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> EditResult:
    """An EditResult: the update of each layer's matrix, a graph with it (`edit.graph`), and what it did to each fact.

    For each fact, Adam finds what must be added to the MLP's output at the constraint's last token for the model to
    give the new answer. Then one closed form per layer gives the smallest change of the output projection that adds it,
    for all facts at once: rank one for one fact. With several layers the changes are found together; each layer's keys
    are read with the layers below it edited.

    The model's weights stay as they are: `edit.graph` is a second view with matrices of its own in these layers.
    `edit.apply()` writes into the weights, `edit.undo()` restores them bit for bit. On a server no weight is changed:
    `edit.graph` adds the same in every forward, and `apply` is refused.

    Args:
        graph: the model.
        facts: one `mmf.Fact(prompt=..., target=..., at=...)`, or several.
        layers: one layer or several.
        settings: "paper" (no clip, stop at 0.95), "released" (those of the released script, whose clip leaves the
            answer as it was), or `mmf.EditSettings(...)`.
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs. A server needs a key that NDIF trusts.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`. The matrices are made here,
            so the graph has its weights.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        NoEffectError: the model gives every new answer already, or the update is too small for the weights' type.
        MMFlowError: no fact, two facts at the same place, unknown settings.
        ModelError: the matrix is no plain floating-point weight (a quantised model), or an ordinary key on NDIF.

    Source: Understanding Information Storage and Transfer in MLLMs (arXiv 2406.04236), section 5.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> prompt = mmf.nano.prompts(graph, 1, "fact-flag")[0]
        >>> fact = mmf.Fact(prompt=prompt, target="thorpe", at="text('this place')")
        >>> result = mmf.edit(graph, fact, layers=3, progress=False, report=lambda text: None)
        >>> float(result.to_frame()["after"][0]) > 0.5
        True
    """
    graph = graph.at(remote)
    needs_gradients(graph, "edit")
    whole_here(graph, "edit")
    if not graph.remote:
        graph.check_weights({})  # workers find changes; matrices are made here
    facts = [facts] if isinstance(facts, Fact) else list(facts)
    chosen = layer_list(layers, graph.n_layers)
    settings = settings_of(settings)
    _check(graph, facts, chosen)
    tasks = [
        Task(_fact_identity(fact), (fact, chosen, settings), f"fact {fact.prompt.key or fact.prompt.question!r}")
        for fact in facts
    ]
    known = settings
    study = Study(
        name="edit",
        unit="fact",
        settings={"layers": chosen, "settings": asdict(known)},
        tasks=tasks,
        measure=measure,
        collect=lambda entries: _edited(graph, facts, chosen, [found_of(entry) for entry in entries], known),
        cost=lambda left: (
            f"layer(s) {chosen}; up to {known.steps} steps each, a step runs the prompt from the constraint on,"
            " forwards and backwards."
        ),
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def measure(graph: Graph, fact: Fact, layers: list[int], settings: EditSettings) -> dict:
    """What the journal keeps of a fact: the changes that give its answer, their norms' scale, and the way there."""
    value = find_changes(graph, fact, layers, settings)
    changes = {str(layer): change for layer, change in zip(layers, value.changes, strict=True)}
    return {"changes": packed(changes), "norms": value.norms, "probabilities": value.probabilities}


def found_of(entry: dict) -> Found:
    """The same, as it was found."""
    changes = unpacked(entry["changes"])
    return Found([changes[layer] for layer in sorted(changes, key=int)], entry["norms"], entry["probabilities"])


def _fact_identity(fact: Fact) -> str:
    """What makes a fact this one; what it is called does not count."""
    return fingerprint([prompt_identity(fact.prompt), fact.target, fact.position()])


def _edited(
    graph: Graph, facts: list[Fact], chosen: list[int], values: list[Found], settings: EditSettings
) -> EditResult:
    """The edit of all facts at once, from their changes."""
    if not any(bool(change.any()) for value in values for change in value.changes):
        raise NoEffectError(
            "the edit would change nothing: the model gives every new answer already with a probability above"
            f" {settings.stop_at}."
        )
    updates: dict[int, Update] = {}
    keys: dict[int, torch.Tensor] = {}
    edited = graph
    for number, layer in enumerate(chosen):
        keys[layer] = read_keys(edited, facts, layer)
        changes = torch.stack([value.changes[number] for value in values])
        updates[layer] = solve(keys[layer], changes.to(keys[layer]), settings.regulariser)
        edited = edited_view(graph, updates)
    if not graph.remote:
        check_written(graph, edited, chosen, settings)
    prompts, targets = [fact.prompt for fact in facts], [fact.target for fact in facts]
    before, after = (answer_scores(model, prompts, targets, settings.first_token) for model in (graph, edited))
    if graph.remote and before == after:  # no weight is here to compare; what the edit adds was rounded away
        raise NoEffectError(
            "the edit would change nothing: with it every answer is as probable as before, to the last bit. Is the clip"
            f" ({settings.clip}) meant? settings='paper' has none."
        )
    header = {
        "model": graph.name,
        "layers": chosen,
        "at": list(dict.fromkeys(fact.at for fact in facts)),
        "settings": asdict(settings),
        "n_facts": len(facts),
        "weights": weight_digests(graph, chosen),
        "versions": versions(),
    }
    return EditResult(_table(facts, chosen, values, keys, before, after, settings), header, updates, graph, edited)


def check_written(graph: Graph, edited: Graph, layers: list[int], settings: EditSettings) -> None:
    """Refuses an edit that the weights' type rounds away."""
    old, new = ([model.mlp_out(layer)._module.weight for layer in layers] for model in (graph, edited))
    if all(torch.equal(model, after) for model, after in zip(old, new, strict=True)):
        raise NoEffectError(
            f"the edit would change nothing: its update is smaller than {old[0].dtype} tells apart. Is the clip"
            f" ({settings.clip}) meant? settings='paper' has none."
        )


def _check(graph: Graph, facts: list[Fact], layers: list[int]) -> None:
    if not facts:
        raise MMFlowError("edit needs at least one fact, but got none.")
    if not layers:
        raise MMFlowError("edit needs at least one layer, but got none.")
    seen: dict[tuple[str, int], int] = {}
    for number, fact in enumerate(facts):
        place = (fact.prompt.digest(), fact.position())
        if place in seen:
            raise MMFlowError(
                f"facts {seen[place]} and {number} stand at the same position of the same prompt, so one key would need"
                " two values. Give one of them."
            )
        seen[place] = number
    for layer in layers:
        weight = getattr(graph.mlp_out(layer)._module, "weight", None)
        if weight is None or weight.ndim != 2 or not weight.is_floating_point():
            kind = type(graph.mlp_out(layer)._module).__name__
            raise ModelError(
                f"the MLP output projection of layer {layer} is a {kind} without a plain floating-point matrix: load"
                " the model without quantisation to edit it."
            )


def _table(facts, layers, values: list[Found], keys, before, after, settings):  # type: ignore[no-untyped-def]
    import pandas as pd

    rows = []
    for number, (fact, value) in enumerate(zip(facts, values, strict=True)):
        for i, layer in enumerate(layers):
            key = keys[layer][number]
            squared, change = float(key @ key), float(value.changes[i].norm())
            rows.append(
                {
                    "fact": fact.prompt.key or str(number),
                    "question": fact.prompt.question,
                    "target": fact.target,
                    "position": fact.position(),
                    "layer": layer,
                    "steps": len(value.probabilities) - 1,
                    "before": before[number][0],
                    "optimised": value.probabilities[-1],
                    "after": after[number][0],
                    "answered": after[number][1],
                    "change_norm": change,
                    "change_over_output": change / value.norms[i],
                    "key_norm": squared**0.5,
                    "reached": squared / (settings.regulariser + squared),
                }
            )
    return pd.DataFrame(rows)
