"""`mmflow trace`: causal tracing as tables, heat maps and a report; on nano's facts, or on a picture of yours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.command_line._shared import load_graph

if TYPE_CHECKING:
    from nnsight_mmflow._graph import Graph
    from nnsight_mmflow._prompt import Prompt
    from nnsight_mmflow.patterns.corruption import Corruption
    from nnsight_mmflow.patterns.trace_result import TraceResult

FACTS = 48  # sixteen places, three relations each


def run(given: argparse.Namespace) -> None:
    """Runs the experiment and writes, per run, causal_trace.png, .csv, .parquet and .json; and report.md."""
    import nnsight_mmflow as mmf

    graph, folder = load_graph(given), Path(given.out)
    if given.image or given.model != "nano":
        runs = {"": _own(graph, given)}
    else:
        count = given.limit or FACTS
        runs = {f"by_{way}": mmf.nano.trace_pairs(graph, count, way) for way in ("flag", "name")}
    results = {}
    for name, (prompts, corrupt) in runs.items():
        where = folder / name
        judged = all(prompt.answer is not None for prompt in prompts)
        result = mmf.causal_trace(
            graph,
            prompts,
            corrupt,
            given.spans,
            given.sites,
            half_width=given.half_width,
            each_position=given.each_position,
            only_correct=judged and not given.all,
            engine=given.engine,
            folder=where,
        )
        result.plot().savefig(where / "causal_trace.png", dpi=150)
        result.to_frame().to_csv(where / "causal_trace.csv", index=False)
        results[name] = result
        say(result.summary())
    (folder / "report.md").write_text(report_text(results))
    pictures = ", ".join(str(Path(name) / "causal_trace.png") for name in results)
    say(f"written to {folder}: report.md, {pictures}")


def _own(graph: Graph, given: argparse.Namespace) -> tuple[list[Prompt], list[Corruption]]:
    """The prompt and corruption that the arguments describe.

    Raises:
        MMFlowError: they do not go together.
    """
    from nnsight_mmflow import corruption

    if not (given.image and given.question):
        raise MMFlowError(f"which question should {given.model} answer? --image FILE --question TEXT.")
    prompt = graph.prompt(
        given.image,
        given.question,
        given.answer,
        template=given.template,
        instruction=given.instruction,
        pad_to_square=given.pad_to_square,
    )
    ways = [name for name in ("other_image", "blank", "constraint") if getattr(given, name)]
    if len(ways) != 1:
        raise MMFlowError(
            "say how the corrupt run is made: give one of --other-image FILE, --blank, or --constraint TEXT with"
            " --phrase TEXT or --token WORD."
        )
    if given.constraint and bool(given.phrase) == bool(given.token):
        raise MMFlowError("--constraint needs --phrase or --token: what to put in its place.")
    if given.other_image:
        from nnsight_mmflow._pictures import open_pictures

        made = corruption.other_image(graph, prompt, open_pictures(given.other_image)[0], f"image {given.other_image}")
    elif given.blank:
        made = corruption.blank_image(graph, prompt)
    elif given.phrase:
        made = corruption.replace_phrase(graph, prompt, given.constraint, given.phrase)
    else:
        made = corruption.repeat_token(graph, prompt, given.constraint, given.token)
    return [prompt], [made]


def report_text(results: dict[str, TraceResult]) -> str:
    """The report in Markdown: what was run, the maps, the spread over prompts, what to keep in mind."""
    lines = ["# Causal tracing", ""]
    for name, result in results.items():
        header = result.header
        left = "".join(f"; {count} left out ({why})" for why, count in header["left_out"].items())
        lines += [
            f"## {name.replace('_', ' ') or header['model']}",
            "",
            f"{header['n_counted']} of {header['n_prompts']} prompts counted{left}. {result.caption()}.",
            "",
            f"![heat map]({Path(name) / 'causal_trace.png'})",
            "",
            "| site | span | largest at layer | effect | quartiles over prompts | answer comes back |",
            "|---|---|---|---|---|---|",
        ]
        table = result.to_frame()
        for (site, span), part in table.groupby(["site", "span"], sort=False):
            means = part.groupby("layer")["effect"].mean()
            layer = int(means.index[int(means.to_numpy().argmax())])
            there = part[part["layer"] == layer]
            low, high = there["effect"].quantile([0.25, 0.75])
            lines.append(
                f"| {site} | {span} | {layer} | {there['effect'].mean():+.2f} | {low:+.2f} to {high:+.2f}"
                f" | {there['answer_restored'].mean():.0%} |"
            )
        lines.append("")
    lines += [
        "## Keep in mind",
        "",
        "- A restored position may merely carry the answer further: a large effect says that the answer passes there,",
        "  not that it is stored there. Compare with the random spans of the same size.",
        "- Replacing words leaves every position before them as it was, the image's included: their effect is exactly",
        "  zero by causality. To trace the image, corrupt the image.",
        "- A large window restores more and points less: compare --half-width 0, 1, 2.",
        "",
    ]
    return "\n".join(lines)
