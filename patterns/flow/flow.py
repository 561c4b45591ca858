"""Layer-by-layer knockout curves: where in depth does information flow from one span to another?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.inside.plan import ROW_BUDGET
from nnsight_mmflow.patterns.flow.job import submit
from nnsight_mmflow.patterns.flow.measure import CHUNKS_PER_REQUEST, measure, measure_in_parts
from nnsight_mmflow.patterns.flow.plan import cost, plan_of, travels
from nnsight_mmflow.patterns.flow.result import FlowResult, collect
from nnsight_mmflow.patterns.flow.scored import Sweep, cells_wanted, measure_scored, scored_parts
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.identity import identities
from nnsight_mmflow.runs.results import versions
from nnsight_mmflow.runs.right_answers import check_answers
from nnsight_mmflow.runs.runner import Study, listed, prompt_task, run_study
from nnsight_mmflow.runs.scores import CAPTION, FIRST, Score, check_score, score_identity, score_name

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.job import Job
    from nnsight_mmflow.runs.journal import Journal
    from nnsight_mmflow.runs.workers import Workers

ENGINES = ("rows", "forward")


@experiment
def flow(
    graph: Graph,
    prompts: Prompt | Sequence[Prompt],
    edges: Sequence[str] | None = None,
    window: int | Sequence[int] = 9,
    *,
    score: Score = "first",
    only_correct: bool = True,
    engine: str = "rows",
    folder: str | PathLike[str] | None = None,
    row_budget: int = ROW_BUDGET,
    max_new_tokens: int | None = None,
    chunks_per_request: int = CHUNKS_PER_REQUEST,
    controls: int = 0,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> FlowResult:
    """A FlowResult: for each prompt, edge and centre layer, how the answer's probability changes under knockout.

    The answer is the first token that the model itself generates, unless `score` says more; every window of layers
    around a centre is blocked at once, all heads, in the prompt's forward.

    With a whole answer its tokens stand behind the prompt (teacher forcing), as the span `answer`: "image->answer" and
    "answer->last" are edges too. A target that holds the prompt's last position goes on over them, so that image->last
    stays closed while the whole answer is read, as `when="all"` does in a generation. Other targets, such as
    `question`, and all sources stay the prompt's own positions.

    Args:
        graph: the model.
        prompts: one or several, with `answer` set; those that the model answers otherwise (lower case, stripped) are
            left out and counted.
        edges: "source->target" each, any span expressions. None takes the paper's four, with boxes given also
            object->question and other->question, with options given also true_option->last, false_option->last and
            question_without_options->last.
        window: how many consecutive layers, truncated at both ends; several sizes in one call are allowed. Truncation
            puts layer 0 into every early window, so window=1 is worth a look.
        score: "first": the probability of the first token of the model's own answer. "answer": the log-probability of
            all tokens of the prompt's answer, as it is written there (capital letters too), without an end token; also
            token by token (`by_token`). "options": how far the true option is ahead of the false one, the difference of
            their logits (of several tokens: of their log-probabilities, each summed over its tokens); prompts without
            options are left out and counted. "caption": what the model itself writes, up to max_new_tokens (20 unless
            given), the mean log-probability per token; no answer is needed, and all prompts count. Or a function
            (logits, prompt) -> float: float32 logits (positions, vocabulary) where the prompt's answer is predicted, at
            one position without an answer; on a server the prompt comes without its picture and tensors.
        only_correct: False counts every prompt, whatever it answers; then none needs an answer.
        engine: "rows" (a few forwards in all) or "forward" (one per window: the slow reference).
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        row_budget: positions that one chunk of rows may hold; lower it if memory runs out.
        max_new_tokens: how long an answer may get, 16 unless given; a longer one counts as wrong.
        controls: how many each edge gets: as many random other positions closed to the same target (spans of
            the same size, from the same part of the prompt where it has enough; see `patterns.controls`). They are
            edges like any other, "control 1: object->question"; plots show them in grey, `diagram` takes its threshold
            from them.
        chunks_per_request: on a server, how many chunks of rows one request may hold; lower it if a server ends jobs
            that take too long. Chunks that came back are kept in the folder.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`. Each has a model of its own;
            a graph loaded with dispatch=False takes no memory here.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result. On a server it needs a folder and returns a FlowJob: its work goes on there without this process.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        NoEffectError: an edge that would change nothing.
        MMFlowError: no prompt counted, or one without the boxes, options or answer that are asked for.

    Source: Cross-modal Information Flow in MLLMs (arXiv 2411.18620).

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> result = mmf.flow(graph, mmf.nano.prompts(graph, 2), window=3, progress=False, report=lambda text: None)
        >>> sorted(result.to_frame().columns)[:3]
        ['answer', 'answer_changed', 'base_probability']
    """
    graph = graph.at(remote)
    prompt_list = listed(prompts)
    windows = (window,) if isinstance(window, int) else tuple(window)
    check_score(score, "flow", CAPTION)
    caption = score == CAPTION
    only_correct = only_correct and not caption
    longest = max_new_tokens or (20 if caption else 16)
    _check(prompt_list, windows, only_correct, engine, chunks_per_request)
    how, first = Sweep(None if edges is None else tuple(edges), windows, controls, row_budget), score == FIRST
    if first:
        planned, why = plan_of(graph, prompt_list, edges, windows, controls, row_budget), [""] * len(prompt_list)
    else:
        planned, why, parts = scored_parts(graph, prompt_list, score, how, longest)
    settings = {
        "model": graph.name,
        "edges": planned.edges,
        "windows": windows,
        "only_correct": only_correct,
        "max_new_tokens": longest,
        "attention": graph.backend,
        "versions": versions(),
    }
    if controls:
        settings["controls"] = controls
    most = chunks_per_request if blocking else sys.maxsize  # a job is one request
    kept: dict[str, object] = {"edges": "default" if edges is None else list(edges), "windows": windows}
    kept |= {"only_correct": only_correct, "max_new_tokens": longest, "engine": engine, **score_identity(score)}
    extra: list[tuple] = [()] * len(prompt_list)
    if not first:
        settings["score"] = score_name(score)
        extra = [(one, how if caption else None, most, reason) for one, reason in zip(parts, why, strict=True)]
    tasks = [
        prompt_task(prompt, name, spans, plan, only_correct, engine, longest, *more)
        for name, prompt, spans, plan, more in zip(
            identities(prompt_list), prompt_list, planned.spans, planned.plans, extra, strict=True
        )
    ]

    def collected(entries: list[dict]) -> FlowResult:
        if controls:
            settings["prompts_without_control"] = dict(planned.lacking)
        return collect(prompt_list, entries, planned.missing, settings, planned.plans, engine)

    def sent(there: Graph, journal: Journal) -> Job[FlowResult]:
        asked = {"edges": edges, "window": window, "only_correct": only_correct, "row_budget": row_budget}
        asked |= {"max_new_tokens": longest, **({"controls": controls} if controls else {})}
        return submit(there, tasks, asked, folder, journal, engine)

    study = Study(
        name="flow",
        keyed=True,
        settings={**kept, "controls": controls or None},
        tasks=tasks,
        measure=measure if first else measure_scored,
        measure_there=(lambda there, journal, task: measure_in_parts(there, journal, task, most)) if first else None,
        collect=collected,
        cost=lambda left: cost(left, engine) + (travels(left, most) if graph.remote else ""),
        cells=lambda task, kept: (
            kept["cells"],
            () if _left_out(kept, only_correct) else cells_wanted(task.given[2], kept),
        ),
        submit=sent if first else None,
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def _left_out(kept: dict, only_correct: bool) -> bool:
    return bool(kept.get("why")) or (only_correct and not kept["correct"])


def _check(prompts: list[Prompt], windows: tuple[int, ...], only_correct: bool, engine: str, per_request: int) -> None:
    if not prompts:
        raise MMFlowError("flow needs at least one prompt, but got none.")
    if not windows or any(size < 1 for size in windows):
        raise MMFlowError(f"window={windows} must be one or more sizes of at least 1 layer.")
    if engine not in ENGINES:
        raise MMFlowError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}.")
    if per_request < 1:
        raise MMFlowError(f"chunks_per_request={per_request}: a request holds at least 1 chunk of rows.")
    check_answers(prompts, "flow", only_correct=only_correct)
