"""Disruption: what the model still answers when one kind of flow from the image is cut, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, ClassVar

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.model.pattern import layer_list
from nnsight_mmflow.patterns.knockout import Knockout
from nnsight_mmflow.patterns.zero_weights import ZeroWeights
from nnsight_mmflow.runs.each import next_under
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.identity import drawn_by, prompt_identity
from nnsight_mmflow.runs.results import Result, versions
from nnsight_mmflow.runs.runner import Study, counted, listed, prompt_task, row_cells, rows_of, run_study

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.workers import Workers
    from nnsight_mmflow.spans.span import Span

WAYS = ("img2txt", "img2img", "img2rnd")
SCOPES = ("layer", "from_layer")
STAGES = {"pre": Knockout, "post": ZeroWeights}
TOP = 5


class DisruptionResult(Result):
    """Disruptions. One table row per prompt, way and layer.

    Columns: prompt, kind, way (img2txt: the instruction does not read the image; img2img: image tokens do not read one
    another; img2rnd: as many random queries as the instruction has do not read the image), layer (the one, or the
    first), label_kept (the most likely first token stays), score_consistency (Jaccard overlap of the five most likely
    tokens before and after), probability (of the undisturbed answer's first token), probability_before.
    """

    kind: ClassVar[str] = "disruption"
    drawn_by: ClassVar[str] = "disruption_figure"  # score consistency and kept labels by layer, a line per way

    def curves(self) -> pd.DataFrame:
        """Means over prompts: a row per way and layer: label_kept, score_consistency."""
        return (
            self.table.groupby(["way", "layer"], sort=False)[["label_kept", "score_consistency"]].mean().reset_index()
        )

    def dominance(self) -> pd.DataFrame:
        """D_l = log(E_vv / E_vt) by layer, E = 1 - score consistency; above 0 flow between image tokens matters more.

        NaN where a disruption changed no top five at all. Source: section 4.2 of the paper; E is in its supplement
        only, and this is the reading that does not saturate.
        """
        import numpy as np

        means = self.curves().pivot_table(index="layer", columns="way", values="score_consistency")
        missing = [way for way in ("img2img", "img2txt") if way not in means]
        if missing:
            raise MMFlowError(f"D_l compares img2img with img2txt; {', '.join(missing)} was not run.")
        lost = 1 - means[["img2img", "img2txt"]]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.log(lost["img2img"] / lost["img2txt"])
        return ratio.replace([np.inf, -np.inf], np.nan).rename("D").reset_index()

    def summary(self) -> str:
        """Where each way does most."""
        curves, header = self.curves(), self.header
        lines = [
            f"{header['model']}: {header['n_prompts']} prompts, scope {header['scope']}, {header['stage']}-softmax"
        ]
        for way, part in curves.groupby("way", sort=False):
            worst = part.sort_values("score_consistency").iloc[0]
            lines.append(
                f"{way}: lowest score consistency {worst['score_consistency']:.2f} at layer {int(worst['layer'])}"
                f" (label kept {worst['label_kept']:.0%})"
            )
        return "\n".join(lines)


@experiment
def disruption(
    graph: Graph,
    prompts: Prompt | Sequence[Prompt],
    ways: Sequence[str] = WAYS,
    *,
    scope: str = "layer",
    stage: str = "pre",
    layers: Sequence[int] | None = None,
    seed: int = 0,
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> DisruptionResult:
    """A DisruptionResult: for each way and layer, what the model still answers.

    Args:
        graph: the model.
        prompts: one or several, with one image each.
        ways: "img2txt", "img2img", "img2rnd" (the control).
        scope: "layer" (that layer alone), or "from_layer" (that layer and all behind it: what the released code does).
        stage: "pre" (closed before the softmax: the other weights grow, as in the released code), or "post" (zeroed
            after it, as the paper says).
        layers: the layers that are closed, one after the other; None: every layer.
        seed: of the control's random positions.
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        MMFlowError: unknown ways, scope or stage; image tokens that would have nothing left to read.

    Source: Lifting the Veil on Visual Information Flow (arXiv 2503.13108), section 4.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> quiet = {"progress": False, "report": lambda text: None}
        >>> result = mmf.disruption(graph, mmf.nano.prompts(graph, 2), layers=[3, 4], **quiet)
        >>> len(result.to_frame())
        12
    """
    graph = graph.at(remote)
    prompt_list = listed(prompts, "disruption")
    wrong = [way for way in ways if way not in WAYS]
    if wrong or not ways:
        raise MMFlowError(f"ways are of {', '.join(WAYS)}, not {list(ways)}.")
    if scope not in SCOPES or stage not in STAGES:
        raise MMFlowError(
            f"scope is one of {', '.join(SCOPES)} and stage of {', '.join(STAGES)}: {scope!r}, {stage!r}."
        )
    chosen = layer_list(range(graph.n_layers) if layers is None else layers, graph.n_layers)
    asked = {"ways": list(ways), "scope": scope, "stage": stage, "layers": chosen, "seed": seed}
    where = [[layer] if scope == "layer" else range(layer, graph.n_layers) for layer in chosen]

    def collect(entries: list[dict]) -> DisruptionResult:
        import pandas as pd

        header = {"model": graph.name, **asked, "attention": graph.backend, **counted([""] * len(entries))}
        header |= {"n_layers": graph.n_layers, "versions": versions()}
        return DisruptionResult(pd.DataFrame(rows_of(prompt_list, entries)), header)

    planned = [(way, layer) for way in ways for layer in chosen]
    names = [prompt_identity(prompt) for prompt in prompt_list]
    study = Study(
        name="disruption",
        settings=asked,
        tasks=[
            prompt_task(prompt, name, list(ways), stage, chosen, where, drawn_by(seed, name))
            for prompt, name in zip(prompt_list, names, strict=True)
        ],
        measure=measure,
        collect=collect,
        cost=lambda left: f"{len(ways) * len(chosen) + 1} forwards each.",
        cells=row_cells("way", "layer", planned=lambda task, entry: planned),
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def measure(
    graph: Graph,
    prompt: Prompt,
    ways: Sequence[str],
    stage: str,
    chosen: Sequence[int],
    where: Sequence[Sequence[int]],
    drawn: int,
) -> dict:
    """What the journal keeps of one prompt."""
    before = next_under(graph, prompt, [()], top=TOP)[0]
    answer, top = before.top[0], set(before.top)
    rows = []
    for way in ways:
        source, target = _edge(prompt, way, drawn)
        cut: list[tuple[Pattern, ...]] = [
            (STAGES[stage](source=source, target=target, layers=layers),) for layers in where
        ]
        for layer, after in zip(chosen, next_under(graph, prompt, cut, answer, TOP), strict=True):
            now = set(after.top)
            rows.append(
                {
                    "way": way,
                    "layer": layer,
                    "label_kept": after.top[0] == answer,
                    "score_consistency": len(top & now) / len(top | now),
                    "probability": math.exp(after.log),
                    "probability_before": math.exp(before.log),
                }
            )
    return {"rows": rows}


def _edge(prompt: Prompt, way: str, seed: int) -> tuple[str | Span, str | Span]:
    """(source, target) of a way; the control draws its queries from all that can read the image."""
    if way != "img2rnd":
        return "image", "question | suffix" if way == "img2txt" else "image"
    image, text = prompt.spans["image"], prompt.spans["question | suffix"]
    reading = [position for position in prompt.spans["all"] if position > image.positions[0]]
    order = torch.randperm(len(reading), generator=torch.Generator().manual_seed(seed))[: len(text)]
    drawn = sorted(reading[i] for i in order.tolist())
    return "image", prompt.spans["all"].part(drawn, f"{len(text)} random queries")
