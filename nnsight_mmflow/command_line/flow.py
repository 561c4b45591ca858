"""`mmflow flow`: curves as a picture, a table, a result to load again, and a report to read."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nnsight_mmflow._progress import say
from nnsight_mmflow.command_line.shared import graph_and_prompts, only_correct, who_measures
from nnsight_mmflow.files.escaping import markdown
from nnsight_mmflow.files.output import output_folder, write_csv, write_figure, write_text
from nnsight_mmflow.patterns.flow.arrows import thresholds

if TYPE_CHECKING:
    from nnsight_mmflow.patterns.flow.result import FlowResult


def run(given: argparse.Namespace) -> None:
    """Runs the experiment and writes its curves, its diagram, its page, its table, the result to load, and a report."""
    import nnsight_mmflow as mmf

    folder = output_folder(given.out)
    graph, prompts = graph_and_prompts(given)
    result = mmf.flow(
        graph,
        prompts,
        edges=given.edges,
        window=given.window,
        only_correct=only_correct(given, prompts),
        engine=given.engine,
        controls=given.controls,
        folder=folder,
        **who_measures(given),
    )
    result.save(folder)  # again: a run tells that it could not be saved, a command ends with it
    write_figure(folder / "flow.png", result.plot(), dpi=150)
    for window in dict.fromkeys(given.window):
        name = "flow_diagram" if window == given.window[0] else f"flow_diagram_window_{window}"
        drawn = result.diagram(window)
        write_figure(folder / f"{name}.png", drawn, dpi=150)
        write_figure(folder / f"{name}.svg", drawn)
    result.explore().save(folder / "flow.html")
    write_csv(folder / "flow.csv", result.to_frame())
    write_text(folder / "report.md", report_text(result))
    say(result.summary())
    say(f"written to {folder}: flow.png, flow_diagram.png and .svg, flow.html, flow.csv, flow.parquet, report.md")


def report_text(result: FlowResult) -> str:
    """The report in Markdown: what was run, the curves, what to keep in mind."""
    header = result.header
    windows = [int(window) for window in result.table["window"].unique()]
    lines = [
        f"# Flow in {markdown(str(header['model']).rstrip('/').split('/')[-1])}",
        "",
        f"{header['n_counted']} of {header['n_prompts']} prompts counted"
        + "".join(f"; {count} left out ({markdown(why)})" for why, count in dict(header["left_out"]).items())
        + f". {header['n_layers']} layers, {header['attention']} attention, engine {header['engine']}.",
        "",
        "![curves](flow.png)",
        "",
        "![diagram](flow_diagram.png)",
        "",
        "Each number is the change of the probability of the first answer token that the model itself generates, in",
        "percent of the clean run, when the target may not read the source in a window of layers around the centre.",
        "Means over prompts with 95% bootstrap bands.",
    ]
    for window in windows:
        lines += [
            "",
            f"## Window of {window}",
            "",
            "| blocked (source->target) | lowest at layer | change (%) | 95% band | first layer below -5% |",
            "|---|---|---|---|---|",
        ]
        for edge, (mean, low, high) in result.curves(window).items():
            at = int(mean.argmin())
            below = [layer for layer, value in enumerate(mean) if value < -5]
            lines.append(
                f"| {markdown(edge)} | {at} | {mean[at]:+.1f} | {low[at]:+.1f} to {high[at]:+.1f}"
                f" | {below[0] if below else 'none'} |"
            )
        lines += ["", markdown(thresholds(result, window).told)]
    lines += ["", "## Keep in mind", ""]
    n_layers = int(header["n_layers"])
    for window in windows:
        half = window // 2
        if half:
            lines.append(
                f"- Windows are cut off at the ends: with a window of {window}, centres 0 to {min(half, n_layers - 1)}"
                " all contain layer 0, so an early drop may be layer 0 alone. `--window 1` tells."
            )
        if window * 2 > n_layers:
            lines.append(
                f"- A window of {window} spans {min(window, n_layers)} of {n_layers} layers: the curve says little"
                f" about depth. Try `--window {max(1, n_layers // 8 * 2 + 1)}`."
            )
    lines.append(
        "- image->question at the last layer is exactly zero: nothing reads the question's positions after it."
    )
    lines += ["", f"Cost of the first prompt: {markdown(header['plan'])}", ""]
    return "\n".join(lines)
