"""Does an edit hold? Efficacy, generalisation and specificity, beside fine-tuning and edits of other layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from os import PathLike
from typing import TYPE_CHECKING, ClassVar
from uuid import uuid4

from nnsight_mmflow._errors import MMFlowError, ModelError
from nnsight_mmflow._progress import say
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.model.pattern import layer_list
from nnsight_mmflow.patterns.edit.asked import Method, _named, _questions
from nnsight_mmflow.patterns.edit.asked import measure as measure_edit
from nnsight_mmflow.patterns.edit.value import EditSettings, Fact, settings_of
from nnsight_mmflow.remote.words import needs_gradients
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.fingerprint import fingerprint
from nnsight_mmflow.runs.results import Result, versions
from nnsight_mmflow.runs.right_answers import check_answers
from nnsight_mmflow.runs.runner import Cells, Study, Task, row_cells, run_study

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.workers import Workers

MEASURES = ("efficacy", "generalisation", "specificity")


class EditReport(Result):
    """How edits hold. One table row per method, edit, and prompt that was asked afterwards.

    Columns: method, edit (number), measure (efficacy: the edited prompt; generalisation: other prompts about the same
    fact; specificity: prompts about other things), way (what differs, or the other prompt's kind), prompt, answer (the
    right one now), probability and right (after the edit), right_before (specificity: whether it was answered rightly
    before the edit; else whether the new answer was given already).
    """

    kind: ClassVar[str] = "edit_report"
    drawn_by: ClassVar[str] = "report_figure"  # a panel per measure, a group per way, a bar per method

    def scores(self) -> pd.DataFrame:
        """A row per method, measure and way: right (share), low and high (95% over edits), probability, edits, prompts.

        Specificity counts prompts that were answered rightly before the edit. The interval resamples edits, since the
        prompts of one edit share its fate.
        """
        import numpy as np
        import pandas as pd

        from nnsight_mmflow.runs.results import bootstrap_band

        counted = self.table[(self.table["measure"] != "specificity") | self.table["right_before"]]
        rows = []
        for (method, measure, way), part in counted.groupby(["method", "measure", "way"], sort=False):
            each = part.groupby("edit")["right"].mean()
            mean, low, high = bootstrap_band(each.to_frame())
            rows.append(
                {
                    "method": method,
                    "measure": measure,
                    "way": way,
                    "right": float(np.squeeze(mean)),
                    "low": float(np.squeeze(low)),
                    "high": float(np.squeeze(high)),
                    "probability": part.groupby("edit")["probability"].mean().mean(),
                    "edits": len(each),
                    "prompts": len(part),
                }
            )
        return pd.DataFrame(rows)

    def overall(self) -> pd.DataFrame:
        """A row per method: efficacy, generalisation and specificity, the means over ways."""
        means = self.scores().groupby(["method", "measure"], sort=False)["right"].mean().unstack()
        return means.reindex(columns=[name for name in MEASURES if name in means])

    @checked
    def only(self, methods: Sequence[str]) -> EditReport:
        """The same with these methods alone.

        Raises:
            MMFlowError: a method that is not in it.
        """
        unknown = [name for name in methods if name not in self.header["methods"]]
        if unknown:
            raise MMFlowError(f"methods {unknown} are not in this report; it has {', '.join(self.header['methods'])}.")
        table = self.table[self.table["method"].isin(list(methods))].reset_index(drop=True)
        return EditReport(table, {**self.header, "methods": list(methods)})

    def summary(self) -> str:
        """The overall table, and what was run."""
        header = self.header
        return (
            f"{header['model']}: {header['n_facts']} facts, {header['together']} at once\n"
            + self.overall().map(lambda share: f"{share:.1%}").to_string()
        )


@experiment
def edit_report(
    graph: Graph,
    facts: Sequence[Fact],
    others: Sequence[Prompt],
    layers: int | Sequence[int],
    *,
    together: int = 1,
    control_layers: Sequence[int] = (),
    fine_tuning: bool = True,
    bound: float | None = None,
    settings: str | EditSettings = "paper",
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> EditReport:
    """An EditReport: each fact (or group of facts) is edited on its own, and the edited model is asked.

    Args:
        graph: the model; it stays as it is.
        facts: what to write; `fact.same` holds the prompts that generalisation is measured on.
        others: prompts about other things, with `answer` set, for specificity; those whose `key` is that of an edited
            fact, or of one of its `same`, are left out for that edit. Their `kind` tells ways apart.
        layers: where the edit goes.
        together: how many facts one edit writes.
        control_layers: single layers that are edited instead, for comparison: late ones, or all.
        fine_tuning: also fine-tune the same matrices.
        bound: also fine-tune them with each number held this near to where it was.
        settings: of the edits, as in `mmf.edit`.
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs. A server needs a key that NDIF trusts, and
            fine_tuning=False.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        MMFlowError: no facts, `together` larger than their number, or others without an answer.

    Source: arXiv 2406.04236, section 5 (figure 6 and figure 14).

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> facts = mmf.nano.edits(graph, 1)
        >>> others = mmf.nano.prompts(graph, 6)
        >>> quiet = {"progress": False, "report": lambda text: None}
        >>> result = mmf.edit_report(graph, facts, others, layers=3, fine_tuning=False, **quiet)
        >>> list(result.overall().columns)
        ['efficacy', 'generalisation', 'specificity']
    """
    graph = graph.at(remote)
    needs_gradients(graph, "edit_report")
    if graph.remote and (fine_tuning or bound is not None):
        raise ModelError(
            "fine-tuning trains weights, and those on a server are shared with others: give fine_tuning=False, or load"
            " the model here."
        )
    if bound is not None and bound <= 0:
        raise MMFlowError(f"bound={bound}: how far a number may move, above 0; None for no limit.")
    if not facts or not 0 < together <= len(facts):
        raise MMFlowError(f"{len(facts)} fact(s), {together} at once: at least one edit is needed.")
    check_answers(others, "edit_report", what="other prompts")
    where = layer_list(layers, graph.n_layers)
    controls = layer_list(control_layers, graph.n_layers) if len(control_layers) else ()
    known = settings_of(settings)
    methods = _methods(where, controls, fine_tuning, bound)
    groups = [list(facts[i : i + together]) for i in range(0, len(facts) - together + 1, together)]
    header = {
        "model": graph.name,
        "layers": where,
        "at": list(dict.fromkeys(fact.at for fact in facts)),
        "n_facts": len(groups) * together,
        "together": together,
        "methods": list(methods),
        "settings": asdict(known),
        "versions": versions(),
    }
    asked = sum(1 + sum(map(len, fact.same.values())) for group in groups for fact in group) + len(groups) * len(others)
    names = [fingerprint([_fact_identity(fact) for fact in group]) for group in groups]
    work = [(method, number) for method in methods for number in range(len(groups))]
    run = uuid4().hex
    tasks = [
        Task(
            f"{method}: {names[number]}",
            (methods[method], groups[number], list(others), where, known, run),
            f"{method}, edit {number}",
        )
        for method, number in work
    ]

    def collect(entries: list[dict]) -> EditReport:
        import pandas as pd

        rows = [
            {"method": method, "edit": number, **row}
            for (method, number), entry in zip(work, entries, strict=True)
            for row in entry["rows"]
        ]
        return EditReport(pd.DataFrame(rows), header)

    def planned(task: Task, entry: dict) -> Cells:
        return [(measure, way, answer) for measure, way, _, answer in _questions(task.given[1], others)[0]]

    # Keys and kinds matter here: they say which others an edit leaves out, and what the rows are called.
    study = Study(
        name="edit report",
        settings={"layers": where, "settings": asdict(known), "others": _named(others), "bound": bound},
        tasks=tasks,
        measure=measure_edit,
        collect=collect,
        cost=lambda left: (
            f"{', '.join(methods)}; each up to {known.steps} steps per fact;"
            f" {asked * len(methods)} prompts are asked afterwards."
        ),
        cells=row_cells("measure", "way", "answer", planned=planned),
        unit="edit",
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def _fact_identity(fact: Fact) -> str:
    """The fingerprint of a fact: its prompt, its place, the new answer, and what else it is asked with."""
    same = {way: _named(prompts) for way, prompts in fact.same.items()}
    return fingerprint([_named([fact.prompt]), fact.target, fact.position(), same])


def _methods(layers: list[int], controls: Sequence[int], fine_tuning: bool, bound: float | None) -> dict[str, Method]:
    """By name, how an edited model is made of facts."""
    where = f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
    methods: dict[str, Method] = {f"edit, {where}": ("edit", layers)}
    methods |= {f"edit, layer {layer}": ("edit", [layer]) for layer in controls if [layer] != layers}
    if fine_tuning:
        methods[f"fine-tuning, {where}"] = ("fine-tuning", None)
    if bound is not None:
        methods[f"fine-tuning within {bound:g}, {where}"] = ("fine-tuning", bound)
    return methods
