"""Sweeps over anything: what each of many interventions does to the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

from nnsight_mmflow._kinds import choice
from nnsight_mmflow._progress import say
from nnsight_mmflow.inside.plan import ROW_BUDGET
from nnsight_mmflow.patterns.sweep.cells import Cell, cells_of, check_controls, control_of
from nnsight_mmflow.patterns.sweep.result import SweepResult, collect
from nnsight_mmflow.patterns.sweep.run import Part, cost, measure, part_of
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.fingerprint import fingerprint
from nnsight_mmflow.runs.identity import prompt_identity
from nnsight_mmflow.runs.results import versions
from nnsight_mmflow.runs.right_answers import check_answers
from nnsight_mmflow.runs.runner import Study, listed, prompt_task, run_study
from nnsight_mmflow.runs.scores import (
    WHOLE,
    Score,
    Scored,
    check_score,
    check_scored,
    readings,
    score_identity,
    score_name,
)

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.workers import Workers

ENGINES = ("rows", "forward")


@experiment
def sweep(
    graph: Graph,
    prompts: Prompt | Sequence[Prompt],
    make: Callable[..., Pattern | Sequence[Pattern]],
    over: Iterable[object] | Mapping[str, Iterable[object]],
    score: Score = "first",
    *,
    only_correct: bool = True,
    controls: int = 0,
    engine: str = "rows",
    row_budget: int = ROW_BUDGET,
    max_new_tokens: int = 16,
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> SweepResult:
    """A SweepResult: for each prompt and x what the patterns of make(x) do to the answer.

    Every x is made and checked, for every prompt, before any forward. Patterns that change attention masks alone
    (Knockout, Bias) run as rows of a few forwards, as flow's do; others by one forward each. Both agree.

    Args:
        graph: the model.
        prompts: one or several.
        make: gives the pattern, or a list of patterns, for an x.
        over: the x, each handed to make(x): layers, ranges of layers, strengths, spans, budgets; pairs, such as
            itertools.product gives, are two axes. Functions go by their names, tensors are numbered. Or a mapping of
            one or two lists by name, {"layer": range(8), "head": range(4)}: each of their product is handed to
            make(layer=..., head=...).
        score: as in `mmf.flow`: "first", "answer", "options", or a function (logits, prompt) -> float. With a whole
            answer, patterns whose `target` or `at` holds the prompt's last position go on over the answer's tokens
            behind it; a Patch writes the prompt's own positions alone.
        only_correct: leave out prompts that the model answers otherwise, and count them; False counts every prompt,
            and then none needs an answer.
        controls: how often each x is repeated with as many random other positions (of the same part of the prompt,
            where it has enough) in the place of the patterns' `source` or `at`.
        engine: "rows", or "forward" (one forward for every cell: the slow reference).
        row_budget: positions that one chunk of rows may hold; lower it if memory runs out.
        max_new_tokens: how long the model's own answer may get.
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        NoEffectError: an x at which nothing would change; which, is told.
        MMFlowError: no x, or a pattern that cannot act so; a prompt without an answer, or none that counts.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> quiet = {"progress": False, "report": lambda text: None}
        >>> def closed(layer):
        ...     return mmf.Knockout(source="image", target="last", layers=layer)
        >>> result = mmf.sweep(graph, mmf.nano.prompts(graph, 2), closed, range(4), **quiet)
        >>> len(result.to_frame())
        8
    """
    graph = graph.at(remote)
    given = listed(prompts, "sweep")
    check_score(score, "sweep")
    choice("engine", engine, ENGINES)
    check_answers(given, "sweep", only_correct=only_correct)
    why = check_scored(given, score, "sweep")
    columns, cells = cells_of(make, over, tokens=score == WHOLE)
    if controls:
        check_controls(cells, columns)
    lacking, tasks = 0, []
    for prompt, reason in zip(given, why, strict=True):
        every = [*cells, *_controls(graph, prompt, cells, controls)]
        lacking += len(cells) * (1 + controls) - len(every)
        held = [Scored(prompt, None)] if reason else readings(graph, prompt, score)
        parts = tuple(part_of(graph, one, every, columns, engine, row_budget) for one in held)
        named = [[cell.control, *cell.labels] for cell in every]
        given_to = (parts, named, only_correct, max_new_tokens, reason)
        tasks.append(prompt_task(prompt, prompt_identity(prompt), *given_to))
    told = {
        "over": [list(cell.labels) for cell in cells],
        "axes": list(columns),
        "only_correct": only_correct,
        "controls": controls,
        "max_new_tokens": max_new_tokens,
    }
    settings = {"model": graph.name, **told, "score": score_name(score), "engine": engine, "attention": graph.backend}
    settings |= {"n_layers": graph.n_layers, "patterns": repr(cells[0].patterns), "versions": versions()}

    def planned(task_given: tuple) -> tuple[Part, ...]:
        return task_given[1]

    study = Study(
        name="sweep",
        settings={
            **told,
            **score_identity(score),
            "engine": engine,
            "patterns": fingerprint([cell.patterns for cell in cells]),
        },
        tasks=tasks,
        measure=measure,
        collect=lambda entries: collect(given, entries, columns, settings, lacking),
        cost=lambda left: cost([planned(task.given) for task in left]),
        cells=lambda task, kept: (kept["cells"], () if kept.get("why") else task.given[2]),
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def _controls(graph: Graph, prompt: Prompt, cells: tuple[Cell, ...], draws: int) -> list[Cell]:
    """The controls of a prompt's cells, as far as it has positions for them."""
    if not draws:
        return []
    seed = prompt.digest()
    found = [control_of(graph, prompt, cell, draw, seed) for cell in cells for draw in range(1, draws + 1)]
    return [one for one in found if one is not None]
