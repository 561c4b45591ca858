"""The options that every command takes which runs an experiment: the same words, with the same meaning and defaults."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def at_least(least: int) -> Callable[[str], int]:
    """A type of argparse: a whole number from `least`."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    return number


class Formerly(argparse.Action):
    """An earlier name of an option: it works, is not shown, and is what messages call the option if it was typed."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Keeps the values, and the name."""
        setattr(namespace, self.dest, values)
        namespace.typed = {**getattr(namespace, "typed", {}), self.dest: option_string}


def flag(given: argparse.Namespace, name: str) -> str:
    """The option as it is typed."""
    return str(getattr(given, "typed", {}).get(name) or f"--{name.replace('_', '-')}")


def add_common(command: argparse.ArgumentParser, name: str, nano: int) -> None:
    """The model, the questions, and where it runs and writes.

    Args:
        command: the parser of the command.
        name: of the command.
        nano: how many of nano's own questions are asked unless `--limit` says it.
    """
    group = command.add_argument_group("model")
    group.add_argument("--model", default="nano", metavar="MODEL", help="nano, a Hugging Face id, or a folder (nano)")
    how_to_load(group)
    group = command.add_argument_group("questions (nano has its own)")
    group.add_argument("--image", metavar="FILE", help="a picture")
    group.add_argument("--question", metavar="TEXT", help="a question about it")
    group.add_argument("--answer", metavar="TEXT", help="the right answer to --question")
    group.add_argument("--data", metavar="FILE", help="questions: CSV or JSON lines")
    group.add_argument("--images", metavar="DIR", help="where the pictures of --data lie")
    group.add_argument("--skip-bad", action="store_true", help="go on without rows of --data that cannot be used")
    group.add_argument("--limit", type=at_least(1), metavar="N", help=f"the first N questions (all; nano: {nano})")
    how_to_ask(group)
    group = command.add_argument_group("where it runs, and writes")
    group.add_argument("--out", default=f"mmflow-{name}", metavar="DIR", help=f"where results go (mmflow-{name})")
    where_to_run(group)
    meaning = "so many processes with a model each, by Ray (needs the extra `ray`)"
    group.add_argument("--workers", type=at_least(1), metavar="N", help=meaning)
    meaning = "of a Ray cluster, such as auto or 10.0.0.1:6379 (RAY_ADDRESS, else this machine alone)"
    group.add_argument("--ray-address", metavar="ADDRESS", help=meaning)


def how_to_load(group: argparse._ActionsContainer) -> None:
    """How the model is loaded."""
    group.add_argument("--attention", choices=("sdpa", "eager"), help="attention implementation (the model's own)")
    group.add_argument("--dtype", help="such as float16 (the model's own)")
    group.add_argument("--device", help="such as cuda (cpu)")


def where_to_run(group: argparse._ActionsContainer) -> None:
    """Here, or on NDIF."""
    meaning = "run on NDIF (or on HOST), with the key of `nnsight login` or NDIF_API_KEY"
    group.add_argument("--remote", nargs="?", const=True, default=False, metavar="HOST", help=meaning)
    group.add_argument("--trusted", action="store_true", help="the key's blocks run in the model's process there")


def how_to_ask(group: argparse._ActionsContainer) -> None:
    """How a question becomes a prompt."""
    group.add_argument("--template", help="chat (the model's own), vicuna_v1 or llava_llama_3 (the paper's)")
    group.add_argument("--instruction", help="a sentence after the question")
    group.add_argument("--pad-to-square", action="store_true", help="pad the picture as the paper does, never crop")


def how_to_corrupt(command: argparse.ArgumentParser) -> None:
    """What the corrupt run of a question is."""
    group = command.add_argument_group("the corrupt run (nano has its own: facts by flag and by name)")
    group.add_argument("--other-image", metavar="FILE", help="the same question about this picture")
    group.add_argument("--blank", action="store_true", help="the same question about an empty picture")
    group.add_argument("--constraint", metavar="TEXT", help="these words of the question are replaced")
    group.add_argument("--phrase", metavar="TEXT", help="by this phrase of as many tokens")
    group.add_argument("--token", metavar="WORD", help="each by the first token of this word")
    _answers(group)


def what_to_write(command: argparse.ArgumentParser) -> None:
    """Which fact is edited."""
    group = command.add_argument_group("the facts (nano has its own)")
    group.add_argument("--constraint", metavar="TEXT", help="the words of the question that stand for the thing")
    group.add_argument("--target", metavar="TEXT", help="the new answer (--data: of each row, else its own)")
    _answers(group)


def _answers(group: argparse._ActionsContainer) -> None:
    meaning = "JSON: the right answers of VQA-Constraints given as --data, by subject, or known facts"
    group.add_argument("--answers", metavar="FILE", help=meaning)
