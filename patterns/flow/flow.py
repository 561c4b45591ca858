"""Layer-by-layer knockout curves: where in depth does information flow from one span to another?"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from nnsight_mmflow.patterns.flow.controls import with_controls
from nnsight_mmflow.patterns.flow.edges import NEEDS, default_edges, named_spans
from nnsight_mmflow.patterns.flow.job import FlowJob, submit
from nnsight_mmflow.patterns.flow.measure import (
    CHUNKS_PER_REQUEST,
    expected_bytes,
    first_position,
    measure_there,
    requests_of,
)
from nnsight_mmflow.patterns.flow.reference import run_by_forwards
from nnsight_mmflow.patterns.flow.result import FlowResult, collect

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import progress_bar, say
from nnsight_mmflow.inside.plan import ROW_BUDGET, Plan
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.identity import identities, journal_of
from nnsight_mmflow.runs.plan import make_plan, sizes_of
from nnsight_mmflow.runs.results import saved, versions
from nnsight_mmflow.runs.sweep import answer_of, run_by_rows, run_clean

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.journal import Journal
    from nnsight_mmflow.spans.row_spans import Spans

ENGINES = ("rows", "forward")


@overload
def flow(
    graph: Graph,
    prompts: Prompt | Sequence[Prompt],
    edges: Sequence[str] | None = None,
    window: int | Sequence[int] = 9,
    *,
    blocking: Literal[False],
    **settings: Any,
) -> FlowJob: ...


@overload
def flow(
    graph: Graph,
    prompts: Prompt | Sequence[Prompt],
    edges: Sequence[str] | None = None,
    window: int | Sequence[int] = 9,
    *,
    blocking: Literal[True] = True,
    **settings: Any,
) -> FlowResult: ...


@experiment  # type: ignore[misc]  # the short forms above leave its settings out
def flow(
    graph: Graph,
    prompts: Prompt | Sequence[Prompt],
    edges: Sequence[str] | None = None,
    window: int | Sequence[int] = 9,
    *,
    only_correct: bool = True,
    engine: str = "rows",
    folder: str | PathLike[str] | None = None,
    row_budget: int = ROW_BUDGET,
    max_new_tokens: int = 16,
    chunks_per_request: int = CHUNKS_PER_REQUEST,
    control: int = 0,
    remote: bool | str | None = None,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
    measured_by: Callable[[Graph, list[tuple]], Iterator[dict]] | None = None,
) -> FlowResult | FlowJob:
    """A FlowResult: for each prompt, edge and centre layer, how the answer's probability changes under knockout.

    The answer is the first token that the model itself generates; every window of layers around a centre is blocked
    at once, all heads, in the prompt's forward.

    Args:
        graph: the model.
        prompts: one or several. With `answer` set, those that the model answers otherwise (lower case, stripped) are
            left out and counted.
        edges: "source->target" each, any span expressions. None takes the paper's four, with boxes given also
            object->question and other->question, with options given also true_option->last, false_option->last and
            question_without_options->last.
        window: how many consecutive layers, truncated at both ends; several sizes in one call are allowed. Truncation
            puts layer 0 into every early window, so window=1 is worth a look.
        only_correct: False counts every prompt, whatever it answers.
        engine: "rows" (a few forwards in all) or "forward" (one per window: the slow reference).
        folder: where finished prompts are written as they are done; a run that was stopped goes on from there.
        row_budget: positions that one chunk of rows may hold; lower it if memory runs out.
        max_new_tokens: how long an answer may get; a longer one counts as wrong.
        control: how many controls each edge gets: as many random other positions closed to the same target (spans of
            the same size, from the same part of the prompt where it has enough; see `patterns.controls`). They are
            edges like any other, "control 1: object->question"; plots show them in grey, `diagram` takes its threshold
            from them.
        chunks_per_request: on a server, how many chunks of rows one request may hold; lower it if a server ends jobs
            that take too long. Chunks that came back are kept in the folder.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        blocking: False sends everything and returns a FlowJob at once, for remote runs with a folder.
        progress: show a progress bar.
        report: where the cost is told before the run.
        measured_by: what measures the prompts that are left, in any order; None: this process. See `flow_on_workers`.

    Raises:
        NoEffectError: an edge that would change nothing.
        MMFlowError: no prompt counted, or one without the boxes, options or answer that are asked for.

    Source: Cross-modal Information Flow in MLLMs (arXiv 2411.18620), spec sections 2 to 4.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> result = mmf.flow(graph, mmf.nano.prompts(graph, 2), window=3, progress=False, report=lambda text: None)
        >>> sorted(result.to_frame().columns)[:3]
        ['answer', 'answer_changed', 'base_probability']
    """
    graph = graph.at(remote)
    from nnsight_mmflow.prompts.prompt import Prompt as OnePrompt

    prompts = [prompts] if isinstance(prompts, OnePrompt) else list(prompts)
    windows = (window,) if isinstance(window, int) else tuple(window)
    _check(prompts, windows, only_correct, engine, control)
    if chunks_per_request < 1:
        raise MMFlowError(f"chunks_per_request={chunks_per_request}: a request holds at least 1 chunk of rows.")
    named = [named_spans(prompt) for prompt in prompts]
    asked = tuple(edges) if edges is not None else default_edges(prompts)
    kept = [_kept(number, missing, asked, default=edges is None) for number, (_, missing) in enumerate(named)]
    reach, blocks = graph.adapter.sliding_window(), graph.adapter.bidirectional
    controls = [
        with_controls(spans, one, control, prompt.digest(), reach, blocks(spans))
        for prompt, (spans, _), one in zip(prompts, named, kept, strict=True)
    ]
    plans = [
        make_plan(sizes_of(graph, prompt), spans, one + more, windows, row_budget, blocks(spans))
        for prompt, one, (spans, more, _) in zip(prompts, kept, controls, strict=True)
    ]
    settings = {
        "model": graph.name,
        "edges": asked,
        "windows": windows,
        "only_correct": only_correct,
        "max_new_tokens": max_new_tokens,
        "attention": graph.backend,
        "versions": versions(),
    }
    if control:
        settings["control"] = control
    most = chunks_per_request if blocking else sys.maxsize  # a job is one request
    told: dict[str, object] = {"edges": "default" if edges is None else list(edges), "windows": windows}
    told |= {"only_correct": only_correct, "max_new_tokens": max_new_tokens, "engine": engine}
    with journal_of(graph, folder, "flow", report, **told, control=control or None) as journal:
        ids = journal.known(identities(prompts))
        for entry, plan in (
            (journal.done[one], plan) for one, plan in zip(ids, plans, strict=True) if one in journal.done
        ):
            left_out = only_correct and not entry["correct"]
            journal.check(entry["id"], entry["cells"], () if left_out else plan.cells)
        done = [identity in journal.done for identity in ids]
        report(_cost(plans, done, engine) + (_travels(prompts, plans, done, most) if graph.remote else ""))
        before = replace(graph.traffic)
        if not blocking:
            given = {"edges": edges, "window": window, "only_correct": only_correct, "row_budget": row_budget}
            given |= {"max_new_tokens": max_new_tokens, **({"control": control} if control else {})}
            work = list(zip(prompts, plans, ids, strict=True))
            return submit(graph, work, given, folder, journal, engine)
        left = [
            (prompts[n], controls[n][0], plans[n], ids[n], only_correct, engine, max_new_tokens)
            for n in journal.left(ids)
        ]
        measured = measured_by(graph, left) if measured_by else _measured_here(graph, left, most, journal)
        for _ in progress_bar(left, "flow", shown=progress):
            journal.add(next(measured))
        if graph.remote and engine == "rows":
            report(f"flow: {graph.traffic - before}.")
        entries = [journal.done[identity] for identity in ids]
        if control:
            lacking = Counter(edge for _, _, why in controls for edge in why)
            settings["prompts_without_control"] = dict(lacking)
        result = collect(prompts, entries, [missing for _, missing in named], settings, plans, engine)
        saved(result, folder, report)
    return result


def _check(prompts: list[Prompt], windows: tuple[int, ...], only_correct: bool, engine: str, control: int) -> None:
    if not prompts:
        raise MMFlowError("flow needs at least one prompt, but got none.")
    if not windows or any(size < 1 for size in windows):
        raise MMFlowError(f"window={windows} must be one or more sizes of at least 1 layer.")
    if engine not in ENGINES:
        raise MMFlowError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}.")
    if control < 0:
        raise MMFlowError(f"control={control}: how many controls each edge gets, 0 for none.")
    without = [number for number, prompt in enumerate(prompts) if prompt.answer is None]
    if only_correct and without:
        raise MMFlowError(
            f"{len(without)} of {len(prompts)} prompts have no answer (the first: number {without[0]}), so it cannot be"
            " said whether the model is right. Give answer= to graph.prompt, or only_correct=False to flow."
        )


def _kept(number: int, missing: dict[str, str], asked: tuple[str, ...], *, default: bool) -> tuple[str, ...]:
    """A prompt's edges; those that it lacks the spans for are left out if they were not asked for by name."""
    kept = []
    for edge in asked:
        lacking = {what for name, what in NEEDS.items() if name in edge.replace("->", " ").split() and what in missing}
        if not lacking:
            kept.append(edge)
        elif not default:
            raise MMFlowError(f"edge {edge!r} of prompt {number}: " + "; ".join(missing[what] for what in lacking))
    return tuple(kept)


