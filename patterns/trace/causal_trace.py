"""MultiModalCausalTrace: which clean activations, put back into a corrupt run, bring the answer back?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow._progress import say
from nnsight_mmflow.inside.plan import ROW_BUDGET
from nnsight_mmflow.inside.restore import ORDER, Cell
from nnsight_mmflow.model.site_names import site_named
from nnsight_mmflow.patterns.trace.corruption import Corruption, corruption_identity, first_difference
from nnsight_mmflow.patterns.trace.result import SAME, CausalTraceResult, collect_trace
from nnsight_mmflow.patterns.trace.run import cost, measure
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.identity import drawn_by, prompt_identity
from nnsight_mmflow.runs.results import versions
from nnsight_mmflow.runs.right_answers import check_answers
from nnsight_mmflow.runs.runner import Cells, Study, Task, listed, prompt_task, run_study
from nnsight_mmflow.spans.windows import window_layers

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.workers import Workers

ENGINES = ("rows", "forward")
Spans = Mapping[str, Sequence[int]]


@experiment
def causal_trace(
    graph: Graph,
    clean: Prompt | Sequence[Prompt],
    corrupt: Corruption | Sequence[Corruption],
    spans: Sequence[str] | None = None,
    sites: Sequence[str] = ("mlp", "attn"),
    *,
    window: int = 1,
    each_position: bool = False,
    only_correct: bool = True,
    min_clean: float = 0.3,
    max_corrupt: float = 0.5,
    controls: int = 1,
    same_answer: Corruption | Sequence[Corruption] | None = None,
    engine: str = "rows",
    folder: str | PathLike[str] | None = None,
    row_budget: int = ROW_BUDGET,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> CausalTraceResult:
    """A CausalTraceResult: for each prompt, span, site and layer, how much of the answer clean activations bring back.

    The answer is the first token that the clean run generates. A cell's effect is P_restored - P_corrupt; its
    normalised form, the change of the log-probability and whether the top answer comes back stand beside it.

    Args:
        graph: the model.
        clean: one prompt or several.
        corrupt: for each its corrupt run, of the same length: replace_phrase, repeat_token, other_image, blank_image,
            masked_box or noisy_image in `mmf.corruption`.
        spans: expressions over the clean prompt's spans. None takes what the corruption can reach of: image, the
            constraint (the words that were replaced), the question behind it, the last position.
        sites: "mlp", "attn" (what they add to the residual stream), "resid" (the stream itself).
        window: how many consecutive layers around each centre, truncated at both ends (ROME's W). The released script's
            W, where it is above 1, counts on each side: window=2 * W + 1.
        each_position: restore each position of a span on its own, as the paper does, instead of the whole span.
        only_correct: leave out prompts that the model answers otherwise, and count them; False counts every prompt,
            and then none needs an answer.
        min_clean: leave out prompts whose clean probability is lower.
        max_corrupt: leave out prompts whose corrupt probability is more than this share of the clean one.
        controls: how often to restore, for each span, as many random positions that the corruption reaches (the span
            itself, the replaced words and the last position left out).
        same_answer: for each prompt another run, as long, that has the same answer (the same thing on another picture):
            restoring from it must do nothing. The rows "same answer: ..." show what it does.
        engine: "rows", or "forward" (one forward per cell: the slow reference).
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        row_budget: positions that one chunk of rows may hold.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        NoEffectError: a span that lies before the first position that the corruption changes, so that clean and
            corrupt activations are the same there; two runs that do not differ.
        MMFlowError: lengths that differ, a prompt without an answer, none that counts, arguments that contradict each
            other.

    Source: Understanding Information Storage and Transfer in MLLMs (arXiv 2406.04236).

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> one, other = mmf.nano.samples(2, "fact-flag")
        >>> prompt = graph.prompt(one.image, one.question, one.answer)
        >>> corrupt = mmf.corruption.other_image(graph, prompt, other.image)
        >>> result = mmf.causal_trace(graph, prompt, corrupt, progress=False, report=lambda text: None)
        >>> bool(result.to_frame()["effect"].max() > 0.1)
        True
    """
    graph = graph.at(remote)
    prompts = listed(clean)
    corruptions = [corrupt] if isinstance(corrupt, Corruption) else list(corrupt)
    sites = [_site(site) for site in sites]
    _check(prompts, corruptions, sites, window, engine)
    check_answers(prompts, "causal_trace", only_correct=only_correct)
    alike = [same_answer] if isinstance(same_answer, Corruption) else list(same_answer or ())
    if alike:
        _check(prompts, alike, sites, window, engine)
    stretches = [window_layers(centre, window, graph.n_layers) for centre in range(graph.n_layers)]
    places = [
        trace_spans(number, prompt, corruption, spans, each_position, controls)
        for number, (prompt, corruption) in enumerate(zip(prompts, corruptions, strict=True))
    ]
    likewise = [
        {f"{SAME}{name}": at for name, at in where.items() if not name.startswith("random")}
        for where, _ in zip(places, alike, strict=False)
    ]
    for number, (prompt, corruption) in enumerate(zip(prompts, alike, strict=False)):
        if first_difference(prompt, corruption)[0] >= len(prompt):
            raise NoEffectError(
                f"prompt {number} and its same-answer run are the same in every token and pixel: as a control it cannot"
                " fail. Give another picture of the same thing."
            )
    settings: dict[str, object] = {
        "model": graph.name,
        "spans": spans and list(spans),
        "sites": list(sites),
        "window": window,
        "each_position": each_position,
        "only_correct": only_correct,
        "min_clean": min_clean,
        "max_corrupt": max_corrupt,
        "controls": controls,
        "same_answer": list(dict.fromkeys(corruption.how for corruption in alike)),
        "attention": graph.backend,
        "versions": versions(),
    }
    runs = [*zip(prompts, corruptions, places, strict=True), *zip(prompts[: len(alike)], alike, likewise, strict=True)]
    planned = [
        [
            Cell(name, tuple(at), site, stretch.start, stretch.stop)
            for name, at in where.items()
            for site in sites
            for stretch in dict.fromkeys(stretches)
        ]
        for _, _, where in runs
    ]
    kept = {name: settings[name] for name in ("spans", "sites", "window", "each_position", "only_correct", "controls")}
    kept |= {"min_clean": min_clean, "max_corrupt": max_corrupt, "engine": engine}
    tasks = []
    for number, ((prompt, corruption, _), cells) in enumerate(zip(runs, planned, strict=True)):
        counts = number < len(prompts)  # what is left out is decided by the corrupt run, not by its control
        limits = (only_correct, min_clean, max_corrupt) if counts else (False, 0.0, math.inf)
        name = f"{'' if counts else 'control of '}{prompt_identity(prompt)}, {corruption_identity(corruption)}"
        tasks.append(prompt_task(prompt, name, corruption, cells, limits, engine, row_budget))

    def cells_of(task: Task, entry: dict) -> tuple[Cells, Cells]:
        wanted = () if entry["left_out"] else [(cell.span, cell.site, cell.first, cell.end) for cell in task.given[2]]
        return [cell[:4] for cell in entry["cells"]], wanted

    study = Study(
        name="causal trace",
        settings=kept,
        tasks=tasks,
        measure=measure,
        collect=lambda entries: collect_trace(runs, entries, len(prompts), sites, stretches, settings),
        cost=lambda left: cost(graph, [task.given[:3] for task in left], row_budget, engine),
        cells=cells_of,
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def _site(name: str) -> str:
    """The site of a name, ours or TransformerLens'; every layer is traced, so it names none."""
    site, layers = site_named(name, None, tuple(ORDER))
    if layers is not None or site not in ORDER:
        raise MMFlowError(f"{name!r} names one place; causal_trace restores every layer of {', '.join(ORDER)}.")
    return site


def _check(
    prompts: list[Prompt],
    corruptions: list[Corruption],
    sites: Sequence[str],
    window: int,
    engine: str,
) -> None:
    """Refuses arguments that do not fit."""
    if not prompts or len(prompts) != len(corruptions):
        raise MMFlowError(f"{len(prompts)} prompt(s) and {len(corruptions)} corruption(s): one for each is needed.")
    if not sites:
        raise MMFlowError(f"sites are of {', '.join(ORDER)}, not {list(sites)}.")
    if engine not in ENGINES:
        raise MMFlowError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}.")
    if window < 1:
        raise MMFlowError(f"a window holds at least 1 layer, but window={window} came.")
    for number, (prompt, corruption) in enumerate(zip(prompts, corruptions, strict=True)):
        if len(prompt) != len(corruption.prompt):
            raise MMFlowError(
                f"prompt {number} has {len(prompt)} positions, its corrupt run {len(corruption.prompt)}: positions"
                " would not mean the same. Replace words by as many, and pictures by pictures of the same shape."
            )


