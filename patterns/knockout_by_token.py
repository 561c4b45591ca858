"""Knockout token by token: what each word of the question is worth to the answer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import NoEffectError
from nnsight_mmflow._progress import say
from nnsight_mmflow.patterns.flow.flow import flow
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.results import Result, saved
from nnsight_mmflow.spans.span import Span

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.flow.result import FlowResult
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.workers import Workers


@experiment
def knockout_by_token(
    graph: Graph,
    prompt: Prompt,
    source: str = "question",
    target: str = "last",
    *,
    window: int = 1,
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> FlowResult:
    """A FlowResult whose edges are token_N->target, one for each token N of the source: for `mmf.show.tokens`.

    It is `mmf.flow` with a span for each token: a few forwards in all. A token that is the target itself is left out.

    Args:
        graph: the model.
        prompt: one prompt; whatever the model answers counts.
        source: the span whose tokens are knocked out, one at a time.
        target: the span that may not read them.
        window: how many consecutive layers are blocked at once.
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        NoEffectError: no token of the source can be read by the target.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> prompt = mmf.nano.prompts(graph, 1)[0]
        >>> effects = mmf.knockout_by_token(graph, prompt, progress=False)
        >>> page = mmf.show.tokens(prompt, effects, layer=6)
    """
    span, reached = prompt.spans[source], max(prompt.spans[target], default=-1)
    tokens = [position for position in span if position < reached]
    if not tokens:
        raise NoEffectError(
            f"{source}->{target}: no token of the source stands before the last target ({reached}), so none is read."
            " Are source and target swapped?"
        )
    named = {f"token_{position}": Span(f"token_{position}", (position,), span.row) for position in tokens}
    with_tokens = replace(prompt, spans=prompt.spans.having(**named))
    edges = [f"{name}->{target}" for name in named]
    found = flow(
        graph,
        with_tokens,
        edges,
        window,
        only_correct=False,
        folder=folder,
        remote=remote,
        workers=workers,
        blocking=blocking,
        progress=progress,
        report=report,
    )
    if not isinstance(found, Result):  # a job, whose result names the target alone
        return found
    found = replace(found, header={**found.header, "source": source})
    saved(found, folder, report)
    return found
