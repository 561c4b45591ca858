"""Which image tokens a pruning method keeps, layer by layer, on a prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._later import later
from nnsight_mmflow._look import Look
from nnsight_mmflow._progress import say
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.model.edits import MaskEdit
from nnsight_mmflow.patterns.places import places_of
from nnsight_mmflow.prompts.prompt import Batch, Prompt
from nnsight_mmflow.runs.costs import tokens_per_layer
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.fingerprint import fingerprint
from nnsight_mmflow.runs.identity import prompt_identity
from nnsight_mmflow.runs.results import Result, versions
from nnsight_mmflow.runs.runner import Study, prompt_task, run_study

if TYPE_CHECKING:
    import torch

    from nnsight_mmflow._look import Colors, Figure, Labels, Places, Rows, Size
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.prune.prune import Prune
    from nnsight_mmflow.runs.workers import Workers
    from nnsight_mmflow.spans.row_spans import Spans


@dataclass(frozen=True, repr=False)
class KeptTokensResult(Result):
    """The image tokens that each layer still sees. One table row per layer and token.

    Columns: layer, token (number among all image tokens, counted from 0), position (in the prompt), image, view, tile,
    row, column.

    Attributes:
        prompt: what was run, for pictures; None after `load`.
        layers: for each layer the numbers of the tokens it sees, in order.
        counts: how many each layer sees.
    """

    prompt: Prompt | None = field(default=None, repr=False)
    kind: ClassVar[str] = "kept_tokens"

    @property
    def layers(self) -> list[list[int]]:
        """For each layer the numbers of the image tokens that it sees, in order."""
        seen: list[list[int]] = [[] for _ in range(int(self.header["n_layers"]))]
        for layer, token in zip(self.table["layer"].tolist(), self.table["token"].tolist(), strict=True):
            seen[layer].append(token)
        return seen

    @property
    def counts(self) -> list[int]:
        """How many image tokens each layer sees."""
        return [len(kept) for kept in self.layers]

    def __repr__(self) -> str:
        at = f", at={self.header['at']!r}" if self.header.get("at") else ""
        return f"KeptTokensResult({self.header['model']}{at}, counts={self.counts})"

    def summary(self) -> str:
        """Which layers see how many tokens."""
        counts, method = self.counts, self.header["pattern"]
        changes = [layer for layer, count in enumerate(counts) if not layer or count != counts[layer - 1]]
        seen = ", ".join(f"{counts[layer]} from layer {layer} on" for layer in changes)
        return f"{self.header['model']}, {method}: of {self.header['n_tokens']} image tokens {seen}"

    def plot(
        self,
        prompt: Prompt | None = None,
        *,
        ax: Places = None,
        rows: Rows = None,
        figsize: Size = None,
        colors: Colors = None,
        labels: Labels = None,
    ) -> Figure:
        """The same as `on_image()`; a loaded result is given the prompt that it is of.

        Raises:
            MMFlowError: a loaded result without a prompt, or another prompt.
        """
        return self._drawn(prompt, False, 0, None, Look(ax, rows, figsize, colors, labels))

    @checked
    def on_image(
        self,
        by_layer: bool = False,
        *,
        image: int = 0,
        view: str | None = None,
        prompt: Prompt | None = None,
        ax: Places = None,
        rows: Rows = None,
        figsize: Size = None,
        colors: Colors = None,
        labels: Labels = None,
    ) -> Figure:
        """The picture, each patch the clearer the more layers see its token, and grey where few do.

        Args:
            by_layer: a panel for each stretch of layers that see the same tokens; those that were dropped are grey.
            image: which of the prompt's images.
            view: "base" or "tiles", where the processor divided the picture; None: at each pixel the finest.
            prompt: what was run, for a result that was loaded.
            ax: as in every result's plot, like all that follow; rows and labels are the panels' titles.
            rows: which panels are drawn.
            figsize: (width, height) in inches.
            colors: the name of a colour map.
            labels: what stands above the panels.

        Raises:
            MMFlowError: a loaded result without a prompt, or another prompt.
        """
        return self._drawn(prompt, by_layer, image, view, Look(ax, rows, figsize, colors, labels))

    def _drawn(self, prompt: Prompt | None, by_layer: bool, image: int, view: str | None, look: Look) -> Figure:
        shown = prompt or self.prompt
        if shown is None:
            raise MMFlowError("a loaded result holds no picture: result.plot(prompt), with the prompt it is of.")
        if shown.digest() != self.header["prompt"]:
            raise MMFlowError(f"these tokens are of another prompt; its question was {self.header['question']!r}.")
        panels = later("kept_panels")(self, shown, image, by_layer)
        return later("heat_figure")(shown, panels, image=image, view=view, shade=True, look=look)


@experiment
def kept_tokens(
    graph: Graph,
    prompt: Prompt,
    pattern: Prune,
    *,
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> KeptTokensResult:
    """Which image tokens each layer still sees, as `KeptTokensResult`.

    One forward. In a trace with mode="drop" a layer's positions are the text's and these, in order: with them, what is
    read there goes back to its place in the prompt, and `prompt.spans["image"].places()` tells where on the picture.

    Args:
        graph: the model.
        prompt: one prompt with an image.
        pattern: the pruning method, such as mmf.FastV(k=2).
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        NoEffectError: it keeps every token.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> prompt = mmf.nano.prompts(graph, 1)[0]
        >>> mmf.kept_tokens(graph, prompt, mmf.HiMAP(k1=2, k2=4), progress=False)
        KeptTokensResult(nano, counts=[64, 64, 32, 32, 8, 8, 8, 8, 8, 8])
    """
    graph = graph.at(remote)
    pattern.check(graph, prompt.rows(), None)

    def collect(entries: list[dict]) -> KeptTokensResult:
        layers = entries[0]["layers"]
        count = len(prompt.spans["image"])
        places = places_of(prompt, range(count))
        table = places.iloc[[token for tokens in layers for token in tokens]].reset_index(drop=True)
        table.insert(0, "layer", [layer for layer, tokens in enumerate(layers) for _ in tokens])
        header = {
            "model": graph.name,
            "pattern": repr(pattern),
            "at": getattr(pattern, "at", ""),
            "n_layers": graph.n_layers,
            "n_tokens": count,
            "question": prompt.question,
            "prompt": prompt.digest(),
            "versions": versions(),
        }
        return KeptTokensResult(table, header, prompt)

    study = Study(
        name="kept tokens",
        settings={"pattern": fingerprint(pattern)},
        tasks=[prompt_task(prompt, prompt_identity(prompt), pattern)],
        measure=measure,
        collect=collect,
        cost=lambda left: "one forward.",
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def measure(graph: Graph, prompt: Prompt, pattern: Prune) -> dict:
    """For each layer the numbers of the image tokens that it sees."""
    import nnsight
    import torch

    from nnsight_mmflow.patterns.prune.prune import dropped_tokens

    rows = prompt.rows()
    pattern.check(graph, rows, None)
    with torch.no_grad(), graph.trace(prompt, use_cache=False):
        pruned = pattern.prefill(graph, rows)
        left = nnsight.save([None if kept is None else kept.index[0][kept.alive[0]].tolist() for kept in pruned.kept])
        gone = nnsight.save(dropped_tokens(pattern, pruned, rows))
    assert gone
    numbers = {position: number for number, position in enumerate(prompt.spans["image"])}
    layers = [
        list(numbers.values()) if kept is None else [numbers[position] for position in kept if position in numbers]
        for kept in left
    ]
    return {"layers": layers}


def closed_keys(pattern: Prune, graph: Graph, rows: tuple[Spans, ...], prompt: Prompt | Batch | None) -> list[MaskEdit]:
    """For each layer of a TransformerLens bridge the keys that close: what the method drops on the nnsight side.

    Raises:
        MMFlowError: what a bridge cannot do: it computes every position in every layer, as it stands there.
    """
    if prompt is None:
        raise MMFlowError(
            "which tokens stay depends on the picture, so spans are not enough: use"
            f" `with graph.hooks(bridge, prompt, {type(pattern).__name__}(mode='mask')):`."
        )
    if pattern.mode != "mask" or pattern.positions != "original" or pattern.merges:
        raise MMFlowError(
            f"{pattern}: TransformerLens computes every position in every layer, so tokens cannot leave, move"
            " or merge there. Take mode='mask', positions='original' and a method that merges nothing, or"
            " graph.trace."
        )
    gone: list[list[list[int]]] = []
    for single, spans in zip(prompt if isinstance(prompt, Batch) else [prompt], rows, strict=True):
        image = list(spans["image"])
        layers = measure(graph, single, pattern)["layers"]
        gone.append([[image[i] for i in sorted(set(range(len(image))) - set(kept))] for kept in layers])
    return [
        MaskEdit(layer, closing_keys([row[layer] for row in gone]))
        for layer in range(graph.n_layers)
        if any(row[layer] for row in gone)
    ]


def closing_keys(gone: list[list[int]]) -> Callable[[torch.Tensor], tuple[torch.Tensor, int]]:
    """Closes keys to every query that has others."""

    def change(mask: torch.Tensor) -> tuple[torch.Tensor, int]:
        import torch

        from nnsight_mmflow.inside.forwards import factor_of
        from nnsight_mmflow.inside.prune_masks import finite

        closed, prefill = torch.finfo(mask.dtype).min, mask.shape[-1] == mask.shape[-2]
        rows = max(mask.shape[0], len(gone))
        mask, changed, factor = mask.expand(rows, -1, -1, -1).clone(), 0, factor_of(rows, len(gone))
        for row in range(rows):
            keys = gone[row // factor]
            changed += int((mask[row][..., keys] > closed / 2).sum())
            mask[row][..., keys] = closed
        return (finite(mask) if prefill else mask), changed

    return change


def image_tokens_per_layer(graph: Graph, prompt: Prompt, pattern: Prune | None) -> list[int]:
    """How many image tokens each layer sees: as planned, or counted in a forward where that depends on what is seen."""
    if pattern is not None and pattern.measured:
        return [len(tokens) for tokens in measure(graph, prompt, pattern)["layers"]]
    stages = [] if pattern is None else pattern.plan(graph, prompt.spans)
    return tokens_per_layer(stages, len(prompt.spans["image"]), graph.n_layers)
