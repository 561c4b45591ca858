"""Knockout patch by patch: what each piece of the picture is worth to the answer, exactly, in a few forwards."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.inside.plan import ROW_BUDGET, Plan
from nnsight_mmflow.model.pattern import layer_list
from nnsight_mmflow.patterns.knockout_by_patch_result import KnockoutByPatchResult
from nnsight_mmflow.prompts.prompt import Prompt
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.identity import prompt_identity
from nnsight_mmflow.runs.plan import make_plan, sizes_of
from nnsight_mmflow.runs.results import versions
from nnsight_mmflow.runs.runner import Study, prompt_task, run_study
from nnsight_mmflow.runs.sweep import run_sweep
from nnsight_mmflow.spans.regions import random_partners, regions_of
from nnsight_mmflow.spans.span import Span

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    import pandas as pd

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.runs.workers import Workers
    from nnsight_mmflow.spans.regions import Region

TARGET, WHOLE = "knockout_target", "knockout_whole"  # names beside the prompt's own spans


@experiment
def knockout_by_patch(
    graph: Graph,
    prompt: Prompt,
    *,
    source: str = "image",
    target: str | Span = "last",
    layers: int | Iterable[int] | None = None,
    window: int | None = None,
    size: int = 1,
    controls: int = 1,
    seed: int = 0,
    row_budget: int = ROW_BUDGET,
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> KnockoutByPatchResult:
    """A KnockoutByPatchResult: for each patch how the answer's probability changes when the target may not read it.

    The answer is the first token that the model itself answers. Each number equals that of a forward of its own with
    `Knockout(source=patch, target=target, layers=...)`; the rows of `mmf.flow` give them in a few forwards.

    Args:
        graph: the model.
        prompt: one prompt with an image.
        source: the image span whose tokens are gone through: "image.base" or "image[1]" costs less than all.
        target: the span that may not read.
        layers: a stretch of layers, all unless given.
        window: None closes them all at once; a number closes as many around each of them in turn, as `mmf.flow` does.
        size: 2 or more closes squares of size x size patches of a view; 1 each token, row ends too.
        controls: for squares how many sets of as many random patches of the same view; their mean is told. For single
            tokens the distribution over tokens is the control: `summary` and `spread` tell it.
        seed: of the random patches.
        row_budget: positions that one chunk of rows may hold; lower it if memory runs out.
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        NoEffectError: no image token, or one that the target cannot read in these layers.
        MMFlowError: layers with a gap between them, or a size that leaves no room for the control.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> prompt = mmf.nano.prompts(graph, 1)[0]
        >>> found = mmf.knockout_by_patch(graph, prompt, layers=range(4, 8), progress=False)
        >>> len(found.to_frame())
        64
    """
    graph = graph.at(remote)
    if not isinstance(prompt, Prompt):
        raise MMFlowError(f"knockout_by_patch takes one prompt, but a {type(prompt).__name__} came.")
    chosen = layer_list(range(graph.n_layers) if layers is None else layers, graph.n_layers)
    size_of_window, centres = _windows(chosen, window)
    span = prompt.spans[source]
    regions = regions_of(span, size)
    spans = {TARGET: prompt.spans[target] if isinstance(target, str) else target, WHOLE: span}
    spans |= {f"region_{k}": Span(f"region_{k}", region.positions, span.row) for k, region in enumerate(regions)}
    for draw in range(controls if size > 1 else 0):
        drawn = {f"random_{draw}_{k}": held for k, held in enumerate(random_partners(regions, seed + draw))}
        spans |= {name: Span(name, held, span.row) for name, held in drawn.items()}
    named = prompt.spans.having(**spans)
    edges = tuple(f"{name}->{TARGET}" for name in spans if name != TARGET)
    blocks = graph.adapter.bidirectional(prompt.spans)
    plan = make_plan(sizes_of(graph, prompt), named, edges, (size_of_window,), row_budget, blocks, centres)

    def collect(entries: list[dict]) -> KnockoutByPatchResult:
        (kept,) = entries
        token, base = kept["token"], kept["base"]
        measured = zip(plan.cells, kept["cells"], strict=True)
        changes = {(edge, centre): (log, int(top)) for (edge, _, centre), (log, top) in measured}
        whole = [math.expm1(changes[f"{WHOLE}->{TARGET}", centre][0] - base) * 100 for centre in centres]
        header = {
            "model": graph.name,
            "source": source,
            "target": target if isinstance(target, str) else target.name,
            "layers": chosen,
            "window": window,
            "size": size,
            "seed": seed,
            "n_layers": graph.n_layers,
            "n_regions": len(regions),
            "answer": graph.processor.tokenizer.decode([token]).strip(),
            "base_probability": math.exp(base),
            "whole_change_percent": whole,
            "left_out": {"tokens that show no patch": len(span) - sum(len(region.positions) for region in regions)},
            "plan": repr(plan),
            "metric": "change of the probability of the model's first answer token, in percent of the clean run's",
            "versions": versions(),
        }
        return KnockoutByPatchResult(_table(prompt, regions, plan, token, base, changes, controls), header, prompt)

    settings = {"source": source, "target": list(spans[TARGET]), "layers": chosen, "window": window, "size": size}
    study = Study(
        name="knockout by patch",
        settings={**settings, "controls": controls, "seed": seed},
        tasks=[prompt_task(prompt, prompt_identity(prompt), plan)],
        measure=measure,
        collect=collect,
        cost=lambda left: f"{len(regions)} regions, {len(centres)} window(s) of layers; {plan!r}",
        cells=lambda task, kept: ([(n,) for n in range(len(kept["cells"]))], [(n,) for n in range(len(plan.cells))]),
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def measure(graph: Graph, prompt: Prompt, plan: Plan) -> dict:
    """What the journal keeps of the prompt: the answer's token, its log-probability, and each cell's numbers."""
    start = min(chunk.start for chunk in plan.chunks)
    swept = run_sweep(graph, plan, prompt, start, 1, None)
    base, token = swept["numbers"][0]
    return {"token": int(token), "base": base, "cells": swept["cells"]}


def _windows(chosen: list[int], window: int | None) -> tuple[int, tuple[int, ...]]:
    """(size of the windows, their centres), such that a window of None is all the chosen layers."""
    if chosen != list(range(chosen[0], chosen[-1] + 1)):
        raise MMFlowError(
            f"layers={chosen} have a gap, and a row closes one stretch of layers: range({chosen[0]}, {chosen[-1] + 1}),"
            " or window=1 for each layer of a stretch by itself."
        )
    if window is None:
        return len(chosen), (chosen[0] + len(chosen) // 2,)
    if window < 1:
        raise MMFlowError(f"a window holds at least 1 layer, but window={window} came.")
    return window, tuple(chosen)


def _table(
    prompt: Prompt,
    regions: list[Region],
    plan: Plan,
    token: int,
    base: float,
    changes: dict[tuple[str, int], tuple[float, int]],
    controls: int,
) -> pd.DataFrame:
    import pandas as pd

    from nnsight_mmflow.spans.windows import window_layers

    rows = []
    for _, size, centre in dict.fromkeys((None, size, centre) for _, size, centre in plan.cells):
        layers = window_layers(centre, size, plan.sizes.n_layers)
        for number, region in enumerate(regions):
            log, top = changes[f"region_{number}->{TARGET}", centre]
            drawn = [changes.get((f"random_{draw}_{number}->{TARGET}", centre)) for draw in range(controls)]
            partners = [math.expm1(numbers[0] - base) * 100 for numbers in drawn if numbers is not None]
            rows.append(
                {
                    "prompt": prompt.key or "0",
                    "region": number,
                    "image": region.image,
                    "view": region.view,
                    "tile": region.tile,
                    "row": region.row,
                    "column": region.column,
                    "n_tokens": len(region.positions),
                    "positions": list(region.positions),
                    "window": size,
                    "layer": centre,
                    "first_layer": layers[0],
                    "last_layer": layers[-1],
                    "base_probability": math.exp(base),
                    "probability": math.exp(log),
                    "change_percent": math.expm1(log - base) * 100,
                    "log_probability_change": log - base,
                    "answer_changed": top != token,
                    "control_change_percent": sum(partners) / len(partners) if partners else float("nan"),
                }
            )
    return pd.DataFrame(rows).astype(dict.fromkeys(("tile", "row", "column"), "Int64"))
