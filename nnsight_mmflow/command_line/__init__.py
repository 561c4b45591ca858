"""The command `mmflow`. Only the parser is built here; what a command needs is imported when it runs."""

from __future__ import annotations

import argparse
from importlib import import_module

from nnsight_mmflow.command_line.endings import Parser, ended
from nnsight_mmflow.command_line.incomplete import refuse_incomplete
from nnsight_mmflow.command_line.options import at_least, refuse_ignored

COMMANDS = {
    "flow": "layer-by-layer knockout curves: figure, table, report",
    "lens": "what each layer would answer",
    "trace": "causal tracing: which clean activations bring the answer back into a corrupt run",
    "edit": "facts written into an MLP, and whether they hold",
    "saliency": "attention times gradient by layer, and what cutting each flow does",
    "prune": "what dropping image tokens costs and saves, controls beside it",
    "spans": "which positions of a prompt are image, question, and so on, and where they lie in the picture",
    "check": "the conformance suite: is what the package says of a model what the model does?",
    "nano": "the model in the box: train, eval, samples",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(prog="mmflow", description="How vision and language mix inside LLaVA-type models.")
    debug = "show the traceback of an error"
    parser.add_argument("--debug", action="store_true", help=debug)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, told in COMMANDS.items():
        command = commands.add_parser(name, help=told, description=told)
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=debug)
        if name == "nano":
            _nano(command)
            continue
        if name in ("spans", "check"):
            command.add_argument("model", metavar="MODEL", help="nano, a Hugging Face id, or a folder")
            _how_to_load(command)
            if name == "spans":
                _spans(command)
            continue
        _model(command)
        if name in ("trace", "edit"):
            _trace(command) if name == "trace" else _edit(command)
            continue
        _questions(command)
        command.add_argument("--out", default=f"mmflow-{name}", metavar="DIR", help="where results go")
        if name == "flow":
            command.add_argument("--edges", nargs="+", metavar="A->B", help="such as 'image->question' (quote them)")
            command.add_argument(
                "--window",
                nargs="+",
                type=at_least(1),
                default=[9],
                metavar="N",
                help="consecutive layers blocked at once (9)",
            )
            command.add_argument(
                "--engine", choices=("rows", "forward"), default="rows", help="forward is the slow way"
            )
            told = "so many random spans of the same size for each edge (0: none)"
            command.add_argument("--control", type=at_least(0), default=0, metavar="N", help=told)
            _workers(command)
        elif name == "prune":
            _prune(command)
        elif name == "saliency":
            scopes = "cut that layer alone, or it and all behind it (the released code)"
            command.add_argument("--scope", choices=("layer", "from_layer"), default="layer", help=scopes)
            stages = "cut before the softmax, or zero after it"
            command.add_argument("--stage", choices=("pre", "post"), default="pre", help=stages)
        else:
            command.add_argument("--at", default="last", help="the span that is read")
            command.add_argument("--no-norm", action="store_true", help="read without the final norm")
        if name in ("flow", "lens"):
            told = "count prompts that the model answers wrongly as well"
            command.add_argument("--all", action="store_true", help=told)
    return parser


