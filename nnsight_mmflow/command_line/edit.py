"""`mmflow edit`: facts written into an MLP, and whether they hold; on nano's facts, or one of yours."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nnsight_mmflow._progress import say
from nnsight_mmflow.command_line.shared import load_graph
from nnsight_mmflow.files.escaping import markdown
from nnsight_mmflow.files.output import output_folder, write_csv, write_figure, write_text

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.edit.report import EditReport

FACTS, TOGETHER, NANO_LAYERS, OTHERS = 20, 10, [4], 60


def run(given: argparse.Namespace) -> None:
    """Runs the experiment, and writes tables, figures and report.md; for a fact of yours, the edit itself."""
    folder = output_folder(given.out)
    graph = load_graph(given)
    if given.image or given.model != "nano":
        _own(graph, given, folder)
    else:
        _nano(graph, given, folder)


def _own(graph: Graph, given: argparse.Namespace, folder: Path) -> None:
    """One edit of a fact that the arguments describe, saved as a delta."""
    import nnsight_mmflow as mmf

    prompt = graph.prompt(
        given.image,
        given.question,
        template=given.template,
        instruction=given.instruction,
        pad_to_square=given.pad_to_square,
    )
    fact = mmf.Fact(prompt=prompt, target=given.target, at=f"text({given.constraint!r}, 0)")
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


def _nano(graph: Graph, given: argparse.Namespace, folder: Path) -> None:
    """Single edits beside fine-tuning and every other layer, and several facts at once."""
    import nnsight_mmflow as mmf
    from nnsight_mmflow.show.edits import layers_figure

    count, layers = given.limit or FACTS, given.layers or NANO_LAYERS
    facts = mmf.nano.edits(graph, count)
    others = mmf.nano.prompts(graph, OTHERS, ("fact-flag", "fact-name"))
    others += [replace(prompt, kind="scene") for prompt in mmf.nano.prompts(graph, OTHERS)]
    every, together = given.controls or range(graph.n_layers), min(given.together or TOGETHER, count)
    results = {}
    for name, at_once, controls in (("one_at_a_time", 1, every), (f"{together}_at_once", together, ())):
        if at_once > 1 or controls:
            results[name] = mmf.edit_report(
                graph,
                facts,
                others,
                layers,
                together=at_once,
                control_layers=controls,
                bound=given.bound,
                settings=given.settings,
                folder=output_folder(folder, name),
            )
    told = ", ".join(map(str, layers))
    for name, result in results.items():
        where = output_folder(folder, name)
        result.save(where)  # again: a run tells that it could not be saved, a command ends with it
        write_csv(where / "scores.csv", result.scores())
        shown = result
        if name == "one_at_a_time":
            write_figure(where / "layers.png", layers_figure(result), dpi=150)
            late = f"edit, layer {graph.n_layers - 1}"
            kept = [one for one in result.header["methods"] if one.endswith(f" {told}") or one == late]
            shown = result.only(kept)
        write_figure(where / "edit_report.png", shown.plot(), dpi=150)
        say(result.summary())
    write_text(folder / "report.md", report_text(results))
    say(f"written to {folder}: report.md, one_at_a_time/edit_report.png, one_at_a_time/layers.png")


def report_text(results: dict[str, EditReport]) -> str:
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
        if name == "one_at_a_time":
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
