"""`mmflow lens`: what each layer would answer."""

from __future__ import annotations

import argparse

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.command_line.shared import load_graph, make_prompts
from nnsight_mmflow.files.output import output_folder, write_csv, write_figure


def run(given: argparse.Namespace) -> None:
    """Runs the experiment and writes lens.png, lens.csv, and lens.parquet with lens.json."""
    import nnsight_mmflow as mmf

    if given.image and not given.answer:
        raise MMFlowError("lens follows the answer's probability: give --answer.")
    folder = output_folder(given.out)
    graph = load_graph(given)
    prompts = make_prompts(graph, given)
    result = mmf.lens(graph, prompts, given.at, norm=not given.no_norm, only_correct=not given.all, folder=folder)
    result.save(folder)  # again: a run tells that it could not be saved, a command ends with it
    write_figure(folder / "lens.png", result.plot(), dpi=150)
    write_csv(folder / "lens.csv", result.to_frame())
    say(result.summary())
    say(f"written to {folder}: lens.png, lens.csv, lens.parquet")
