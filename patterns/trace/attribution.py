"""Attribution patching: what patching every head at every span would do, estimated with a gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.model.split import whole_here
from nnsight_mmflow.patterns.trace.attribution_run import measure
from nnsight_mmflow.patterns.trace.causal_trace import trace_spans, with_spans_of
from nnsight_mmflow.patterns.trace.corruption import corruption_identity
from nnsight_mmflow.remote.words import needs_gradients
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.identity import drawn_by, prompt_identity
from nnsight_mmflow.runs.results import Result, versions
from nnsight_mmflow.runs.runner import Study, counted, listed, prompt_task, row_cells, rows_of, run_study
from nnsight_mmflow.runs.scores import (
    FIRST,
    Quantity,
    Score,
    answered_alike,
    check_score,
    check_scored,
    quantity_of,
    readings,
    score_identity,
    score_name,
)

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.trace.corruption import Corruption
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.workers import Workers


class AttributionPatchingResult(Result):
    """Attribution patching. One table row per prompt, span, layer and head.

    Columns: prompt, span, layer, head, answer, clean_probability, corrupt_probability (with another `score` than the
    first token clean_score and corrupt_score), estimate (of the change of the
    answer's log-probability, in nats, when the corrupt run gets the head's clean result at the span), exact (the same,
    measured; NaN where it was not).
    """

    kind: ClassVar[str] = "attribution"
    drawn_by: ClassVar[str] = (
        "attribution_figure"  # heat maps, head by layer, a panel per span; estimates against exact
    )

    @property
    def quantity(self) -> Quantity:
        """What estimates are of, by the run's score."""
        return quantity_of(self.header.get("score"))

    @property
    def unit(self) -> str:
        """Of estimates: nats, but for a function or a difference of logits."""
        return " nats" if self.header.get("score") in (None, "answer") else self.quantity.unit

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
            f"layer {row.layer}, head {row.head}, {row.span}: {row.estimate:+.2f}{self.unit}"
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
    score: Score = "first",
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
        score: as in `mmf.flow`: "first" (of the clean run's own answer), "answer", "options", or a function, which then
            returns a tensor made of the logits, so that a gradient can be taken.
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
    check_score(score, "attribution_patching")
    why = check_scored(prompts, score, "attribution_patching")
    held = [[] if reason else readings(graph, prompt, score) for prompt, reason in zip(prompts, why, strict=True)]
    places = [
        trace_spans(n, with_spans_of(prompt, parts), corruption, spans, each=False, controls=0)
        for n, ((prompt, corruption), parts) in enumerate(zip(pairs, held, strict=True))
    ]
    names = [f"{prompt_identity(prompt)}, {corruption_identity(corruption)}" for prompt, corruption in pairs]

    def collect(entries: list[dict]) -> AttributionPatchingResult:
        import pandas as pd

        header = {
            "model": graph.name,
            **counted([entry.get("why", "") for entry in entries]),
            "n_layers": graph.n_layers,
            "n_heads": graph.n_heads,
            "corruptions": list(dict.fromkeys(one.how for one in corruptions)),
            "metric": "change of the log-probability of the clean answer's first token (nats)"
            if score == FIRST
            else quantity_of(score_name(score)).label,
            "versions": versions(),
        }
        if score != FIRST:
            header["score"] = score_name(score)
        return AttributionPatchingResult(pd.DataFrame(rows_of(prompts, entries)).drop(columns="kind"), header)

    layers, heads = range(graph.n_layers), range(graph.n_heads)
    study = Study(
        name="attribution",
        settings={"spans": spans and list(spans), "exact": exact, "seed": seed, **score_identity(score)},
        tasks=[
            prompt_task(
                prompt,
                name,
                corruption,
                where,
                exact,
                drawn_by(seed, name),
                [(one, replace(corruption, prompt=answered_alike(graph, one, corruption.prompt))) for one in parts],
                no,
            )
            for (prompt, corruption), name, where, parts, no in zip(pairs, names, places, held, why, strict=True)
        ],
        measure=measure,
        collect=collect,
        cost=lambda left: f"two forwards and a backward each, and {exact} forwards for cells that are patched.",
        cells=row_cells(
            "layer",
            "span",
            "head",
            planned=lambda task, entry: [
                (layer, at, head)
                for layer in (() if entry.get("why") else layers)
                for at in task.given[2]
                for head in heads
            ],
        ),
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)
