"""`mmflow lens`: what each layer would answer."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._escaping import write_csv
from nnsight_mmflow._progress import say
from nnsight_mmflow.command_line._shared import load_graph, make_prompts


def run(given: argparse.Namespace) -> None:
    """Runs the experiment and writes lens.png, lens.csv, and lens.parquet with lens.json."""
    import nnsight_mmflow as mmf

    if given.image and not given.answer:
        raise MMFlowError("lens follows the answer's probability: give --answer.")
    graph = load_graph(given)
    prompts = make_prompts(graph, given)
    result = mmf.lens(graph, prompts, given.at, norm=not given.no_norm, only_correct=not given.all)
    folder = result.save(given.out)
    result.plot().savefig(Path(folder) / "lens.png", dpi=150)
    write_csv(result.to_frame(), Path(folder) / "lens.csv")
    say(result.summary())
    say(f"written to {folder}: lens.png, lens.csv, lens.parquet")
