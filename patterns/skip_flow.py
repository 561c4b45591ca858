"""What each layer does for a span: the answer's probability when the span, or everything, passes it unchanged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.patterns.skip import PARTS, Skip
from nnsight_mmflow.runs.each import next_under
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.identity import prompt_identity
from nnsight_mmflow.runs.results import Band, Result, bootstrap_band, versions
from nnsight_mmflow.runs.right_answers import check_answers
from nnsight_mmflow.runs.runner import Study, counted, listed, prompt_task, row_cells, rows_of, run_study
from nnsight_mmflow.runs.sweep import answer_of
from nnsight_mmflow.spans.windows import window_layers

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.workers import Workers

SCOPES = ("window", "from_layer")
ALL = "all"


class SkipFlowResult(Result):
    """Skipped layers. One table row per prompt, span and layer.

    Columns: prompt, kind, span, layer (the window's centre, or the first layer left out), prediction, correct,
    base_probability, probability, change_percent, log_probability_change (nats), answer_changed.
    """

    kind: ClassVar[str] = "skip_flow"
    drawn_by: ClassVar[str] = "skip_figure"  # a line per span with its band

    def curves(self) -> dict[str, Band]:
        """For each span the mean change in percent by layer, and its 95% bootstrap band (low, high)."""
        return {
            str(span): bootstrap_band(part.pivot_table(index="prompt", columns="layer", values="change_percent"))
            for span, part in self.table.groupby("span", sort=False)
        }

    @checked
    def needless_from(self, span: str, loss: int | float = 5.0) -> int | None:
        """The first layer from which on leaving the span out costs less than so many percent, at every later one too.

        None where even the last layer costs more. With scope="from_layer" it is where the span stops mattering.
        """
        curves = self.curves()
        if span not in curves:
            raise MMFlowError(f"span {span!r} was not skipped; there are {', '.join(curves)}.")
        cheap = [change > -loss for change in curves[span][0]]
        first = next((layer for layer in range(len(cheap)) if all(cheap[layer:])), None)
        return first

    def summary(self) -> str:
        """Which layer each span can spare least."""
        header = self.header
        lines = [f"{header['model']}: {header['n_counted']} of {header['n_prompts']} prompts counted"]
        for span, (mean, low, high) in self.curves().items():
            layer = int(mean.argmin())
            lines.append(
                f"{span}: lowest at layer {layer}, {mean[layer]:+.1f}% [{low[layer]:+.1f}, {high[layer]:+.1f}]"
            )
        return "\n".join(lines)


@experiment
def skip_flow(
    graph: Graph,
    prompts: Prompt | Sequence[Prompt],
    spans: Sequence[str] = ("image", "question", ALL),
    *,
    window: int = 1,
    scope: str = "window",
    part: str = "layer",
    only_correct: bool = True,
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> SkipFlowResult:
    """A SkipFlowResult: for each span and layer, the answer's probability when the span passes that layer unchanged.

    Args:
        graph: the model.
        prompts: one prompt or several.
        spans: which pass unchanged; "all" leaves the layer out altogether.
        window: how many consecutive layers at once, an odd number.
        scope: "window", or "from_layer" (every layer from that one on: where do the span's positions leave the stack?).
        part: "layer", "attn" or "mlp", as in Skip.
        only_correct: leave out prompts that the model answers otherwise, and count them; False counts every prompt,
            and then none needs an answer.
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        MMFlowError: unknown scope or part, a prompt without an answer, or none that counts.
        NoEffectError: a span that holds no position.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> quiet = {"progress": False, "report": lambda text: None}
        >>> result = mmf.skip_flow(graph, mmf.nano.prompts(graph, 2), ["image"], scope="from_layer", **quiet)
        >>> len(result.to_frame()) == 2 * graph.n_layers
        True
    """
    graph = graph.at(remote)
    prompt_list = listed(prompts, "skip_flow")
    if scope not in SCOPES or part not in PARTS:
        raise MMFlowError(f"scope is one of {', '.join(SCOPES)}, part of {', '.join(PARTS)}: {scope!r}, {part!r} came.")
    check_answers(prompt_list, "skip_flow", only_correct=only_correct)
    depth = graph.n_layers
    windows = [
        window_layers(layer, window, depth) if scope == "window" else range(layer, depth) for layer in range(depth)
    ]
    asked = {"spans": list(spans), "window": window, "scope": scope, "part": part, "only_correct": only_correct}

    def collect(entries: list[dict]) -> SkipFlowResult:
        import pandas as pd

        rows = rows_of(prompt_list, entries)
        if not rows:
            raise MMFlowError(f"none of {len(prompt_list)} prompts was answered correctly: pass only_correct=False.")
        header = {"model": graph.name, **asked, "attention": graph.backend, "n_layers": depth}
        header |= counted(["" if entry["rows"] else "answered otherwise" for entry in entries])
        return SkipFlowResult(pd.DataFrame(rows), {**header, "versions": versions()})

    planned = [(span, layer) for span in spans for layer in range(depth)]
    study = Study(
        name="skip flow",
        settings=asked,
        tasks=[
            prompt_task(prompt, prompt_identity(prompt), list(spans), windows, part, only_correct)
            for prompt in prompt_list
        ],
        measure=measure,
        collect=collect,
        cost=lambda left: f"{len(spans) * depth + 1} forwards each.",
        cells=row_cells("span", "layer", planned=lambda task, entry: planned if entry["rows"] else ()),
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def measure(
    graph: Graph, prompt: Prompt, spans: Sequence[str], windows: Sequence[range], part: str, only_correct: bool
) -> dict:
    """One prompt's rows; none if it does not count."""
    plain = answer_of(graph, prompt, 16)
    base, token = plain.base, plain.token
    correct = prompt.accepts(plain.text)
    rows: list[dict] = []
    for span in spans if correct or not only_correct else ():
        skips = [Skip(layers=window, at=None if span == ALL else span, part=part) for window in windows]
        for layer, (log, top) in enumerate(next_under(graph, prompt, [(skip,) for skip in skips], token)):
            rows.append(
                {
                    "span": span,
                    "layer": layer,
                    "prediction": plain.text,
                    "correct": correct,
                    "base_probability": math.exp(base),
                    "probability": math.exp(log),
                    "change_percent": math.expm1(log - base) * 100,
                    "log_probability_change": log - base,
                    "answer_changed": top[0] != token,
                }
            )
    return {"rows": rows}
