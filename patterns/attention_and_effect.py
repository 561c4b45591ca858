"""Attention beside its causal effect, and both beside random spans of the same size: is what is looked at also used?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.inside.plan import ROW_BUDGET
from nnsight_mmflow.model.pattern import layer_list
from nnsight_mmflow.patterns.attention.attention import check_size, read_weights
from nnsight_mmflow.patterns.attention.result import SINK
from nnsight_mmflow.prompts.prompt import Prompt
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.identity import prompt_identity
from nnsight_mmflow.runs.plan import make_plan, sizes_of
from nnsight_mmflow.runs.results import Result, versions
from nnsight_mmflow.runs.runner import Study, prompt_task, run_study
from nnsight_mmflow.runs.sweep import run_sweep
from nnsight_mmflow.spans.edges import check_readable, resolve
from nnsight_mmflow.spans.span import Span

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    import pandas as pd

    from nnsight_mmflow.inside.plan import Plan
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.runs.workers import Workers
    from nnsight_mmflow.spans.row_spans import Spans

SOURCE, TARGET, CONTROL = "source_of_edge", "target_of_edge", "control_"


class AttentionAndEffectResult(Result):
    """Attention and effect by layer. One table row per layer and span: the source, then each control.

    Columns: layer, span ("source", or "control 0" and on), tokens, mass (attention that a target gives to the span in
    all: mean over heads and targets), change_percent (of the answer's probability when the target may not read the
    span in that layer), sink_mass (the part of the mass that goes to attention sinks).
    """

    kind: ClassVar[str] = "attention_and_effect"
    drawn_by: ClassVar[str] = "effect_figure"  # two panels: mass and causal effect, with the controls' range

    def curves(self) -> pd.DataFrame:
        """A row per layer: mass, change_percent, and of both the controls' mean, lowest and highest.

        Columns: mass, mass_control, mass_low, mass_high, change_percent, change_percent_control, change_percent_low,
        change_percent_high. Without controls these are NaN.
        """
        table = self.table
        wide = table[table["span"] == "source"].set_index("layer")[["mass", "change_percent"]]
        drawn = table[table["span"] != "source"].groupby("layer")
        for name in ("mass", "change_percent"):
            for ending, reduced in (("control", "mean"), ("low", "min"), ("high", "max")):
                wide[f"{name}_{ending}"] = drawn[name].agg(reduced).reindex(wide.index)
        return wide

    @checked
    def beside(self, layer: int) -> str:
        """Markup for a page that shows one layer's attention: the edge's mass and effect there, with the controls'.

        Raises:
            MMFlowError: the layer was not measured.
        """
        curves, header = self.curves(), self.header
        if layer not in curves.index:
            raise MMFlowError(f"layer {layer} was not measured: {', '.join(map(str, curves.index))} were.")
        row, source, n = curves.loc[layer], f"{header['source']} -> {header['target']}", header["controls"]
        lines = [
            f"<tr><td>{escape(source)} ({header['tokens']} tokens)</td><td class='number'>{row['mass']:.1%}</td>"
            f"<td class='number'>{row['change_percent']:+.2f}%</td></tr>"
        ]
        if n:
            lines.append(
                f"<tr><td>random image tokens, as many: mean of {n} draws [range]</td>"
                f"<td class='number'>{row['mass_control']:.1%} [{row['mass_low']:.1%}, {row['mass_high']:.1%}]</td>"
                f"<td class='number'>{row['change_percent_control']:+.2f}%"
                f" [{row['change_percent_low']:+.2f}, {row['change_percent_high']:+.2f}]</td></tr>"
            )
        head = f"<th>layer {layer}</th><th class='number'>attention mass</th>"
        head += "<th class='number'>change of the answer's probability without it</th>"
        return f"<table><tr>{head}</tr>{''.join(lines)}</table>"

    def summary(self) -> str:
        """Where attention and effect are largest, against the controls."""
        curves, header = self.curves(), self.header
        most, least = curves["mass"].idxmax(), curves["change_percent"].idxmin()
        lines = [
            f"{header['model']}, {header['source']} -> {header['target']} ({header['tokens']} tokens), answer"
            f" {header['prediction']!r} at {header['base_probability']:.1%}"
        ]
        for what, layer in (("most attention", most), ("largest effect", least)):
            row = curves.loc[layer]  # type: ignore[call-overload]
            line = f"{what} at layer {layer}: mass {row['mass']:.1%}, change {row['change_percent']:+.2f}%"
            if header["controls"]:
                line += (
                    f"; {header['controls']} random spans there: mass {row['mass_control']:.1%} [{row['mass_low']:.1%},"
                    f" {row['mass_high']:.1%}], change {row['change_percent_control']:+.2f}%"
                    f" [{row['change_percent_low']:+.2f}, {row['change_percent_high']:+.2f}]"
                )
            lines.append(line)
        sinks = self.table[(self.table["span"] == "source") & (self.table["sink_mass"] > 0)]
        if len(sinks):
            layers = ", ".join(str(layer) for layer in sinks["layer"])
            lines.append(f"part of the source's mass goes to attention sinks in layers {layers}")
        return "\n".join(lines)


@experiment
def attention_and_effect(
    graph: Graph,
    prompt: Prompt,
    source: str | Span,
    target: str | Span = "last",
    *,
    layers: int | Iterable[int] | None = None,
    controls: int = 5,
    seed: int = 0,
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> AttentionAndEffectResult:
    """An AttentionAndEffectResult: how much a target looks at a source in each layer, and what happens when it may not.

    The attention mass is exact (`mmf.attention`); the effect is a knockout of that edge in that one layer (`mmf.flow`
    with window=1), in percent of the probability of the answer that the model gives. Beside both stand as many random
    image tokens, drawn outside the source `controls` times: what any span of that size gets and does.

    Args:
        graph: the model.
        prompt: one prompt; whatever the model answers counts.
        source: the span that is read, such as prompt.spans["image"].box(*prompt.boxes).
        target: the span that reads.
        layers: the layers that are measured; all unless given.
        controls: how many random spans; 0 for none.
        seed: of the random spans.
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        NoEffectError: an edge that is not open anywhere.
        MMFlowError: too few image tokens outside the source to draw as many from.

    Source: attention is not explanation: LLaVA issue 1080; attention sinks: VisAttnSink (arXiv 2503.03321).

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> prompt = mmf.nano.prompts(graph, 1)[0]
        >>> thing = prompt.spans["image"].box(*prompt.boxes)
        >>> result = mmf.attention_and_effect(graph, prompt, thing, layers=range(4, 8), controls=3, progress=False)
        >>> len(result.to_frame())
        16
    """
    graph = graph.at(remote)
    if not isinstance(prompt, Prompt):
        raise MMFlowError(f"attention_and_effect takes one prompt, but a {type(prompt).__name__} came.")
    chosen = layer_list(range(graph.n_layers) if layers is None else layers, graph.n_layers)
    (read,), (reads,) = (resolve(what, prompt.rows(), role) for what, role in ((source, "source"), (target, "target")))
    blocks = graph.adapter.bidirectional(prompt.spans)
    check_readable(f"{read.name}->{reads.name}", read, reads, blocks)
    drawn = random_spans(prompt, read, controls, seed)
    named = {SOURCE: read, **{f"{CONTROL}{number}": span for number, span in enumerate(drawn)}}
    spans = prompt.spans.having(**named, **{TARGET: reads})
    edges = tuple(f"{name}->{TARGET}" for name in named)
    check_size(chosen, list(range(graph.n_heads)), list(reads), list(prompt.spans["all"]))
    plan = make_plan(sizes_of(graph, prompt), spans, edges, (1,), ROW_BUDGET, blocks)

    def collect(entries: list[dict]) -> AttentionAndEffectResult:
        import pandas as pd

        (kept,) = entries
        changes = {
            (edge, layer): math.expm1(log - kept["base"]) * 100
            for (edge, _, layer), (log, _) in zip(plan.cells, kept["cells"], strict=True)
        }
        rows = [
            {
                "layer": layer,
                "span": "source" if name == SOURCE else name.replace("_", " "),
                "tokens": len(span),
                "mass": kept["mass"][index][number],
                "change_percent": changes[edge, layer],
                "sink_mass": kept["sink_mass"][index][number],
            }
            for index, layer in enumerate(chosen)
            for number, ((name, span), edge) in enumerate(zip(named.items(), edges, strict=True))
        ]
        header = {
            "model": graph.name,
            "source": source if isinstance(source, str) else source.name,
            "target": target if isinstance(target, str) else target.name,
            "tokens": len(read),
            "n_layers": graph.n_layers,
            "controls": controls,
            "seed": seed,
            "question": prompt.question,
            "prediction": kept["prediction"],
            "base_probability": math.exp(kept["base"]),
            "metric": "attention mass, mean over heads and targets; change of the answer's probability in percent, one"
            " layer knocked out",
            "versions": versions(),
        }
        return AttentionAndEffectResult(pd.DataFrame(rows), header)

    study = Study(
        name="attention and effect",
        settings={"spans": {name: list(span) for name, span in named.items()}, "target": list(reads), "layers": chosen},
        tasks=[prompt_task(prompt, prompt_identity(prompt), spans, plan, list(named), reads, chosen)],
        measure=measure,
        collect=collect,
        cost=lambda left: f"{len(named)} spans in {len(chosen)} layers; {plan!r}",
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def measure(
    graph: Graph, prompt: Prompt, spans: Spans, plan: Plan, names: list[str], target: Span, layers: list[int]
) -> dict:
    """What the journal keeps of the prompt: the sweep's numbers, and by layer and span the attention mass."""
    start = min(chunk.start for chunk in plan.chunks)
    swept = run_sweep(graph, plan, prompt, start, 16, None)
    text = graph.processor.tokenizer.decode(swept["tokens"], skip_special_tokens=True).strip()
    everything = list(prompt.spans["all"])
    maps = read_weights(graph, prompt, (), layers, list(range(graph.n_heads)), list(target), everything)
    mean, masses, sunk = maps["weights"].mean((1, 2)), [], []
    for index in range(len(layers)):
        sinks = set((maps["received"][index] > SINK).nonzero().flatten().tolist())
        masses.append([float(mean[index, list(spans[name])].sum()) for name in names])
        sunk.append([float(mean[index, sorted(sinks & set(spans[name]))].sum()) for name in names])
    base, _ = swept["numbers"][0]
    return {"prediction": text, "base": base, "cells": swept["cells"], "mass": masses, "sink_mass": sunk}


def random_spans(prompt: Prompt, source: Span, count: int, seed: int) -> list[Span]:
    """Spans of as many image tokens as the source has, each drawn at random outside it.

    Raises:
        MMFlowError: there are not as many.
    """
    import numpy as np

    outside = prompt.spans["image"] - source
    if count and len(outside) < len(source):
        raise MMFlowError(
            f"{source.name!r} has {len(source)} tokens, but only {len(outside)} image tokens lie outside it: no random"
            " span of the same size can be drawn. Take a smaller source, or controls=0."
        )
    random = np.random.default_rng(seed)
    drawn = [random.choice(list(outside), len(source), replace=False).tolist() for _ in range(count)]
    return [outside.part(positions, f"{CONTROL}{number}") for number, positions in enumerate(drawn)]