def _cost(plans: list[Plan], done: list[bool], engine: str) -> str:
    left = [plan for plan, ready in zip(plans, done, strict=True) if not ready]
    naive = sum(plan.naive_flops for plan in left)
    needed = sum(plan.row_flops for plan in left) if engine == "rows" else naive
    rows = sum(plan.n_rows for plan in left)
    return (
        f"flow: {len(left)} prompt(s) to run{f', {sum(done)} done already' if any(done) else ''};"
        f" at most {rows} rows, {needed / 1e12:.3g} TFLOP by engine={engine!r}"
        f" (one forward per window: {naive / 1e12:.3g} TFLOP);"
        f" about {max((plan.bytes for plan in left), default=0) / 1e6:.0f} MB beside the weights."
    )


def _travels(prompts: list[Prompt], plans: list[Plan], done: list[bool], most: int) -> str:
    left = [
        expected_bytes(prompt, plan, most)
        for prompt, plan, ready in zip(prompts, plans, done, strict=True)
        if not ready
    ]
    requests = sum(requests_of(plan, most) for plan, ready in zip(plans, done, strict=True) if not ready)
    up, down = (sum(one[way] for one in left) / 1e3 for way in (0, 1))
    return f" {requests} request(s); at most {up:.0f} kB go up and {down:.0f} kB come back."


