"""`mmflow edit`: facts written into an MLP, and whether they hold; on nano's facts, one of yours, or a file of them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nnsight_mmflow._progress import say
from nnsight_mmflow.command_line.experiments import EXPERIMENTS
from nnsight_mmflow.command_line.facts import constraint_span, graph_and_facts
from nnsight_mmflow.command_line.shared import how_asked, load_graph, who_measures
from nnsight_mmflow.files.escaping import markdown
from nnsight_mmflow.files.output import output_folder, write_csv, write_figure, write_text

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.edit.report import EditReport
    from nnsight_mmflow.patterns.edit.value import Fact
    from nnsight_mmflow.prompts.prompt import Prompt

NANO_LAYERS, TOGETHER, OTHERS = [4], 10, 60
ONE = "one_at_a_time"


def run(given: argparse.Namespace) -> None:
    """Runs the experiment, and writes tables, figures and report.md; for a fact of yours, the edit itself."""
    folder = output_folder(given.out)
    if given.image:
        _own(given, folder)
    elif given.data:
        graph, facts, others = graph_and_facts(given)
        _report(graph, facts, others, given.layers, given.control_layers or [], given.together or 1, given, folder)
    else:
        _nano(given, folder)


def _own(given: argparse.Namespace, folder: Path) -> None:
    """One edit of a fact that the arguments describe, saved as a delta."""
    import nnsight_mmflow as mmf

    graph = load_graph(given)
    prompt = graph.prompt(given.image, given.question, given.answer, **how_asked(given))
    fact = mmf.Fact(prompt=prompt, target=given.target, at=constraint_span(given.constraint))
    edit = mmf.edit(graph, fact, given.layers, settings=given.settings)
    edit.save(folder)
    write_figure(folder / "edit.png", edit.plot(), dpi=150)
    bleed = edit.bleed([prompt]).groupby(["layer", "token"], sort=False)["measured"].max()
    say(str(edit))
    say(f"bleed at other positions of this prompt, of the change: {bleed.sort_values().iloc[-6:].round(2).to_dict()}")
    say(
        f"written to {folder}: edit.safetensors (load with mmf.results.EditResult.load({str(folder)!r}, graph)),"
        " edit.png"
    )


def _nano(given: argparse.Namespace, folder: Path) -> None:
    """Nano's facts: single edits beside fine-tuning and every other layer, and several at once."""
    import nnsight_mmflow as mmf

    graph = load_graph(given)
    count = given.limit or EXPERIMENTS["edit"].nano
    facts = mmf.nano.edits(graph, count)
    others = mmf.nano.prompts(graph, OTHERS, ("fact-flag", "fact-name"))
    others += [replace(prompt, kind="scene") for prompt in mmf.nano.prompts(graph, OTHERS)]
    controls = given.control_layers or list(range(graph.n_layers))
    together = min(given.together or TOGETHER, count)
    _report(graph, facts, others, given.layers or NANO_LAYERS, controls, together, given, folder)


def _report(
    graph: Graph,
    facts: list[Fact],
    others: list[Prompt],
    layers: list[int],
    controls: list[int],
    together: int,
    given: argparse.Namespace,
    folder: Path,
) -> None:
    """Single edits beside other layers and fine-tuning, and several facts at once; tables, figures and a report."""
    import nnsight_mmflow as mmf
    from nnsight_mmflow.show.edits import layers_figure

    results = {}
    for name, at_once, compared in ((ONE, 1, controls), (f"{together}_at_once", together, [])):
        if name == ONE or at_once > 1:
            results[name] = mmf.edit_report(
                graph,
                facts,
                others,
                layers,
                together=at_once,
                control_layers=compared,
                fine_tuning=not given.remote,  # weights on a server are shared
                bound=given.bound,
                settings=given.settings,
                folder=output_folder(folder, name),
                **who_measures(given),
            )
    edited = ", ".join(map(str, layers))
    for name, result in results.items():
        where = output_folder(folder, name)
        result.save(where)  # again: a run tells that it could not be saved, a command ends with it
        write_csv(where / "scores.csv", result.scores())
        shown = result
        if name == ONE and controls:
            write_figure(where / "layers.png", layers_figure(result), dpi=150)
            late = f"edit, layer {graph.n_layers - 1}"
            kept = [method for method in result.header["methods"] if method.endswith(f" {edited}") or method == late]
            shown = result.only(kept)
        write_figure(where / "edit_report.png", shown.plot(), dpi=150)
        say(result.summary())
    write_text(folder / "report.md", report_text(results, by_layer=bool(controls)))
    more = f"{ONE}/layers.png, " if controls else ""
    files = "edit_report.png, scores.csv, edit_report.parquet"
    say(f"written to {folder}: report.md, {more}and in {', '.join(results)} each: {files}")


def report_text(results: dict[str, EditReport], by_layer: bool = True) -> str:
    """The report in Markdown."""
    lines = ["# Editing facts", ""]
    for name, result in results.items():
        header = result.header
        lines += [
            f"## {name.replace('_', ' ').capitalize()}",
            "",
            f"{markdown(header['model'])}, {header['n_facts']} facts; right means that the whole answer is what"
            " the model writes first. Specificity counts prompts that were answered rightly before. In brackets: 95%"
            " over edits.",
            "",
            f"![scores]({name}/edit_report.png)",
            "",
            "| method | measure | way | right | P(answer) | edits | prompts |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {markdown(row.method)} | {row.measure} | {markdown(row.way)} | {row.right:.1%}"
            f" ({row.low:.1%} to {row.high:.1%}) | {row.probability:.2f} | {row.edits} | {row.prompts} |"
            for row in result.scores().itertuples()
        ]
        lines.append("")
        if name == ONE and by_layer:
            lines += ["By layer, means over ways:", "", f"![by layer]({name}/layers.png)", ""]
    lines += [
        "## Keep in mind",
        "",
        "- A layer where edits work need not be where a fact is stored, nor the other way round (Hase et al., 2023).",
        "- Rank-one edits without a covariance add (k.k') / (lambda + k.k) of the change at every other key k':",
        "  `edit.bleed(prompts)` predicts and measures it.",
        "",
    ]
    return "\n".join(lines)
