"""The command `mmflow`. Only the parser is built here; what a command needs is imported when it runs."""

from __future__ import annotations

import argparse
from importlib import import_module
from importlib.util import find_spec

from nnsight_mmflow.command_line import common
from nnsight_mmflow.command_line.common import at_least
from nnsight_mmflow.command_line.endings import Parser, ended
from nnsight_mmflow.command_line.experiments import EXPERIMENTS, FACTS, PAIRS, Experiment
from nnsight_mmflow.command_line.incomplete import refuse_incomplete
from nnsight_mmflow.command_line.options import refuse_ignored

OTHERS = {
    "spans": "which positions of a prompt are image, question, and so on, and where they lie in the picture",
    "check": "the conformance suite: is what the package says of a model what the model does?",
    "nano": "the model in the box: train, eval, samples",
}
COMMANDS = {**{name: experiment.about for name, experiment in EXPERIMENTS.items()}, **OTHERS}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(prog="mmflow", description="How vision and language mix inside LLaVA-type models.")
    debug = "show the traceback of an error"
    parser.add_argument("--debug", action="store_true", help=debug)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, meaning in COMMANDS.items():
        command = commands.add_parser(name, help=meaning, description=meaning)
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=debug)
        if name in EXPERIMENTS:
            _experiment(command, name, EXPERIMENTS[name])
        elif name == "nano":
            _nano(command)
        else:
            command.add_argument("model", metavar="MODEL", help="nano, a Hugging Face id, or a folder")
            common.how_to_load(command)
            common.where_to_run(command)
            if name == "spans":
                _spans(command)
    return parser


def _experiment(command: argparse.ArgumentParser, name: str, experiment: Experiment) -> None:
    common.add_common(command, name, experiment.nano)
    if experiment.takes == PAIRS:
        common.how_to_corrupt(command)
    elif experiment.takes == FACTS:
        common.what_to_write(command)
    group = command.add_argument_group("the experiment")
    for option in experiment.options:
        group.add_argument(option.flag, **option.keywords)  # type: ignore[arg-type]
    if experiment.judged:
        meaning = "count prompts that the model answers wrongly as well"
        group.add_argument("--all", action="store_true", help=meaning)


def _spans(command: argparse.ArgumentParser) -> None:
    command.add_argument("image", metavar="IMAGE", help="a picture")
    command.add_argument("question", metavar="QUESTION", help="a question about it")
    common.how_to_ask(command)
    edges = ("X0", "Y0", "X1", "Y1")
    command.add_argument("--box", nargs=4, type=float, metavar=edges, help="tint the tokens that show these pixels")
    command.add_argument("--out", default="mmflow-spans.png", metavar="FILE", help="the picture that is written")


def _nano(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("train", "eval", "samples"), help="rebuild it; measure it; show its world")
    command.add_argument("--out", metavar="DIR", help="train, samples: where the result goes (mmflow-nano)")
    command.add_argument("--seed", type=at_least(0), help="train: the seed (0)")
    command.add_argument("--steps", type=at_least(1), help="train: how many steps (all)")
    command.add_argument("--device", help="train: such as cuda (cpu)")
    command.add_argument("--model", help="eval: another folder (nano)")
    command.add_argument("--limit", type=at_least(1), metavar="N", help="eval: questions of each type (all)")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line, and returns the exit status.

    0: done; 1: `check` found something wrong; 2: an error, one sentence on stderr (--debug: the traceback too); 130:
    stopped by Ctrl-C; 141: nobody reads the output. Arguments that cannot be read end the process with 2.
    """
    given = build_parser().parse_args(arguments)

    def run() -> int | None:
        refuse_ignored(given)
        refuse_incomplete(given)
        own = f"{__name__}.{given.command.replace('-', '_')}"
        return import_module(own if find_spec(own) else f"{__name__}.experiment").run(given)

    return ended(run, given)