def _measured_here(graph: Graph, left: list[tuple], most: int, journal: Journal) -> Iterator[dict]:
    for given in left:
        prompt, _, plan, identity, only_correct, engine, max_new_tokens = given
        if graph.remote and engine == "rows":
            yield measure_there(graph, prompt, plan, identity, only_correct, max_new_tokens, most, journal)
        else:
            yield measure(graph, *given)


def measure(
    graph: Graph,
    prompt: Prompt,
    spans: Spans,
    plan: Plan,
    identity: str,
    only_correct: bool,
    engine: str,
    max_new_tokens: int,
) -> dict:
    """What the journal keeps of one prompt; the same on a worker as here."""
    if engine == "rows":
        clean = run_clean(graph, prompt, first_position(plan, prompt), max_new_tokens)
        text, (base, token) = clean.text, clean.numbers[0].tolist()
    else:
        plain = answer_of(graph, prompt, max_new_tokens)
        text, base, token = plain.text, plain.base, plain.token
    correct = prompt.answer is not None and text.lower() == prompt.answer.strip().lower()
    entry = {"id": identity, "prediction": text, "correct": correct, "base": base, "token": int(token)}
    if only_correct and not correct:
        return {**entry, "cells": [], "numbers": []}
    if engine == "rows":
        numbers = run_by_rows(graph, plan, clean)
    else:
        numbers = run_by_forwards(graph, plan, replace(prompt, spans=spans), torch.tensor(int(token)))
    return {**entry, "cells": [list(cell) for cell in plan.cells], "numbers": numbers.tolist()}
