"""The options of single experiments, by kind: counts, spans, layers, names, and earlier names of an option."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from nnsight_mmflow.command_line.common import Formerly, at_least


@dataclass(frozen=True)
class Option:
    """An option of one experiment.

    Attributes:
        flag: its name.
        keywords: as argparse takes them.
    """

    flag: str
    keywords: dict[str, object]


def option(flag: str, meaning: str, **keywords: object) -> Option:
    """An option with its help."""
    return Option(flag, {"help": meaning, **keywords})


def count(flag: str, meaning: str, default: int | None, least: int = 1) -> Option:
    """A whole number from `least`."""
    shown = "" if default is None else f" ({default})"
    return option(flag, meaning + shown, type=at_least(least), default=default, metavar="N")


def span(flag: str, meaning: str, default: str | None) -> Option:
    """An expression over the prompt's spans."""
    return option(flag, meaning + (f" ({default})" if default else ""), default=default, metavar="SPAN")


def spans(meaning: str, default: list[str] | None = None) -> Option:
    """Several of them."""
    return option("--spans", meaning, nargs="+", default=default, metavar="SPAN")


def layers(meaning: str) -> Option:
    """Layers by number."""
    return option("--layers", meaning, nargs="+", type=int, metavar="N")


def one_of(flag: str, meaning: str, *names: str) -> Option:
    """One of a few names, the first unless given."""
    return option(flag, meaning, choices=names, default=names[0])


def formerly(flag: str, dest: str, **keywords: object) -> Option:
    """An earlier name of an option."""
    return Option(
        flag, {"help": argparse.SUPPRESS, "action": Formerly, "dest": dest, "default": argparse.SUPPRESS, **keywords}
    )


SOURCE = "the span that is read"
TARGET = span("--target", "the span that reads", "last")
SEED = count("--seed", "of what is drawn by chance", 0, 0)
AT_ONCE = "consecutive layers at once"
ENGINE = one_of("--engine", "forward is the slow way", "rows", "forward")
SCOPE = one_of("--scope", "cut that layer alone, or it and all behind it (the released code)", "layer", "from_layer")
STAGE = one_of("--stage", "cut before the softmax, or zero after it", "pre", "post")
