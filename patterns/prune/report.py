"""What pruning costs and saves: accuracy, agreement, tokens, operations, times and memory; controls beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._kinds import came
from nnsight_mmflow._progress import say
from nnsight_mmflow.inside.names import CACHE
from nnsight_mmflow.model.forms import form_of
from nnsight_mmflow.model.generation_settings import plain_settings, settings_used
from nnsight_mmflow.patterns.prune.controls import Grid, Random
from nnsight_mmflow.patterns.prune.kept_tokens import image_tokens_per_layer
from nnsight_mmflow.patterns.prune.prune import Prune
from nnsight_mmflow.patterns.prune.run import answer_together, measure_speed
from nnsight_mmflow.runs.costs import DecoderSize, cache_bytes, paper_flops
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.fingerprint import fingerprint
from nnsight_mmflow.runs.identity import prompt_identity
from nnsight_mmflow.runs.results import Result, versions
from nnsight_mmflow.runs.right_answers import check_answers
from nnsight_mmflow.runs.runner import Study, Task, listed, run_study

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.workers import Workers

UNPRUNED = "unpruned"
NOT_HERE = ("max_new_tokens", "return_dict_in_generate", "generation_config", *CACHE)


class PruneReport(Result):
    """Pruning methods compared. One table row per method and prompt.

    Columns: method, prompt, kind, answer (what is right), written (what the model wrote), right, agrees (it wrote what
    the unpruned model wrote), image_tokens (mean per layer), tokens_share, flops_share (the paper's count: image tokens
    alone), flops_share_with_text, cache_share. The header holds `speed`: by method the measured milliseconds to the
    first token, milliseconds per token after it, and peak memory.
    """

    kind: ClassVar[str] = "prune_report"
    drawn_by: ClassVar[str] = "prune_figure"  # accuracy against image tokens per layer

    def scores(self) -> pd.DataFrame:
        """A row per method: right with a 95% interval, agrees, the shares, and the measured times.

        The interval of `difference` (right, less that of the unpruned model) resamples prompts in pairs.
        """
        import numpy as np
        import pandas as pd

        from nnsight_mmflow.runs.results import bootstrap_band

        wide = self.table.pivot_table(index="prompt", columns="method", values="right", aggfunc="first").astype(float)
        rows = []
        for method in self.header["methods"]:
            part = self.table[self.table["method"] == method]
            mean, low, high = (float(np.squeeze(bound)) for bound in bootstrap_band(wide[[method]]))
            change = (wide[method] - wide[UNPRUNED]).to_frame()
            difference, worst, best = (float(np.squeeze(bound)) for bound in bootstrap_band(change))
            shares = ("image_tokens", "tokens_share", "flops_share", "flops_share_with_text", "cache_share")
            rows.append(
                {
                    "method": method,
                    "right": mean,
                    "low": low,
                    "high": high,
                    "difference": difference,
                    "difference_low": worst,
                    "difference_high": best,
                    "agrees": part["agrees"].mean(),
                    **{name: part[name].mean() for name in shares},
                    **self.header["speed"].get(method, {}),
                }
            )
        return pd.DataFrame(rows)

    def summary(self) -> str:
        """The table of scores."""
        scores = self.scores()
        lines = [f"{self.header['model']}: {self.header['n_prompts']} prompts"]
        for row in scores.itertuples():
            lines.append(
                f"{row.method}: {row.right:.1%} right ({row.low:.1%} to {row.high:.1%}), {row.agrees:.1%} as unpruned,"
                f" {row.image_tokens:.1f} image tokens per layer, FLOPs {row.flops_share:.0%} (image),"
                f" {row.flops_share_with_text:.0%} (with text)"
            )
        return "\n".join(lines)


@experiment
def prune_report(
    graph: Graph,
    prompts: Prompt | Sequence[Prompt],
    methods: Sequence[Prune] | Mapping[str, Prune],
    *,
    controls: int = 1,
    max_new_tokens: int = 8,
    generation: Mapping[str, object] | None = None,
    batch_size: int = 8,
    timed: int = 3,
    judge: Callable[[Prompt, str], float] | None = None,
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> PruneReport:
    """A PruneReport: what each method keeps of the model's answers, and what it saves.

    Beside each method stand a random and a regular thinning with the same mean number of image tokens per layer, from
    the same first layer on: a method that does no better has found nothing.

    Args:
        graph: the model.
        prompts: one prompt or several, with `answer` set.
        methods: patterns, or a mapping from names to patterns.
        controls: how many random thinnings of equal budget stand beside each method, and one regular one; 0: none.
        max_new_tokens: how long an answer may get.
        generation: more settings of transformers' generate, such as {"num_beams": 3}. Without them answers are greedy,
            whatever the checkpoint's generation config says; all that was used stands in the header. One answer a
            prompt is read.
        batch_size: prompts in one generation.
        judge: (prompt, written) to how right that is, 0 to 1, such as a benchmark's own rule (`read_benchmark`);
            None: the whole answer, whatever the case.
        timed: how often times are measured (the median is told); 0: not at all.
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`. They need timed=0.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        MMFlowError: a prompt without an answer, or no method.
        NoEffectError: a method that drops nothing.

    Source: Lifting the Veil on Visual Information Flow (arXiv 2503.13108), section 6.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> quiet = {"progress": False, "report": lambda text: None}
        >>> prompts = mmf.nano.prompts(graph, 6)
        >>> result = mmf.prune_report(graph, prompts, [mmf.FastV(k=5)], timed=0, **quiet)
        >>> len(result.scores())
        4
    """
    graph = graph.at(remote)
    prompt_list = listed(prompts, "prune_report")
    check_answers(prompt_list, "prune_report")
    if timed and workers:
        raise MMFlowError("times are measured alone, not beside other workers: give timed=0, or leave workers out.")
    named = dict(methods) if isinstance(methods, Mapping) else {str(method): method for method in methods}
    if not named:
        raise MMFlowError("prune_report needs at least one method, but got none.")
    typical = max(prompt_list, key=lambda prompt: len(prompt.spans["image"]))
    used = plain_settings(graph, **_checked(generation or {}), max_new_tokens=max_new_tokens)
    form = form_of(graph, used, (1, len(typical)))
    for method in named.values():
        method.check(graph, typical.rows(), form)
    every: dict[str, Prune | None] = {UNPRUNED: None}
    for name, method in named.items():
        every[name] = method
        if controls:
            every |= equal_budget(graph, method, typical, controls)
    settings = {
        "model": graph.name,
        "methods": list(every),
        "patterns": {name: repr(pattern) for name, pattern in every.items()},
        "n_prompts": len(prompt_list),
        "max_new_tokens": max_new_tokens,
        "generation": settings_used(graph, used),
        "batch_size": batch_size,
        "attention": graph.backend,
        "versions": versions(),
    }
    names = [prompt_identity(prompt) for prompt in prompt_list]
    tasks = [
        Task(f"{fingerprint(pattern)}: {unique}", (prompt, pattern, used), f"{name}: {prompt.key}", name)
        for name, pattern in every.items()
        for prompt, unique in zip(prompt_list, names, strict=True)
    ]
    tasks += [
        Task(
            f"{fingerprint(pattern)}: speed of {names[0]}, {timed} times",
            (prompt_list[0], pattern, timed),
            f"speed of {name}",
        )
        for name, pattern in (every.items() if timed else ())
    ]

    def collect(entries: list[dict]) -> PruneReport:
        import pandas as pd

        n, size = len(prompt_list), DecoderSize.of(graph)
        written = {name: entries[at * n : (at + 1) * n] for at, name in enumerate(every)}
        speed = dict(zip(every, (entry["speed"] for entry in entries[len(every) * n :]), strict=False))
        rows = [
            {
                "method": name,
                "prompt": f"{number}:{prompt.key}",
                "kind": prompt.kind,
                "answer": prompt.answer,
                "written": entry["written"],
                "right": float(judge(prompt, entry["written"]) if judge else prompt.accepts(entry["written"])),
                "agrees": entry["written"] == plain["written"],
                **_shares(graph, prompt, pattern, size),
            }
            for name, pattern in every.items()
            for number, (prompt, entry, plain) in enumerate(
                zip(prompt_list, written[name], written[UNPRUNED], strict=True)
            )
        ]
        return PruneReport(pd.DataFrame(rows), {**settings, "speed": speed or {name: {} for name in every}})

    study = Study(
        name="prune report",
        settings={
            "generation": settings["generation"],
            "max_new_tokens": max_new_tokens,
            "timed_on": graph.device.type if timed else None,
        },
        tasks=tasks,
        measure=measure_speed,
        measure_batch=answer_together,
        batch_size=batch_size,
        collect=collect,
        cost=lambda left: (
            f"{len(every)} methods, {len(prompt_list)} prompts, up to {max_new_tokens} tokens each,"
            f" {batch_size} at once."
        ),
        unit="generation",
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def _checked(generation: Mapping[str, object]) -> Mapping[str, object]:
    """The settings; refuses those that are said elsewhere, or that write several answers for a prompt."""
    if not isinstance(generation, Mapping):
        raise MMFlowError(f"generation is a mapping of settings, such as {{'num_beams': 3}}; {came(generation)} came.")
    if generation.get("num_return_sequences", 1) != 1:
        raise MMFlowError(
            f"generation has num_return_sequences={generation['num_return_sequences']}, but a report reads one answer a"
            " prompt. Leave it out."
        )
    ours = [name for name in generation if name in NOT_HERE]
    if ours:
        raise MMFlowError(
            f"generation has {ours[0]!r}, which a report cannot take there. Give transformers' settings by name, such"
            " as {'num_beams': 3}; max_new_tokens is an argument of its own."
        )
    return generation


def equal_budget(graph: Graph, method: Prune, prompt: Prompt, draws: int = 1) -> dict[str, Prune]:
    """The random and the regular thinning that leave as many image tokens per layer, from the same first layer on.

    Named by what they do, so that methods of the same budget share them.
    """
    tokens, depth, count = image_tokens_per_layer(graph, prompt, method), graph.n_layers, len(prompt.spans["image"])
    first, left = next(layer for layer, number in enumerate(tokens) if number < count), sum(tokens)
    share = (left / count - first) / (depth - first)
    dropped = min(1.0, max(0.0, 1 - share))
    rest = f"from layer {first}, {1 - dropped:.1%} left"
    drawn = {
        f"random {f'{number + 1} ' if number else ''}{rest}": Random(k=first, r=dropped, mode=method.mode, seed=number)
        for number in range(draws)
    }
    return {**drawn, f"grid {rest}": Grid(k=first, r=dropped, mode=method.mode)}


def _shares(graph: Graph, prompt: Prompt, pattern: Prune | None, size: DecoderSize) -> dict[str, float]:
    """Tokens, operations and cache of one prompt, and their shares of the unpruned run's."""
    count = len(prompt.spans["image"])
    text = len(prompt) - count
    tokens, whole = image_tokens_per_layer(graph, prompt, pattern), [count] * size.n_layers
    positions, all_positions = [n + text for n in tokens], [n + text for n in whole]
    return {
        "image_tokens": sum(tokens) / size.n_layers,
        "tokens_share": sum(tokens) / sum(whole),
        "flops_share": paper_flops(tokens, size) / paper_flops(whole, size),
        "flops_share_with_text": paper_flops(positions, size) / paper_flops(all_positions, size),
        "cache_share": cache_bytes(positions, size) / cache_bytes(all_positions, size),
    }
