"""One way to run an experiment: its cost is told, finished prompts are kept, workers help, a job goes on beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._later import later
from nnsight_mmflow._progress import progress_bar, say
from nnsight_mmflow.prompts.prompt import Prompt
from nnsight_mmflow.runs.experiment import in_turn_and_words
from nnsight_mmflow.runs.identity import journal_of
from nnsight_mmflow.runs.job import Job
from nnsight_mmflow.runs.results import Result, saved
from nnsight_mmflow.runs.workers import Workers, as_workers

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.runs.journal import Journal

Found = TypeVar("Found", bound=Result)
Cells = Iterable[Sequence[object]]
CellPair = tuple[Cells, Cells]  # those that an entry has, those that it must have


@dataclass(frozen=True)
class Task:
    """What is measured at a time: mostly one prompt.

    Attributes:
        identity: its name in the folder's journal.
        given: what `measure` takes behind the graph: plain values and prompts, which travel to workers.
        name: what errors call it.
        batch: tasks that stand side by side and have the same text here are measured together; "" for none.
    """

    identity: str
    given: tuple
    name: str
    batch: str = ""


def prompt_task(prompt: Prompt, identity: str, *given: object) -> Task:
    """The task that is one prompt: it is handed to `measure` first, then what is given."""
    return Task(identity, (prompt, *given), f"prompt {prompt.key or prompt.question!r}")


def listed(prompts: Prompt | Sequence[Prompt], what: str = "") -> list[Prompt]:
    """One prompt or several, as a list.

    Raises:
        MMFlowError: none, where `what` names the experiment that needs one.
    """
    several = [prompts] if isinstance(prompts, Prompt) else list(prompts)
    if what and not several:
        raise MMFlowError(f"{what} needs at least one prompt, but got none.")
    return several


@dataclass(frozen=True, kw_only=True)
class Study(Generic[Found]):
    """An experiment as it is planned: pure, before anything runs.

    Attributes:
        name: of the experiment; no other one goes on with its folder.
        settings: by name, all that changes a number.
        tasks: what is measured; two of the same identity are measured once.
        measure: a function of a module: from the graph and what a task is given to what the journal keeps of it.
        measure_batch: the same for tasks that are measured together, from a list to a list.
        batch_size: how many, at most.
        keyed: identities are "key:identity", the key for people alone: under another one a prompt is the same.
        collect: from the kept entries, in the order of the tasks, to the result.
        cost: from the tasks that are left to what they will cost, in words; "" for nothing worth saying.
        cells: from a task and its entry to (the cells that it has, the cells that it must have).
        measure_there: the same as `measure` for a graph on a server, if tasks are kept there in parts.
        submit: how tasks become jobs of the server's own, if they do.
        keep: from the journal and the tasks that are left to what puts the large part of an entry elsewhere, before the
            journal has the rest; None: the journal has all.
        unit: what a task is called where they are counted.
    """

    name: str
    settings: Mapping[str, object]
    tasks: Sequence[Task]
    measure: Callable[..., dict]
    collect: Callable[[list[dict]], Found]
    measure_batch: Callable[[Graph, list[tuple]], list[dict]] | None = None
    batch_size: int = 1
    keyed: bool = False
    cost: Callable[[list[Task]], str] = lambda tasks: ""
    cells: Callable[[Task, dict], CellPair] | None = None
    measure_there: Callable[[Graph, Journal, Task], dict] | None = None
    submit: Callable[[Graph, Journal], Job[Found]] | None = None
    keep: Callable[[Journal, list[Task]], Callable[[dict], dict]] | None = None
    unit: str = "prompt"


def run_study(
    graph: Graph,
    study: Study[Found],
    *,
    folder: str | PathLike[str] | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> Found:
    """The result; with `blocking=False` a Job that gets it.

    Args:
        graph: the model, where it is to run.
        study: the plan.
        folder: where finished tasks are written as they are done, and the result; a run that was stopped goes on there.
        workers: how many processes measure, or `mmf.Workers`; 0: this one.
        blocking: wait for the result.
        progress: show a progress bar.
        report: where is told what it costs, and trouble with the folder.
    """
    asked = as_workers(graph, workers)
    crew = later("crew_of")(graph, asked, report) if asked else None
    opened = None if crew else journal_of(graph, folder, study.name, report, **study.settings)
    if blocking:
        return _run(graph, study, folder, crew, opened, progress, report, lambda: None)
    if study.submit is not None and graph.remote and opened is not None:
        with opened as journal:
            _begin(graph, study, journal, report)
            return study.submit(graph, journal)  # type: ignore[return-value]

    def beside(finished: Callable[[], None]) -> Found:
        def whole() -> Found:
            return _run(graph, study, folder, crew, opened, False, report, finished)

        return whole() if crew else in_turn_and_words(graph, whole)

    return Job(study.name, len(study.tasks), beside)  # type: ignore[return-value]


def _run(
    graph: Graph,
    study: Study[Found],
    folder: str | PathLike[str] | None,
    crew: Any,
    opened: Journal | None,
    progress: bool,
    report: Callable[[str], None],
    finished: Callable[[], None],
) -> Found:
    with ExitStack() as open_until_done:
        if crew is not None:
            crew = open_until_done.enter_context(crew)
            if folder is not None:  # whose numbers it holds, a worker may have to say
                graph = crew.known(graph)
        journal = opened or journal_of(graph, folder, study.name, report, **study.settings)
        open_until_done.enter_context(journal)
        left, before = _begin(graph, study, journal, report), replace(graph.traffic)
        for _ in range(len(study.tasks) - len(left)):
            finished()
        bundles = _bundles(study, left)
        keep = study.keep(journal, left) if study.keep is not None else None
        if crew is not None:
            jobs, names = [_job(study, bundle) for bundle in bundles], [bundle[0].name for bundle in bundles]
            measured = crew.results(entries_of, jobs, names)
        else:
            measured = _measured_here(graph, study, journal, bundles)
        for _ in progress_bar(bundles, study.name, shown=progress and len(bundles) > 1):
            entries = next(measured)["entries"]
            entries = entries if keep is None else [keep(entry) for entry in entries]
            journal.add(*entries)
            for _ in entries:
                finished()
        if graph.remote and left:
            report(f"{study.name}: {graph.traffic - before}.")
        result = study.collect([journal.done[identity] for identity in _identities(study, journal)])
        saved(result, folder, report)
    return result


def _identities(study: Study, journal: Journal) -> list[str]:
    identities = [task.identity for task in study.tasks]
    return journal.known(identities) if study.keyed else identities


def _begin(graph: Graph, study: Study, journal: Journal, report: Callable[[str], None]) -> list[Task]:
    """The tasks that are left, once those that are finished are looked at, and the cost is told."""
    identities = _identities(study, journal)
    for task, identity in zip(study.tasks, identities, strict=True):
        if identity in journal.done and study.cells is not None:
            journal.check(identity, *study.cells(task, journal.done[identity]))
    done = sum(identity in journal.done for identity in identities)
    left = [study.tasks[number] for number in journal.left(identities)]
    already = f", {done} done already" if done else ""
    planned = f"{study.name}: {len(left)} {study.unit}(s) to run{already}"
    cost = study.cost(left)
    report(f"{planned}; {cost}" if cost else f"{planned}.")
    return left


def _bundles(study: Study, left: list[Task]) -> list[list[Task]]:
    """The tasks, those together that are measured together."""
    bundles: list[list[Task]] = []
    for task in left:
        last = bundles[-1] if bundles else []
        if last and task.batch and task.batch == last[0].batch and len(last) < study.batch_size:
            last.append(task)
        else:
            bundles.append([task])
    return bundles


def _job(study: Study, bundle: list[Task]) -> tuple[Callable, bool, list[tuple[str, tuple]]]:
    """What `entries_of` takes behind the graph: plain values and functions of modules, which travel to workers."""
    together = study.measure_batch is not None and bool(bundle[0].batch)
    measure = study.measure_batch if together else study.measure
    assert measure is not None
    return measure, together, [(task.identity, task.given) for task in bundle]


def _measured_here(graph: Graph, study: Study, journal: Journal, bundles: list[list[Task]]) -> Iterator[dict]:
    for bundle in bundles:
        if graph.remote and study.measure_there is not None:
            made = [{"id": task.identity, **study.measure_there(graph, journal, task)} for task in bundle]
            yield {"entries": made}
        else:
            yield entries_of(graph, *_job(study, bundle))


def entries_of(graph: Graph, measure: Callable, together: bool, tasks: list[tuple[str, tuple]]) -> dict:
    """What the journal keeps of tasks; the same on a worker as here."""
    measured = (
        measure(graph, [given for _, given in tasks])
        if together
        else [measure(graph, *arguments) for _, arguments in tasks]
    )
    return {"entries": [{"id": identity, **kept} for (identity, _), kept in zip(tasks, measured, strict=True)]}


def rows_of(prompts: Sequence[Prompt], entries: Sequence[dict]) -> list[dict]:
    """The rows of all entries, each with its prompt's key (or number) and kind in front."""
    return [
        {"prompt": prompt.key or str(number), "kind": prompt.kind, **row}
        for number, (prompt, entry) in enumerate(zip(prompts, entries, strict=True))
        for row in entry["rows"]
    ]


def row_cells(*columns: str, planned: Callable[[Task, dict], Cells]) -> Callable[[Task, dict], CellPair]:
    """The `cells` of a study whose entries hold rows: what tells rows apart, and the rows that there must be."""
    return lambda task, entry: ([[row[name] for name in columns] for row in entry["rows"]], planned(task, entry))


def counted(reasons: Sequence[str]) -> dict[str, object]:
    """What a header says of the prompts: how many there are, how many count, and why others were left out.

    Args:
        reasons: for each prompt why it is left out; "" if it counts.
    """
    left_out = Counter(reason for reason in reasons if reason)
    return {"n_prompts": len(reasons), "n_counted": reasons.count(""), "left_out": dict(left_out)}
