"""How often the model writes the right answer, with patterns and without."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._kinds import came
from nnsight_mmflow._later import later
from nnsight_mmflow._progress import say
from nnsight_mmflow.model.forms import form_of
from nnsight_mmflow.model.generation_settings import plain_settings, settings_used
from nnsight_mmflow.model.together import check_counted, check_together
from nnsight_mmflow.patterns.accuracy_result import AccuracyResult
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.fingerprint import fingerprint
from nnsight_mmflow.runs.identity import prompt_identity, prompt_names
from nnsight_mmflow.runs.results import versions
from nnsight_mmflow.runs.runner import Study, Task, listed, run_study

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.workers import Workers

Match = str | Callable[["Prompt", str], float]
LEAST, MORE = 16, 8  # tokens that an answer may get; more than the longest right one, so that none is cut to fit


@experiment
def accuracy(
    graph: Graph,
    prompts: Prompt | Sequence[Prompt],
    *patterns: Pattern,
    match: Match = "exact",
    max_new_tokens: int | None = None,
    batch_size: int = 8,
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> AccuracyResult:
    """An AccuracyResult: what the model writes for each prompt, greedily, with the patterns and without.

    Args:
        graph: the model.
        prompts: one or several; those without an answer are left out and counted.
        patterns: what is done, as in `graph.generate`; none measures the model as it is.
        match: what is right. "exact": the whole answer, whatever its case and the space around it. "gqa": that without
            a full stop at the end. "vqa" (also "textvqa"): in VQA's normal form. "pope": yes or no, by its first
            sentence. "scienceqa", "aokvqa": the option's letter. Or a function (prompt, written) -> 0 to 1, such as
            `mmf.data.read_benchmark(...).judge`, which knows several right answers.
        max_new_tokens: how long an answer may get; None: 16, or 8 more than the longest right answer if that is more.
        batch_size: prompts in one generation; 1 where a pattern names a Span, whose positions are one prompt's.
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        MMFlowError: an unknown rule, no prompt with an answer, a rule's number outside 0 to 1.
        NoEffectError: a pattern that would change nothing.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> quiet = {"progress": False, "report": lambda text: None}
        >>> blind = mmf.Knockout(source="image", target="~image", layers=range(graph.n_layers), when="all")
        >>> result = mmf.accuracy(graph, mmf.nano.prompts(graph, 6), blind, **quiet)
        >>> result.accuracy < result.clean_accuracy
        True
    """
    graph = graph.at(remote)
    every = listed(prompts, "accuracy")
    judge = judged_by(match)
    given = [prompt for prompt in every if prompt.answer is not None]
    if not given:
        raise MMFlowError(
            f"accuracy: none of {len(every)} prompts has an answer, so it cannot be said whether the model is right."
            " Give answer= to graph.prompt."
        )
    for prompt in given:
        judge(prompt, str(prompt.answer))  # a rule that fails does so before any forward
    tokenizer = graph.processor.tokenizer
    longest = max(len(tokenizer(str(prompt.answer), add_special_tokens=False).input_ids) for prompt in given)
    length = max_new_tokens or max(LEAST, longest + MORE)
    used = plain_settings(graph, max_new_tokens=length)
    for prompt in given if patterns else ():
        form = form_of(graph, used, (1, len(prompt)))
        if len(patterns) > 1:
            check_together(graph, patterns, prompt.rows())
            check_counted(graph, patterns, prompt.rows())
        for pattern in patterns:
            pattern.check_written(form)
            pattern.check(graph, prompt.rows(), form)
    alone = any(
        hasattr(getattr(one, name, None), "positions") for one in patterns for name in ("source", "target", "at")
    )
    ways: dict[str, tuple[Pattern, ...]] = {"clean": ()}
    if patterns:
        ways[fingerprint(patterns)] = patterns
    tasks = [
        Task(
            f"{way}: {prompt_identity(prompt)}",
            (prompt, chosen, used),
            f"prompt {prompt.key or prompt.question!r}",
            way,
        )
        for way, chosen in ways.items()
        for prompt in given
    ]

    def collect(entries: list[dict]) -> AccuracyResult:
        import pandas as pd

        n = len(given)
        clean, written = ([entry["written"] for entry in held] for held in (entries[:n], entries[-n:]))
        names = [name for name, prompt in zip(prompt_names(every), every, strict=True) if prompt.answer is not None]
        rows = [
            {
                "prompt": name,
                "kind": prompt.kind,
                "question": prompt.question,
                "answer": prompt.answer,
                "generated": now,
                "clean": was,
                "right": judge(prompt, now),
                "clean_right": judge(prompt, was),
                "agrees": now == was,
            }
            for name, prompt, now, was in zip(names, given, written, clean, strict=True)
        ]
        header: dict[str, object] = {
            "model": graph.name,
            "patterns": [str(one) for one in patterns],
            "match": match if isinstance(match, str) else getattr(match, "__name__", type(match).__name__),
            "max_new_tokens": length,
            "generation": settings_used(graph, used),
            "batch_size": batch_size,
            "attention": graph.backend,
            "n_prompts": len(every),
            "n_counted": n,
            "left_out": {"no answer": len(every) - n} if len(every) > n else {},
            "versions": versions(),
        }
        return AccuracyResult(pd.DataFrame(rows), header)

    study = Study(
        name="accuracy",
        settings={"max_new_tokens": length, "generation": settings_used(graph, used)},
        tasks=tasks,
        measure=write,
        measure_batch=write_together,
        batch_size=1 if alone else batch_size,
        collect=collect,
        cost=lambda left: (
            f"{len(given)} prompts, {'with patterns and without' if patterns else 'without patterns'}, up to {length}"
            f" tokens each, {1 if alone else batch_size} at once."
        ),
        unit="generation",
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def judged_by(match: Match) -> Callable[[Prompt, str], float]:
    """(prompt, written) to how right that is, 0 to 1.

    Raises:
        MMFlowError: an unknown rule; when called, a number outside 0 to 1.
    """
    if not isinstance(match, str):
        if not callable(match) or isinstance(match, type):
            raise MMFlowError(f"accuracy: match is a rule's name or a function (prompt, written); {came(match)} came.")
        return lambda prompt, written: _checked(match, prompt, written)
    if match == "exact":
        return lambda prompt, written: float(prompt.accepts(written))
    rules: Mapping[str, Callable[[str, tuple[str, ...]], float]] = later("answer_rules")()
    if match not in rules:
        raise MMFlowError(
            f"accuracy: match={match!r} is no rule; there are exact, {', '.join(rules)}, or a function"
            " (prompt, written)."
        )
    return lambda prompt, written: rules[match](written, (str(prompt.answer),))


def _checked(match: Callable[[Prompt, str], float], prompt: Prompt, written: str) -> float:
    try:
        found = match(prompt, written)
    except Exception as error:
        raise MMFlowError(
            f"accuracy: match failed for {written!r} (right: {prompt.answer!r}): {type(error).__name__}: {error}. It is"
            " called as match(prompt, written) and gives 0 to 1, whatever the model writes."
        ) from error
    try:
        value = float(found)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 <= value <= 1:
        raise MMFlowError(
            f"accuracy: match gave {came(found)} for {written!r} (right: {prompt.answer!r}): 0 to 1, or True and False."
        )
    return value


def write(graph: Graph, prompt: Prompt, patterns: tuple[Pattern, ...], settings: Mapping[str, object]) -> dict:
    """What the journal keeps of one prompt."""
    return write_together(graph, [(prompt, patterns, settings)])[0]


def write_together(graph: Graph, given: list[tuple[Prompt, tuple[Pattern, ...], Mapping[str, object]]]) -> list[dict]:
    """What the journal keeps of prompts under the same patterns: what the model writes, in one generation."""
    (_, patterns, settings), prompts = given[0], [prompt for prompt, *_ in given]
    batch = graph.batch(prompts) if len(prompts) > 1 else prompts[0]
    with torch.no_grad(), graph.generate(batch, *patterns, **settings) as tracer:
        ids = tracer.result.save()
    length = batch.inputs["input_ids"].shape[1]
    texts = graph.processor.tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
    return [{"written": text.strip()} for text in texts]
