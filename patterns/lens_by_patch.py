"""The logit lens on the picture: which word each image token would say after each layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import nnsight
import torch

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow._later import later
from nnsight_mmflow._look import Look
from nnsight_mmflow._progress import say
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.inside.readout import read_top
from nnsight_mmflow.model.pattern import layer_list
from nnsight_mmflow.patterns.places import places_of
from nnsight_mmflow.prompts.prompt import Prompt
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.identity import prompt_identity
from nnsight_mmflow.runs.results import Result, versions
from nnsight_mmflow.runs.runner import Study, prompt_task, run_study

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    import pandas as pd

    from nnsight_mmflow._look import Colors, Figure, Labels, Places, Rows, Size
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.runs.workers import Workers

BYTES_AT_ONCE = 256_000_000  # of logits in float32


@dataclass(frozen=True, repr=False)
class LensByPatchResult(Result):
    """Words of image tokens. One table row per layer, image token and rank.

    Columns: prompt, layer, token (number among all image tokens, counted from 0), position, image, view, tile, row,
    column, rank (0: the most likely), word, word_id, probability.

    Attributes:
        prompt: what was run, for `plot`; None after `load`.
    """

    prompt: Prompt | None = field(default=None, repr=False)
    kind: ClassVar[str] = "lens_by_patch"

    @checked
    def plot(
        self,
        layer: int | None = None,
        prompt: Prompt | None = None,
        *,
        image: int = 0,
        view: str | None = None,
        ax: Places = None,
        rows: Rows = None,
        figsize: Size = None,
        colors: Colors = None,
        labels: Labels = None,
    ) -> Figure:
        """The most likely word on each patch, coloured by its probability, after a layer; the last one unless given.

        Of grids with more than 12 rows or columns only some words fit: of each square of patches the most probable.

        Raises:
            MMFlowError: a layer that was not read, or a loaded result without a prompt.
        """
        shown = prompt or self.prompt
        if shown is None:
            raise MMFlowError("a loaded result holds no picture: result.plot(layer, prompt), with the prompt it is of.")
        chosen, look = self.header["layers"][-1] if layer is None else layer, Look(ax, rows, figsize, colors, labels)
        return later("words_figure")(self, shown, chosen, image, view, look)

    def summary(self) -> str:
        """For each layer the words that most image tokens say, and how sure they are."""
        first = self.table[self.table["rank"] == 0]
        lines = [f"{self.header['model']}: lens at {self.header['n_tokens']} image tokens, {self.header['metric']}"]
        for layer, part in first.groupby("layer"):
            counts = part["word"].value_counts().head(3)
            words = ", ".join(f"{word!r} ({count})" for word, count in counts.items())
            lines.append(f"after layer {layer}: {words}; mean probability {part['probability'].mean():.2g}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(self.summary())}</pre>" if self.prompt is None else super()._repr_html_()


@experiment
def lens_by_patch(
    graph: Graph,
    prompt: Prompt,
    *,
    source: str = "image",
    layers: int | Iterable[int] | None = None,
    top: int = 5,
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> LensByPatchResult:
    """A LensByPatchResult: final norm and unembedding of each image token's residual stream after each layer.

    One forward. Logits are made for as many positions as fit 256 MB and cut to the top words inside the forward: beside
    the model it needs about three times that, and only (layers, tokens, top) numbers leave it.

    An image token's place predicts what follows it in the prompt only in the last layers, if at all: a word on a patch
    says what the unembedding finds there, no more.

    Args:
        graph: the model.
        prompt: one prompt with an image.
        source: the image span whose tokens are read, such as "image[0].base".
        layers: the layers after which tokens are read; all unless given.
        top: how many words of each token to keep.
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        NoEffectError: the span holds no image token.
        MMFlowError: a layer that does not exist, or a top below 1.

    Source: nostalgebraist's logit lens; at image tokens of a LLaVA: arXiv 2410.07149.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> words = mmf.lens_by_patch(graph, mmf.nano.prompts(graph, 1)[0], layers=[4, 8], top=2)
        >>> len(words.to_frame()) == 2 * 64 * 2
        True
    """
    graph = graph.at(remote)
    if not isinstance(prompt, Prompt):
        raise MMFlowError(f"lens_by_patch takes one prompt, but a {type(prompt).__name__} came.")
    chosen = layer_list(range(graph.n_layers) if layers is None else layers, graph.n_layers)
    image = set(prompt.spans["image"])
    positions = [position for position in prompt.spans[source] if position in image]
    if not positions:
        raise NoEffectError(f"{source!r} holds no image token of this prompt: there is no patch to read.")
    vocabulary = graph.vocabulary
    if top < 1:
        raise MMFlowError(f"top={top}: at least the most likely word must be kept.")
    top, at_once = min(top, vocabulary), max(1, BYTES_AT_ONCE // (4 * vocabulary))

    def collect(entries: list[dict]) -> LensByPatchResult:
        header = {
            "model": graph.name,
            "source": source,
            "layers": chosen,
            "top": top,
            "n_layers": graph.n_layers,
            "n_tokens": len(positions),
            "metric": "final norm and unembedding of the residual stream, softmax over the whole vocabulary",
            "versions": versions(),
        }
        return LensByPatchResult(_table(graph, prompt, positions, chosen, entries[0]["read"], top), header, prompt)

    study = Study(
        name="lens by patch",
        settings={"source": source, "layers": chosen, "top": top},
        tasks=[prompt_task(prompt, prompt_identity(prompt), positions, chosen, top, at_once)],
        measure=measure,
        collect=collect,
        cost=lambda left: f"one forward, {len(chosen)} layers x {len(positions)} image tokens x {top} words.",
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def measure(graph: Graph, prompt: Prompt, positions: list[int], chosen: list[int], top: int, at_once: int) -> dict:
    """What the journal keeps of the prompt: for each layer the ids and the probabilities of the top words."""
    decoder, norm, unembed, cap = graph.layers, graph.norm, graph.unembed, graph.logit_cap
    with torch.no_grad(), graph.trace(prompt, use_cache=False, logits_to_keep=1):
        read = nnsight.save(read_top(decoder, chosen, norm, unembed, cap, positions, top, at_once))
    return {"read": [[best.tolist(), sure.tolist()] for best, sure in read]}


def _table(
    graph: Graph,
    prompt: Prompt,
    positions: list[int],
    chosen: list[int],
    read: list[list[list]],
    top: int,
) -> pd.DataFrame:
    import numpy as np

    ids = torch.tensor([best for best, _ in read]).flatten().tolist()
    tokenizer = graph.processor.tokenizer
    words = {token: tokenizer.decode([token]) for token in sorted(set(ids))}
    numbers = {position: number for number, position in enumerate(prompt.spans["image"])}
    places = places_of(prompt, [numbers[position] for position in positions])
    places.insert(0, "prompt", prompt.key or "0")
    places.insert(1, "layer", 0)
    table = places.iloc[np.tile(np.repeat(np.arange(len(places)), top), len(chosen))].reset_index(drop=True)
    table["layer"] = np.repeat(chosen, len(places) * top)
    table["rank"] = np.tile(np.arange(top), len(places) * len(chosen))
    table["word"] = [words[token] for token in ids]
    table["word_id"] = ids
    table["probability"] = torch.tensor([sure for _, sure in read]).flatten().numpy()
    return table
