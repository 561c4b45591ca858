"""`mmflow trace`: causal tracing as tables, heat maps and a report; on nano's facts, or on a picture of yours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nnsight_mmflow._progress import say
from nnsight_mmflow.command_line.pairs import graph_and_pairs
from nnsight_mmflow.command_line.shared import only_correct, who_measures
from nnsight_mmflow.files.escaping import markdown
from nnsight_mmflow.files.output import output_folder, write_csv, write_figure, write_text

if TYPE_CHECKING:
    from nnsight_mmflow.patterns.trace.result import CausalTraceResult


def run(given: argparse.Namespace) -> None:
    """Runs the experiment and writes, per run, causal_trace.png, .csv, .parquet and .json; and report.md."""
    import nnsight_mmflow as mmf

    folder = output_folder(given.out)
    graph, runs = graph_and_pairs(given)
    results = {}
    for name, pairs in runs.items():
        where = output_folder(folder, name)
        result = mmf.causal_trace(
            graph,
            pairs.clean,
            pairs.corrupt,
            given.spans,
            given.sites,
            window=given.window,
            each_position=given.each_position,
            only_correct=only_correct(given, pairs.clean),
            controls=given.controls,
            same_answer=pairs.same_answer,
            engine=given.engine,
            folder=where,
            **who_measures(given),
        )
        result.save(where)  # again: a run tells that it could not be saved, a command ends with it
        write_figure(where / "causal_trace.png", result.plot(), dpi=150)
        write_csv(where / "causal_trace.csv", result.to_frame())
        results[name] = result
        say(result.summary())
    write_text(folder / "report.md", report_text(results))
    files = "causal_trace.png, causal_trace.csv, causal_trace.parquet"
    within = f"and in {', '.join(results)} each: " if len(results) > 1 else ""
    say(f"written to {folder}: report.md, {within}{files}")


def report_text(results: dict[str, CausalTraceResult]) -> str:
    """The report in Markdown: what was run, the maps, the spread over prompts, what to keep in mind."""
    lines = ["# Causal tracing", ""]
    for name, result in results.items():
        header = result.header
        left = "".join(f"; {count} left out ({markdown(why)})" for why, count in header["left_out"].items())
        lines += [
            f"## {markdown(name.replace('_', ' ') or header['model'])}",
            "",
            f"{header['n_counted']} of {header['n_prompts']} prompts counted{left}. {markdown(result.caption())}.",
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
                f"| {site} | {markdown(span)} | {layer} | {there['effect'].mean():+.2f} | {low:+.2f} to {high:+.2f}"
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
        "- A large window restores more and points less: compare --window 1, 3, 5.",
        "",
    ]
    return "\n".join(lines)
