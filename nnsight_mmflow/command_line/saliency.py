"""`mmflow saliency`: attention times gradient by layer, and what cutting each flow does."""

from __future__ import annotations

import argparse

from nnsight_mmflow._progress import say
from nnsight_mmflow.command_line.shared import graph_and_prompts, who_measures
from nnsight_mmflow.files.escaping import markdown
from nnsight_mmflow.files.output import output_folder, write_csv, write_figure, write_text


def run(given: argparse.Namespace) -> None:
    """Runs the experiments, and writes saliency.png and .csv for both modes, disruption.png and .csv, and report.md."""
    import nnsight_mmflow as mmf

    folder = output_folder(given.out)
    graph, prompts = graph_and_prompts(given)
    workers = who_measures(given)
    lines = ["# Saliency of information flow", ""]
    for mode in ("paper", "released"):
        where = output_folder(folder, mode)
        result = mmf.saliency(graph, prompts, mode, folder=where, **workers)
        result.save(where)  # again: a run tells that it could not be saved, a command ends with it
        write_figure(where / "saliency.png", result.plot(), dpi=150)
        write_csv(where / "saliency.csv", result.to_frame().drop(columns="from_image_tokens"))
        say(result.summary())
        lines += [f"## {mode} mode", "", markdown(result.summary()) + ".", "", f"![saliency]({mode}/saliency.png)", ""]
    where = output_folder(folder, "disruption")
    disrupted = mmf.disruption(graph, prompts, scope=given.scope, stage=given.stage, folder=where, **workers)
    disrupted.save(where)
    write_figure(where / "disruption.png", disrupted.plot(), dpi=150)
    write_csv(where / "disruption.csv", disrupted.to_frame())
    say(disrupted.summary())
    lines += [
        "## Disruption",
        "",
        *map(markdown, disrupted.summary().splitlines()),
        "",
        "![disruption](disruption/disruption.png)",
        "",
    ]
    lines += ["D_l = log(E_vv / E_vt), E = 1 - score consistency:", "", "| layer | D |", "|---|---|"]
    lines += [f"| {row.layer} | {row.D:+.2f} |" for row in disrupted.dominance().itertuples()]
    lines += [
        "",
        "## Keep in mind",
        "",
        "- Curves are scaled over a panel: levels of two panels, or of two modes, say nothing about each other.",
        "- Saliency is no proof of need: compare with the disruptions, and those with their random control.",
        "",
    ]
    write_text(folder / "report.md", "\n".join(lines))
    say(
        f"written to {folder}: report.md, in paper and released each: saliency.png, saliency.csv, saliency.parquet, and"
        " in disruption: disruption.png, disruption.csv, disruption.parquet"
    )
