"""How much of what the question's positions say is due to attention, and how much to the MLPs, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, ClassVar

import nnsight
import torch
from nnsight_mmflow.patterns.patch import Patch
from nnsight_mmflow.patterns.values import zeros

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow._later import later
from nnsight_mmflow._progress import progress_bar, say
from nnsight_mmflow.inside.names import cached
from nnsight_mmflow.inside.rows import (
    Rows,
    crop_cache,
    prepared,
    tail_start,
)
from nnsight_mmflow.inside.silence import run_silenced
from nnsight_mmflow.inside.sweep import Clean
from nnsight_mmflow.prompts.prompt import Prompt
from nnsight_mmflow.runs.each import words_under
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.identity import journal_of, prompt_identity
from nnsight_mmflow.runs.results import Result, saved, versions
from nnsight_mmflow.runs.sweep import run_clean
from nnsight_mmflow.spans.windows import window_layers

if TYPE_CHECKING:
    from nnsight_mmflow._figure import ShownFigure
    from nnsight_mmflow.model.graph import Graph

SITES = ("attn", "mlp")


class WordOverlapResult(Result):
    """Jaccard overlap of the top words. One table row per prompt, site and centre layer.

    Columns: prompt, kind, site ("attn" or "mlp"), window, layer, jaccard (mean over the span's positions).
    """

    kind: ClassVar[str] = "word_overlap"

    def plot(self) -> ShownFigure:
        """The overlap by layer, a line per site, with its 95% bootstrap band."""
        return later("overlap_figure")(self)

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
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> WordOverlapResult:
    """A WordOverlapResult: the overlap of the top words before and after a module is silenced over a window of layers.

    The output of attention, or of the MLP, is set to zero at the span's positions in the window's layers; the top
    words at those positions are read from the model's own output, and compared as sets: |both| / |either|, 1 where
    nothing changed. The positions before the span are computed once.

    Args:
        graph: the model.
        prompts: one or several.
        at: the span that is silenced and read.
        window: how many consecutive layers, truncated at both ends.
        top: how many words to compare.
        folder: where finished prompts are written as they are done; a run that was stopped goes on from there.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        progress: show a progress bar.
        report: where trouble with the folder is told.

    Raises:
        NoEffectError: the module's output there was zero already.
        SpanError: `at` is no span of a prompt.

    Source: Cross-modal Information Flow in MLLMs (arXiv 2411.18620), appendix; spec section 5.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> result = mmf.word_overlap(graph, mmf.nano.prompts(graph, 1), window=3, progress=False)
        >>> bool(result.to_frame()["jaccard"].between(0, 1).all())
        True
    """
    graph = graph.at(remote)
    import pandas as pd

    prompts = [prompts] if isinstance(prompts, Prompt) else list(prompts)
    if not prompts:
        raise MMFlowError("word_overlap needs at least one prompt, but got none.")
    top = min(top, graph.unembed._module.weight.shape[0])
    for number, prompt in enumerate(prompts):
        if not len(prompt.spans[at]):
            raise NoEffectError(f"{at!r} holds no position of prompt {number}, so there is nothing to silence.")
    windows = [tuple(window_layers(layer, window, graph.n_layers)) for layer in range(graph.n_layers)]
    ids = [prompt_identity(prompt) for prompt in prompts]
    with journal_of(graph, folder, "word overlap", report, at=at, window=window, top=top) as journal:
        planned = [(site, layer) for site in SITES for layer in range(graph.n_layers)]
        for identity in set(ids) & set(journal.done):
            journal.check(identity, [(row["site"], row["layer"]) for row in journal.done[identity]["rows"]], planned)
        for number in progress_bar(journal.left(ids), "word overlap", shown=progress):
            journal.add({"id": ids[number], "rows": _measure(graph, prompts[number], at, windows, top)})
        rows = [
            {
                "prompt": prompt.key or str(number),
                "kind": prompt.kind,
                "site": row["site"],
                "window": window,
                "layer": row["layer"],
                "jaccard": row["jaccard"],
            }
            for number, (prompt, identity) in enumerate(zip(prompts, ids, strict=True))
            for row in journal.done[identity]["rows"]
        ]
        header = {
            "model": graph.name,
            "at": at,
            "window": window,
            "top": top,
            "n_layers": graph.n_layers,
            "n_prompts": len(prompts),
            "metric": "Jaccard overlap of the top words at the span's positions, mean over positions and prompts",
            "versions": versions(),
        }
        result = WordOverlapResult(pd.DataFrame(rows), header)
        saved(result, folder, report)
    return result


def _measure(graph: Graph, prompt: Prompt, at: str, windows: Sequence[tuple[int, ...]], top: int) -> list[dict]:
    """One prompt's rows."""
    cells = [(site, layers) for site in SITES for layers in windows]
    before, *silenced = (_there if graph.remote else _here)(graph, prompt, list(prompt.spans[at]), cells, top)
    places = [(site, layer) for site in SITES for layer in range(len(windows))]
    rows = []
    for (site, layer), after in zip(places, silenced, strict=True):
        shared = [len(a & b) / len(a | b) for a, b in zip(before, after, strict=True)]
        rows.append({"site": site, "layer": layer, "jaccard": sum(shared) / len(shared)})
    return rows


def _here(
    graph: Graph, prompt: Prompt, positions: list[int], cells: list[tuple[str, tuple[int, ...]]], top: int
) -> list[list[set[int]]]:
    """The top words at each position, plain and with each cell silenced: over the clean run's cache."""
    start = tail_start(positions[0], graph.adapter.bidirectional(prompt.spans))
    clean = run_clean(graph, prompt, start, 1)
    silenced = [_words(graph, clean, positions, site, layers, top) for site, layers in cells]
    return [_words(graph, clean, positions, None, (), top), *silenced]


def _there(
    graph: Graph, prompt: Prompt, positions: list[int], cells: list[tuple[str, tuple[int, ...]]], top: int
) -> list[list[set[int]]]:
    """The same on a server, in one session: a forward per cell, since nothing large is to travel."""
    at = prompt.spans["all"].part(positions, "silenced")
    patches = [Patch(at=at, site=site, layers=layers, value=zeros()) for site, layers in cells]
    found = words_under(graph, prompt, [(), *((patch,) for patch in patches)], positions, top)
    return [[set(ids) for ids in words] for words in found]


def _words(
    graph: Graph, clean: Clean, positions: list[int], site: str | None, chosen: tuple[int, ...], top: int
) -> list[set[int]]:
    """The top words at each position, the site silenced in the layers; from the first position on, over the cache."""
    start, tail = clean.start, clean.inputs[0].hidden.shape[1]
    within = [position - start for position in positions]
    layers, model = graph.layers, graph.model
    silenced = {layer: graph.joining(str(site), layer) for layer in chosen}
    rows = Rows(start, tail, ((0, graph.n_layers),), (0,), ((),), ((),))  # one row that closes no edge
    handed, closed, opened = prepared(clean.inputs, 0, rows)
    assert clean.cache is not None  # only a sweep takes it
    crop_cache(clean.cache, start)
    places = torch.arange(start, start + tail, device=graph.device)[None]
    embedded = handed[0].hidden
    mask = opened[0][None, None]
    with (
        torch.no_grad(),
        model.trace(
            inputs_embeds=embedded,
            position_ids=places,
            attention_mask=mask,
            **cached(model, clean.cache),
            use_cache=True,
        ),
    ):
        largest = nnsight.save(run_silenced(layers, rows, handed, opened, closed, silenced, within))
        words = nnsight.save(model.output.logits[0, within].topk(top, -1).indices.cpu())
    if chosen and not largest:
        raise NoEffectError(f"the {site} output of layers {list(chosen)} is zero at these positions already.")
    return [set(row) for row in words.tolist()]
