"""`mmflow nano`: rebuild the model in the box, measure it, show its world."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nnsight_mmflow._progress import say
from nnsight_mmflow.command_line.early import check_early

FOLDER = "mmflow-nano"


def run(given: argparse.Namespace) -> None:
    """Runs the action."""
    check_early(given)
    {"train": _train, "eval": _eval, "samples": _samples}[given.action](given)


def _train(given: argparse.Namespace) -> None:
    from nnsight_mmflow.nano.train import STEPS, save, train

    folder = Path(given.out or FOLDER)
    model = train(folder, steps=given.steps or STEPS, seed=given.seed or 0, device=given.device or "cpu", report=say)
    save(model, folder / "model")
    say(f"written to {folder / 'model'}; measure it with: mmflow nano eval --model {folder / 'model'}")


def _eval(given: argparse.Namespace) -> None:
    from transformers.utils import logging

    import nnsight_mmflow as mmf
    from nnsight_mmflow.nano.evaluate import as_table, evaluate

    logging.disable_progress_bar()
    sys.stdout.write(as_table(evaluate(mmf.load(given.model or "nano"), given.limit or 10_000)) + "\n")


def _samples(given: argparse.Namespace) -> None:
    from nnsight_mmflow.nano.contact_sheet import write_samples

    folder = write_samples(Path(given.out or FOLDER))
    say(f"written to {folder}: contact_sheet.png, questions.jsonl and images/, which mmflow flow takes as --data")