def _model(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("model and prompt")
    group.add_argument("--model", default="nano", help="nano, a Hugging Face id, or a folder")
    _how_to_load(group)
    _how_to_ask(group)


def _how_to_load(group: argparse._ActionsContainer) -> None:
    group.add_argument("--attention", choices=("sdpa", "eager"), help="attention implementation (the model's own)")
    group.add_argument("--dtype", help="such as float16 (the model's own)")
    group.add_argument("--device", help="such as cuda (cpu)")
    told = "run on NDIF (or on HOST), with the key of `nnsight login` or NDIF_API_KEY"
    group.add_argument("--remote", nargs="?", const=True, default=False, metavar="HOST", help=told)
    group.add_argument("--trusted", action="store_true", help="the key's blocks run in the model's process there")


def _how_to_ask(group: argparse._ActionsContainer) -> None:
    group.add_argument("--template", help="chat (the model's own), vicuna_v1 or llava_llama_3 (the paper's)")
    group.add_argument("--instruction", help="a sentence after the question")
    group.add_argument("--pad-to-square", action="store_true", help="pad the picture as the paper does, never crop")


def _spans(command: argparse.ArgumentParser) -> None:
    command.add_argument("image", metavar="IMAGE", help="a picture")
    command.add_argument("question", metavar="QUESTION", help="a question about it")
    _how_to_ask(command)
    edges = ("X0", "Y0", "X1", "Y1")
    command.add_argument("--box", nargs=4, type=float, metavar=edges, help="tint the tokens that show these pixels")
    command.add_argument("--out", default="mmflow-spans.png", metavar="FILE", help="the picture that is written")


def _trace(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("question and corruption (nano has its own: facts by flag and by name)")
    group.add_argument("--image", metavar="FILE", help="a picture")
    group.add_argument("--question", metavar="TEXT", help="a question about it")
    group.add_argument("--answer", metavar="TEXT", help="the right answer to --question")
    group.add_argument("--other-image", metavar="FILE", help="corrupt: the same question about this picture")
    group.add_argument("--blank", action="store_true", help="corrupt: the same question about an empty picture")
    group.add_argument("--constraint", metavar="TEXT", help="corrupt: these words of the question are replaced")
    group.add_argument("--phrase", metavar="TEXT", help="by this phrase of as many tokens")
    group.add_argument("--token", metavar="WORD", help="each by the first token of this word")
    group.add_argument("--data", metavar="FILE", help="VQA-Constraints (CSV), or JSON lines, with --phrase or --token")
    group.add_argument("--images", metavar="DIR", help="where the pictures of --data lie")
    group.add_argument("--answers", metavar="FILE", help="JSON: the right answers of --data by subject, or known facts")
    group.add_argument("--skip-bad", action="store_true", help="go on without rows of --data that cannot be used")
    group.add_argument("--limit", type=at_least(1), metavar="N", help="the first N questions (nano: 48)")
    command.add_argument("--spans", nargs="+", metavar="SPAN", help="which spans are restored (what is corrupted on)")
    command.add_argument("--sites", nargs="+", default=["mlp", "attn", "resid"], help="mlp, attn, resid")
    command.add_argument(
        "--window", type=at_least(1), default=1, metavar="N", help="consecutive layers around each centre (1)"
    )
    command.add_argument("--each-position", action="store_true", help="restore each position of a span on its own")
    command.add_argument("--engine", choices=("rows", "forward"), default="rows", help="forward is the slow way")
    command.add_argument("--all", action="store_true", help="count prompts that the model answers wrongly as well")
    command.add_argument("--out", default="mmflow-trace", metavar="DIR", help="where results go")


def _edit(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("the fact (nano has its own)")
    group.add_argument("--image", metavar="FILE", help="a picture")
    group.add_argument("--question", metavar="TEXT", help="a question about it")
    group.add_argument("--constraint", metavar="TEXT", help="the words of the question that stand for the thing")
    group.add_argument("--target", metavar="TEXT", help="the new answer")
    group.add_argument("--limit", type=at_least(1), metavar="N", help="nano: so many facts (20)")
    group.add_argument("--together", type=at_least(1), metavar="N", help="nano: also so many at once (10)")
    group.add_argument("--controls", nargs="+", type=int, metavar="N", help="nano: layers to compare with (all)")
    group.add_argument("--bound", type=float, metavar="X", help="nano: also fine-tune with numbers held this near")
    command.add_argument("--layers", nargs="+", type=int, metavar="N", help="where the edit goes (nano: 4)")
    command.add_argument(
        "--settings", choices=("paper", "released"), default="paper", help="the paper's, or its released script's"
    )
    command.add_argument("--out", default="mmflow-edit", metavar="DIR", help="where results go")


def _workers(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("several processes or machines (needs the extra `ray`)")
    group.add_argument("--workers", type=at_least(1), metavar="N", help="so many processes with a model each, by Ray")
    told = "of a Ray cluster, such as auto or 10.0.0.1:6379 (RAY_ADDRESS, else this machine alone)"
    group.add_argument("--ray-address", metavar="ADDRESS", help=told)


def _prune(command: argparse.ArgumentParser) -> None:
    known = ("fastv", "himap", "pyramiddrop", "sparsevlm", "visionzip", "fastervlm")
    command.add_argument(
        "--methods", nargs="+", default=list(known), metavar="NAME", help=f"of {', '.join(known)} (all of them)"
    )
    command.add_argument("--k1", type=int, metavar="N", help="the layer of the (first) prune (a fifth of the depth)")
    command.add_argument("--k2", type=int, metavar="N", help="the layer of the second (half the depth)")
    command.add_argument("--mode", choices=("drop", "mask"), default="drop", help="tokens leave, or their keys close")
    command.add_argument(
        "--max-new-tokens", type=at_least(1), default=8, metavar="N", help="how long an answer may get (8)"
    )
    command.add_argument(
        "--timed", type=at_least(0), default=3, metavar="N", help="how often times are measured (3; 0: never)"
    )


def _questions(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("questions (nano has its own)")
    group.add_argument("--image", metavar="FILE", help="a picture")
    group.add_argument("--question", metavar="TEXT", help="a question about it")
    group.add_argument("--answer", metavar="TEXT", help="the right answer to --question")
    group.add_argument("--data", metavar="FILE", help="CSV or JSON lines: question_id, img_id, question, answer, ...")
    group.add_argument("--images", metavar="DIR", help="where pictures are looked up by img_id")
    group.add_argument("--skip-bad", action="store_true", help="go on without rows that are bad")
    group.add_argument("--limit", type=at_least(1), metavar="N", help="the first N questions (nano: 120)")


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
        return import_module(f"nnsight_mmflow.command_line.{given.command}").run(given)

    return ended(run, given)
