"""What each layer does for a span: the answer's probability when the span, or everything, passes it unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.patterns.skip import PARTS, Skip
from nnsight_mmflow.runs.each import scored_under
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.identity import prompt_identity
from nnsight_mmflow.runs.results import Band, Result, bootstrap_band, versions
from nnsight_mmflow.runs.right_answers import check_answers
from nnsight_mmflow.runs.runner import Study, counted, listed, prompt_task, row_cells, rows_of, run_study
from nnsight_mmflow.runs.scores import (
    FIRST,
    Quantity,
    Score,
    Scored,
    check_score,
    check_scored,
    columns,
    quantity_of,
    readings,
    score_identity,
    score_name,
    token_table,
)
from nnsight_mmflow.runs.sweep import answer_of
from nnsight_mmflow.spans.windows import window_layers

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.workers import Workers

SCOPES = ("window", "from_layer")
ALL = "all"


class SkipFlowResult(Result):
    """Skipped layers. One table row per prompt, span and layer.

    Columns: prompt, kind, span, layer (the window's centre, or the first layer left out), prediction, correct,
    base_probability, probability, change_percent, log_probability_change (nats), answer_changed; with another `score`
    than the first token clean, score and change in their place, as in `mmf.flow`.
    """

    kind: ClassVar[str] = "skip_flow"
    drawn_by: ClassVar[str] = "skip_figure"  # a line per span with its band

    @property
    def quantity(self) -> Quantity:
        """What the curves show, by the run's score."""
        return quantity_of(self.header.get("score"))

    @checked
    def to_frame(self, *, tokens: bool = False) -> pd.DataFrame:
        """A copy of the table; with `tokens=True` a row per token of the answer: word, clean, score, change (nats)."""
        return (
            token_table(self.table, ("prompt", "span", "layer"), self.header.get("score"))
            if tokens
            else self.table.copy()
        )

    def curves(self) -> dict[str, Band]:
        """For each span the mean change (in percent, or of `quantity`) by layer, and its 95% bootstrap band."""
        return {
            str(span): bootstrap_band(part.pivot_table(index="prompt", columns="layer", values=self.quantity.column))
            for span, part in self.table.groupby("span", sort=False)
        }

    @checked
    def needless_from(self, span: str, loss: int | float = 5.0) -> int | None:
        """The first layer from which on leaving the span out costs less than so much, at every later one too.

        `loss` is in percent; with another score than the first token, in that score's unit (nats).

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
        unit, digits = self.quantity.unit, 1 if self.quantity.unit == "%" else 2
        if header.get("score"):
            lines[0] += f"; followed: {self.quantity.what}"
        for span, (mean, low, high) in self.curves().items():
            layer = int(mean.argmin())
            lines.append(
                f"{span}: lowest at layer {layer}, {mean[layer]:+.{digits}f}{unit}"
                f" [{low[layer]:+.{digits}f}, {high[layer]:+.{digits}f}]"
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
    score: Score = "first",
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
        score: as in `mmf.flow`: "first", "answer", "options", or a function. With a whole answer, a span that holds the
            prompt's last position goes on over the answer's tokens behind it.
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
    check_score(score, "skip_flow")
    why = check_scored(prompt_list, score, "skip_flow")
    parts = [[] if reason else readings(graph, prompt, score) for prompt, reason in zip(prompt_list, why, strict=True)]
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
        header |= counted(["" if entry["rows"] else entry.get("why", "answered otherwise") for entry in entries])
        if score != FIRST:
            header["score"] = score_name(score)
        return SkipFlowResult(pd.DataFrame(rows), {**header, "versions": versions()})

    planned = [(span, layer) for span in spans for layer in range(depth)]
    study = Study(
        name="skip flow",
        settings={**asked, **score_identity(score)},
        tasks=[
            prompt_task(
                prompt, prompt_identity(prompt), list(spans), windows, part, only_correct, score_name(score), held, no
            )
            for prompt, held, no in zip(prompt_list, parts, why, strict=True)
        ],
        measure=measure,
        collect=collect,
        cost=lambda left: f"{len(spans) * depth + 1} forwards each.",
        cells=row_cells("span", "layer", planned=lambda task, entry: planned if entry["rows"] else ()),
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def measure(
    graph: Graph,
    prompt: Prompt,
    spans: Sequence[str],
    windows: Sequence[range],
    part: str,
    only_correct: bool,
    score: str,
    parts: Sequence[Scored],
    why: str,
) -> dict:
    """One prompt's rows; none if it does not count."""
    plain = answer_of(graph, prompt, 16)
    correct = prompt.accepts(plain.text)
    if why or (only_correct and not correct):
        return {"rows": [], "why": why or "answered otherwise"}
    cells = [
        (f"{span}, layer {layer}", (Skip(layers=window, at=None if span == ALL else span, part=part),))
        for span in spans
        for layer, window in enumerate(windows)
    ]
    base, *numbers = scored_under(graph, parts, cells, plain.token)
    where = [(span, layer) for span in spans for layer in range(len(windows))]
    told = {"prediction": plain.text, "correct": correct}
    return {
        "rows": [
            {"span": span, "layer": layer, **told, **columns(score, base, one, parts[0].words)}
            for (span, layer), one in zip(where, numbers, strict=True)
        ]
    }
