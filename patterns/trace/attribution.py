"""Attribution patching: what patching every head at every span would do, estimated with a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, ClassVar

import nnsight
import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.inside.gradients import heads_and_gradients
from nnsight_mmflow.model.split import whole_here
from nnsight_mmflow.patterns.patch import Patch
from nnsight_mmflow.patterns.trace.causal_trace import trace_spans
from nnsight_mmflow.patterns.trace.corruption import corruption_identity
from nnsight_mmflow.remote.words import needs_gradients
from nnsight_mmflow.runs.each import next_or_none
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.identity import drawn_by, prompt_identity
from nnsight_mmflow.runs.results import Result, versions
from nnsight_mmflow.runs.runner import Study, counted, listed, prompt_task, row_cells, rows_of, run_study

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.patterns.trace.corruption import Corruption
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.workers import Workers


class AttributionPatchingResult(Result):
    """Attribution patching. One table row per prompt, span, layer and head.

    Columns: prompt, span, layer, head, answer, clean_probability, corrupt_probability, estimate (of the change of the
    answer's log-probability, in nats, when the corrupt run gets the head's clean result at the span), exact (the same,
    measured; NaN where it was not).
    """

    kind: ClassVar[str] = "attribution"
    drawn_by: ClassVar[str] = (
        "attribution_figure"  # heat maps, head by layer, a panel per span; estimates against exact
    )

    @property
    def correlation(self) -> float:
        """Pearson's correlation of estimates with what was measured; NaN with fewer than three."""
        both = self.table.dropna(subset=["exact"])
        return float(both["estimate"].corr(both["exact"])) if len(both) > 2 else float("nan")

    @checked
    def top(self, k: int) -> pd.DataFrame:
        """The k heads and spans with the largest mean estimate, either way: span, layer, head, estimate, exact."""
        means = self.table.groupby(["span", "layer", "head"], sort=False)[["estimate", "exact"]].mean().reset_index()
        return means.reindex(means["estimate"].abs().sort_values(ascending=False).index).head(k).reset_index(drop=True)

    def summary(self) -> str:
        """The correlation with exact patching, and the heads that matter most."""
        checked = int(self.table["exact"].notna().sum())
        counts = (
            f"correlation with exact patching {self.correlation:.2f} (of {checked} cells)" if checked else "unchecked"
        )
        lines = [f"{self.header['model']}: {self.header['n_prompts']} prompts, {len(self.table)} cells; {counts}"]
        lines += [
            f"layer {row.layer}, head {row.head}, {row.span}: {row.estimate:+.2f} nats"
            for row in self.top(5).itertuples()
        ]
        return "\n".join(lines)


