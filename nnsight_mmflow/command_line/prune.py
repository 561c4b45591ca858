"""`mmflow prune`: what pruning image tokens costs and saves, controls beside it; on nano's questions, or yours."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.command_line.experiments import METHODS
from nnsight_mmflow.command_line.shared import graph_and_prompts, who_measures
from nnsight_mmflow.files.escaping import markdown
from nnsight_mmflow.files.output import output_folder, write_csv, write_figure, write_text

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.prune.prune import Prune
    from nnsight_mmflow.patterns.prune.report import PruneReport
    from nnsight_mmflow.prompts.prompt import Prompt

BEFORE = METHODS[4:]  # before the language model, by the tower's class token
SHARES = (0.5, 0.25, 0.125)  # of the image tokens stay


def run(given: argparse.Namespace) -> None:
    """Runs the experiment, and writes prune_report.png, .csv, .parquet, .json and report.md."""
    import nnsight_mmflow as mmf

    folder = output_folder(given.out)
    graph, prompts = graph_and_prompts(given)
    patches = max(_tokens_per_picture(prompt) for prompt in prompts)
    methods = {
        name: pattern for wanted in given.methods for name, pattern in _methods(graph, wanted, given, patches).items()
    }
    timed = given.timed if given.timed is not None else 0 if given.workers else 3
    result = mmf.prune_report(
        graph,
        prompts,
        methods,
        controls=given.controls,
        max_new_tokens=given.max_new_tokens,
        timed=timed,
        folder=folder,
        **who_measures(given),
    )
    result.save(folder)  # again: a run tells that it could not be saved, a command ends with it
    write_csv(folder / "prune_report.csv", result.scores())
    write_figure(folder / "prune_report.png", result.plot(), dpi=150)
    write_text(folder / "report.md", report_text(result))
    say(str(result))
    say(f"written to {folder}: report.md, prune_report.png, prune_report.csv, prune_report.parquet")


def _tokens_per_picture(prompt: Prompt) -> int:
    image = prompt.spans["image"]
    return len(image) // (1 + max((place.image for place in image.places()), default=0))


def _methods(graph: Graph, name: str, given: argparse.Namespace, patches: int) -> dict[str, Prune]:
    """A method at each share of tokens that stay after its last prune; none for what the model's tower cannot do.

    Raises:
        MMFlowError: there is no such method.
    """
    import nnsight_mmflow as mmf

    if name in BEFORE and graph.tower_layer is None:
        say(f"{name} needs a tower with a class token and a patch per image token: left out for {graph.family}.")
        return {}

    early = given.k1 if given.k1 is not None else max(2, graph.n_layers // 5)
    late = given.k2 if given.k2 is not None else max(early + 1, graph.n_layers // 2)
    made: dict[str, Prune] = {}
    for share in SHARES:
        pattern: Prune
        if name == "fastv":
            pattern = mmf.FastV(k=early, r=1 - share, mode=given.mode)
        elif name == "himap":
            pattern = mmf.HiMAP(
                k1=early, r1=(1 - share) / 2, k2=late, r2=1 - share / (1 - (1 - share) / 2), mode=given.mode
            )
        elif name == "pyramiddrop":
            pattern = mmf.PyramidDrop(layers=(early, late), keep=((1 + share) / 2, share), mode=given.mode)
        elif name == "sparsevlm":
            pattern = mmf.prune.SparseVLM(layers=(early, late), keep=((1 + share) / 2, share), mode=given.mode)
        elif name == "visionzip":
            contextual = max(1, round(CONTEXTUAL * share * patches))
            pattern = mmf.prune.VisionZip(
                dominant=max(2, round(share * patches) - contextual), contextual=contextual, mode=given.mode
            )
        elif name == "fastervlm":
            pattern = mmf.prune.FasterVLM(r=1 - share, mode=given.mode)
        else:
            raise MMFlowError(f"there is no method {name!r}; there are {', '.join(METHODS)}.")
        made[f"{type(pattern).__name__}, {share:.1%} left"] = pattern
    return made


CONTEXTUAL = 10 / 64  # of VisionZip's tokens are merged ones


def report_text(result: PruneReport) -> str:
    """The report in Markdown."""
    scores, header = result.scores(), result.header
    lines = [
        "# Pruning image tokens",
        "",
        f"{markdown(header['model'])}, {header['n_prompts']} prompts, {header['attention']} attention. Right: the whole"
        " answer, lower case. Brackets: 95% over prompts; the difference to the unpruned model is by prompt.",
        "",
        "![right answers against tokens](prune_report.png)",
        "",
        "| method | right | against unpruned | writes the same | image tokens per layer | FLOPs, image | with text |"
        " cache | first token (ms) | later tokens (ms) | peak memory (MB) |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in scores.to_dict("records"):
        times = [f"{row[name]:.1f}" if row.get(name) == row.get(name) and name in row else "-" for name in TIMES]
        lines.append(
            f"| {markdown(row['method'])} | {row['right']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
            f" | {row['difference']:+.1%} ({row['difference_low']:+.1%} to {row['difference_high']:+.1%})"
            f" | {row['agrees']:.1%} | {row['image_tokens']:.1f} | {row['flops_share']:.0%}"
            f" | {row['flops_share_with_text']:.0%} | {row['cache_share']:.0%} | {' | '.join(times)} |"
        )
    kept = [
        f"{markdown(row['method'])}: keeps at least 95% of the unpruned model's right answers"
        for row in scores.to_dict("records")
        if row["method"] != "unpruned" and row["right"] >= 0.95 * scores["right"].iloc[0]
    ]
    lines += ["", "## As found", "", *([f"- {line}" for line in kept] or ["- No method keeps 95%."]), ""]
    lines += [
        "## Keep in mind",
        "",
        "- A method that does no better than the random and the regular thinning beside it has found nothing.",
        "- FLOPs of image tokens alone are the paper's count; text tokens are computed all the same.",
        "- Times hold what tracing costs: on a small model that is most of them.",
        "",
    ]
    return "\n".join(lines)


TIMES = ("first_token_ms", "later_token_ms", "peak_memory_mb")
