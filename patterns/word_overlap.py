"""How much of what the question's positions say is due to attention, and how much to the MLPs, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._errors import NoEffectError
from nnsight_mmflow._progress import say
from nnsight_mmflow.prompts.prompt import Prompt
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.identity import prompt_identity
from nnsight_mmflow.runs.results import Result, versions
from nnsight_mmflow.runs.runner import Study, counted, listed, prompt_task, row_cells, rows_of, run_study
from nnsight_mmflow.runs.silence import words_silenced
from nnsight_mmflow.spans.windows import window_layers

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.runs.workers import Workers

SITES = ("attn", "mlp")


class WordOverlapResult(Result):
    """Jaccard overlap of the top words. One table row per prompt, site and centre layer.

    Columns: prompt, kind, site ("attn" or "mlp"), window, layer, jaccard (mean over the span's positions).
    """

    kind: ClassVar[str] = "word_overlap"
    drawn_by: ClassVar[str] = "overlap_figure"  # the overlap by layer, a line per site, with its band

    def summary(self) -> str:
        """Where each module matters most."""
        means = self.table.groupby(["site", "layer"])["jaccard"].mean()
        lines = [f"{self.header['model']}: {self.header['n_prompts']} prompts, top {self.header['top']} words"]
        for site in SITES:
            lines.append(f"{site}: lowest overlap {means[site].min():.2f}, at layer {means[site].idxmin()}")
        return "\n".join(lines)


@experiment
def word_overlap(
    graph: Graph,
    prompts: Prompt | Sequence[Prompt],
    at: str = "question",
    window: int = 9,
    *,
    top: int = 10,
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> WordOverlapResult:
    """A WordOverlapResult: the overlap of the top words before and after a module is silenced over a window of layers.

    The output of attention, or of the MLP, is set to zero at the span's positions in the window's layers; the top
    words at those positions are read from the model's own output, and compared as sets: |both| / |either|, 1 where
    nothing changed. The positions before the span are computed once.

    Args:
        graph: the model.
        prompts: one prompt or several.
        at: the span that is silenced and read.
        window: how many consecutive layers, truncated at both ends.
        top: how many words to compare.
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        NoEffectError: the module's output there was zero already.
        SpanError: `at` is no span of a prompt.

    Source: Cross-modal Information Flow in MLLMs (arXiv 2411.18620), appendix.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> result = mmf.word_overlap(graph, mmf.nano.prompts(graph, 1), window=3, progress=False)
        >>> bool(result.to_frame()["jaccard"].between(0, 1).all())
        True
    """
    graph = graph.at(remote)
    prompt_list = listed(prompts, "word_overlap")
    top = min(top, graph.vocabulary)
    for number, prompt in enumerate(prompt_list):
        if not len(prompt.spans[at]):
            raise NoEffectError(f"{at!r} holds no position of prompt {number}, so there is nothing to silence.")
    windows = [tuple(window_layers(layer, window, graph.n_layers)) for layer in range(graph.n_layers)]

    def collect(entries: list[dict]) -> WordOverlapResult:
        import pandas as pd

        columns = ["prompt", "kind", "site", "window", "layer", "jaccard"]
        table = pd.DataFrame(rows_of(prompt_list, entries)).assign(window=window)[columns]
        header = {
            "model": graph.name,
            "at": at,
            "window": window,
            "top": top,
            "n_layers": graph.n_layers,
            **counted([""] * len(entries)),
            "metric": "Jaccard overlap of the top words at the span's positions, mean over positions and prompts",
            "versions": versions(),
        }
        return WordOverlapResult(table, header)

    planned = [(site, layer) for site in SITES for layer in range(graph.n_layers)]
    study = Study(
        name="word overlap",
        settings={"at": at, "window": window, "top": top},
        tasks=[prompt_task(prompt, prompt_identity(prompt), at, windows, top) for prompt in prompt_list],
        measure=measure,
        collect=collect,
        cost=lambda left: f"{2 * graph.n_layers + 2} forwards each, most of them of the span and what follows it.",
        cells=row_cells("site", "layer", planned=lambda task, entry: planned),
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def measure(graph: Graph, prompt: Prompt, at: str, windows: Sequence[tuple[int, ...]], top: int) -> dict:
    """What the journal keeps of one prompt."""
    cells = [(site, layers) for site in SITES for layers in windows]
    before, *silenced = words_silenced(graph, prompt, list(prompt.spans[at]), cells, top)
    places = [(site, layer) for site in SITES for layer in range(len(windows))]
    rows = []
    for (site, layer), after in zip(places, silenced, strict=True):
        shared = [len(a & b) / len(a | b) for a, b in zip(before, after, strict=True)]
        rows.append({"site": site, "layer": layer, "jaccard": sum(shared) / len(shared)})
    return {"rows": rows}