def trace_spans(
    number: int, prompt: Prompt, corruption: Corruption, asked: Sequence[str] | None, each: bool, controls: int
) -> dict[str, list[int]]:
    """The positions of each span that is restored, by name; controls are named "random, as many as ..."."""
    start, words = first_difference(prompt, corruption)
    if start >= len(prompt):
        raise NoEffectError(f"prompt {number} and its corrupt run are the same: nothing can be restored.")
    spans = prompt.spans
    where: dict[str, list[int]] = {}
    if asked is None:
        question = [position for position in spans["question"] if position > max(words, default=-1)]
        candidates = {
            "image": list(spans["image"]),
            "constraint": words,
            "question behind it" if words else "question": question,
            "last": list(spans["last"]),
        }
        where = {name: at for name, at in candidates.items() if at and at[-1] >= start}
    else:
        for name in asked:
            at = list(spans[name])
            if not at or at[-1] < start:
                raise NoEffectError(
                    f"prompt {number}: restoring {name!r} would change nothing. The runs ({corruption.how}) differ from"
                    f" position {start} on, and its last position is {at[-1] if at else 'none'}: by causality clean and"
                    " corrupt activations are the same before that. To trace the image, corrupt the image."
                )
            where[name] = at
    if each:
        where = {f"{name} {i}: {spans.tokens[p]}": [p] for name, at in where.items() for i, p in enumerate(at)}
    if controls:
        generator = torch.Generator().manual_seed(drawn_by(0, prompt_identity(prompt)))
        for name, at in list(where.items()):
            traced = {*at, *words, len(prompt) - 1}  # where an effect is expected
            rest = [position for position in range(start, len(prompt)) if position not in traced]
            if each or len(rest) < len(at):
                continue
            for number in range(1, controls + 1):
                chosen = torch.randperm(len(rest), generator=generator)[: len(at)].sort().values.tolist()
                where[f"random{f' {number}' if number > 1 else ''}, as many as {name}"] = [rest[i] for i in chosen]
    return where
