"""Options that would say nothing where they stand, and numbers that are none: refused before anything is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from nnsight_mmflow._errors import MMFlowError

# For each command: an option, and those of which one must be given too, or it would be ignored.
_ASKED: dict[str, tuple[str, ...]] = {"answer": ("image",), "images": ("data",), "skip_bad": ("data",)}
_HOW = ("template", "instruction", "pad_to_square")
NEEDS: dict[str, dict[str, tuple[str, ...]]] = {
    "flow": {**_ASKED, "ray_address": ("workers",)},
    "lens": _ASKED,
    "saliency": _ASKED,
    "prune": _ASKED,
    "trace": {
        "phrase": ("constraint", "data"),
        "token": ("constraint", "data"),
        **dict.fromkeys(("question", "answer", "other_image", "blank", "constraint"), ("image",)),
        **dict.fromkeys(("images", "answers", "skip_bad"), ("data",)),
        **dict.fromkeys(_HOW, ("image", "data")),  # nano's pairs are asked in nano's own way
    },
    "edit": dict.fromkeys(("question", "constraint", "target", *_HOW), ("image",)),
    "nano": {},
}
# For each command: two options of which the first would be ignored beside the second, and why.
BESIDE: dict[str, tuple[tuple[str, str, str], ...]] = {
    name: (("data", "image", "a file of questions, or one"), ("limit", "image", "that is one question"))
    for name in ("flow", "lens", "saliency", "prune")
} | {
    "trace": (
        ("data", "image", "a file of questions, or one"),
        ("limit", "image", "that is one question"),
        ("phrase", "token", "each says what is put in"),
    ),
    "edit": tuple((name, "image", "it is for nano's own facts") for name in ("limit", "together", "controls", "bound")),
}
NANO = {"train": ("out", "seed", "steps", "device"), "eval": ("model", "limit"), "samples": ("out",)}
PRUNED = {"k1": ("fastv", "himap", "pyramiddrop", "sparsevlm"), "k2": ("himap", "pyramiddrop", "sparsevlm")}


def refuse_ignored(given: argparse.Namespace) -> None:
    """Refuses options that would be ignored because another is missing, or beside another.

    Raises:
        MMFlowError: with both names; or an option that is empty.
    """
    empty = [name for name, value in vars(given).items() if value == ""]
    if empty:
        raise MMFlowError(
            f"{_flag(empty[0])} is empty (a variable of the shell that is not set?): leave it out, or say it."
        )
    for name, needed in {**NEEDS.get(given.command, {}), "trusted": ("remote",)}.items():
        if _there(given, name) and not any(_there(given, one) for one in needed):
            raise MMFlowError(f"{_flag(name)} says nothing without {' or '.join(map(_flag, needed))}: give both.")
    for name, other, why in BESIDE.get(given.command, ()):
        if _there(given, name) and _there(given, other):
            raise MMFlowError(f"{_flag(name)} and {_flag(other)} exclude each other: {why}.")
    if given.command == "flow" and given.all and given.image and not given.answer:
        raise MMFlowError("--all says nothing without --answer: there is no right answer to judge by.")
    if given.command == "nano":
        used = NANO[given.action]
        unused = [name for names in NANO.values() for name in names if name not in used and _there(given, name)]
        if unused:
            told = ", ".join(map(_flag, used))
            raise MMFlowError(f"{_flag(unused[0])} says nothing to `mmflow nano {given.action}`, which takes {told}.")
    if given.command == "prune":
        for name, methods in PRUNED.items():
            if _there(given, name) and not set(methods) & set(given.methods):
                raise MMFlowError(f"{_flag(name)} says nothing without one of --methods {', '.join(methods)}.")


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


def _there(given: argparse.Namespace, name: str) -> bool:
    value = getattr(given, name, None)
    return value is not None and value is not False


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


METHODS = ("fastv", "himap", "pyramiddrop", "sparsevlm", "visionzip", "fastervlm")


BEFORE = METHODS[4:]  # before the language model, by the tower's class token
