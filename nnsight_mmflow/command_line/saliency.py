"""`mmflow saliency`: attention times gradient by layer, and what cutting each flow does."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnsight_mmflow._escaping import markdown, write_csv
from nnsight_mmflow._progress import say
from nnsight_mmflow.command_line._shared import load_graph, make_prompts


def run(given: argparse.Namespace) -> None:
    """Runs the experiments, and writes saliency.png and .csv for both modes, disruption.png and .csv, and report.md."""
    import nnsight_mmflow as mmf

    graph, folder = load_graph(given), Path(given.out)
    prompts = make_prompts(graph, given)
    lines = ["# Saliency of information flow", ""]
    for mode in ("paper", "released"):
        result = mmf.saliency(graph, prompts, mode)
        where = result.save(folder / mode)
        result.plot().savefig(where / "saliency.png", dpi=150)
        write_csv(result.to_frame().drop(columns="from_image_tokens"), where / "saliency.csv")
        say(result.summary())
        lines += [f"## {mode} mode", "", markdown(result.summary()) + ".", "", f"![saliency]({mode}/saliency.png)", ""]
    found = mmf.disruption(graph, prompts, scope=given.scope, stage=given.stage, folder=folder / "disruption")
    found.plot().savefig(folder / "disruption" / "disruption.png", dpi=150)
    write_csv(found.to_frame(), folder / "disruption" / "disruption.csv")
    say(found.summary())
    lines += [
        "## Disruption",
        "",
        *map(markdown, found.summary().splitlines()),
        "",
        "![disruption](disruption/disruption.png)",
        "",
    ]
    lines += ["D_l = log(E_vv / E_vt), E = 1 - score consistency:", "", "| layer | D |", "|---|---|"]
    lines += [f"| {row.layer} | {row.D:+.2f} |" for row in found.dominance().itertuples()]
    lines += [
        "",
        "## Keep in mind",
        "",
        "- Curves are scaled over a panel: levels of two panels, or of two modes, say nothing about each other.",
        "- Saliency is no proof of need: compare with the disruptions, and those with their random control.",
        "",
    ]
    (folder / "report.md").write_text("\n".join(lines), encoding="utf-8")
    say(f"written to {folder}: report.md, paper/saliency.png, released/saliency.png, disruption/disruption.png")