@experiment
def attribution_patching(
    graph: Graph,
    clean: Prompt | Sequence[Prompt],
    corrupt: Corruption | Sequence[Corruption],
    spans: Sequence[str] | None = None,
    *,
    exact: int = 24,
    seed: int = 0,
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> AttributionPatchingResult:
    """An AttributionPatchingResult: for each head and span, what patching it from the clean run would do to the answer.

    Two forwards and one backward per prompt give all of them: to first order, the change of the answer's
    log-probability is the gradient at the corrupt run times the difference of the head's results. Some cells are
    patched for real, and the correlation is printed: a low one means that the estimates are not to be trusted here.

    Args:
        graph: the model.
        clean: one prompt or several.
        corrupt: for each its corrupt run, of the same length (`mmf.corruption`).
        spans: expressions over the clean prompt's spans. None takes what the corruption can reach of: image, the
            constraint (the words that were replaced), the question behind it, the last position.
        exact: in how many cells of each prompt the patch is really made: half of them those with the largest estimates,
            half drawn by chance; 0: none.
        seed: of the cells that are drawn by chance.
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        NoEffectError: two runs that do not differ.
        MMFlowError: as many corruptions as prompts are needed, of the same length.

    Source: attribution patching as Nanda (2023) and Syed et al. (arXiv 2310.10348) describe it.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> prompts, corrupt = mmf.nano.trace_pairs(graph, 2, "flag")
        >>> result = mmf.attribution_patching(graph, prompts, corrupt, ["last"], exact=8, progress=False)
        >>> len(result.to_frame()) == 2 * graph.n_layers * graph.n_heads
        True
    """
    graph = graph.at(remote)
    needs_gradients(graph, "attribution_patching")
    whole_here(graph, "attribution")
    prompts = listed(clean)
    corruptions = list(corrupt) if isinstance(corrupt, Sequence) else [corrupt]
    if not prompts or len(prompts) != len(corruptions):
        raise MMFlowError(f"{len(prompts)} prompt(s) and {len(corruptions)} corruption(s): one for each is needed.")
    pairs = list(zip(prompts, corruptions, strict=True))
    for number, (prompt, corruption) in enumerate(pairs):
        if len(prompt) != len(corruption.prompt):
            raise MMFlowError(
                f"prompt {number} has {len(prompt)} positions, its corrupt run {len(corruption.prompt)}: positions"
                " would not mean the same."
            )
    places = [trace_spans(n, *pair, spans, each=False, controls=0) for n, pair in enumerate(pairs)]
    names = [f"{prompt_identity(prompt)}, {corruption_identity(corruption)}" for prompt, corruption in pairs]

    def collect(entries: list[dict]) -> AttributionPatchingResult:
        import pandas as pd

        header = {
            "model": graph.name,
            **counted([""] * len(entries)),
            "n_layers": graph.n_layers,
            "n_heads": graph.n_heads,
            "corruptions": list(dict.fromkeys(corruption.how for corruption in corruptions)),
            "metric": "change of the log-probability of the clean answer's first token (nats)",
            "versions": versions(),
        }
        return AttributionPatchingResult(pd.DataFrame(rows_of(prompts, entries)).drop(columns="kind"), header)

    layers, heads = range(graph.n_layers), range(graph.n_heads)
    study = Study(
        name="attribution",
        settings={"spans": spans and list(spans), "exact": exact, "seed": seed},
        tasks=[
            prompt_task(prompt, name, corruption, where, exact, drawn_by(seed, name))
            for (prompt, corruption), name, where in zip(pairs, names, places, strict=True)
        ],
        measure=measure,
        collect=collect,
        cost=lambda left: f"two forwards and a backward each, and {exact} forwards for cells that are patched.",
        cells=row_cells(
            "layer",
            "span",
            "head",
            planned=lambda task, entry: [
                (layer, at, head) for layer in layers for at in task.given[2] for head in heads
            ],
        ),
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def measure(
    graph: Graph,
    prompt: Prompt,
    corruption: Corruption,
    places: dict[str, list[int]],
    exact: int,
    seed: int,
) -> dict:
    """What the journal keeps of one prompt."""
    outs, first, width = (
        [graph.attention_out(layer) for layer in range(graph.n_layers)],
        graph.layers[0],
        graph.head_width,
    )
    with torch.no_grad(), graph.trace(prompt, use_cache=False, logits_to_keep=1):
        clean = nnsight.save([out.inputs[0][0][0].detach().clone() for out in outs])
        log = nnsight.save(graph.model.output.logits[0, -1].float().log_softmax(-1).detach())
    token = int(log.argmax())
    with graph.trace(corruption.prompt, *corruption.patterns, use_cache=False, logits_to_keep=1):
        saved = nnsight.save(heads_and_gradients(first, outs, graph.model, token))
    low, heads, gradients = saved
    rows = []
    for layer, (was, now, gradient) in enumerate(zip(clean, heads, gradients, strict=True)):
        gain = ((was.to(now) - now).float() * gradient.float()).unflatten(-1, (graph.n_heads, width)).sum(-1).cpu()
        for name, at in places.items():
            rows += [
                {
                    "span": name,
                    "layer": layer,
                    "head": head,
                    "answer": graph.processor.tokenizer.decode([token]).strip(),
                    "clean_probability": math.exp(float(log[token])),
                    "corrupt_probability": math.exp(low),
                    "estimate": float(gain[at, head].sum()),
                    "exact": float("nan"),
                }
                for head in range(graph.n_heads)
            ]
    generator = torch.Generator().manual_seed(seed)
    order = sorted(range(len(rows)), key=lambda i: -abs(rows[i]["estimate"]))
    drawn = [i for i in torch.randperm(len(rows), generator=generator).tolist() if i not in order[: exact // 2]]
    everything = corruption.prompt.spans["all"]
    chosen = [*order[: exact // 2], *drawn[: exact - exact // 2]]
    patches: list[tuple[Pattern, ...]] = []
    for i in chosen:
        row = rows[i]
        span = everything.part(places[row["span"]], row["span"])
        value = clean[row["layer"]][places[row["span"]]][None, None]
        patch = Patch(at=span, site="attn", layers=row["layer"], heads=(row["head"],), value=value)
        patches.append((*corruption.patterns, patch))
    for i, measured in zip(chosen, next_or_none(graph, corruption.prompt, patches, token), strict=True):
        rows[i]["exact"] = 0.0 if measured is None else measured.log - low  # None: the head gives there what it gave
    return {"rows": rows}
