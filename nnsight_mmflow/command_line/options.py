"""Options that would say nothing where they stand, or beside another: refused before anything is loaded."""

from __future__ import annotations

import argparse

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.command_line.common import flag
from nnsight_mmflow.command_line.experiments import EXPERIMENTS, FACTS, PAIRS, PROMPTS

Needs = dict[str, tuple[str, ...]]
Beside = tuple[tuple[str, str, str], ...]

# An option, and those of which one must be given too, or it would be ignored.
ASKED: Needs = {"answer": ("image",), "images": ("data",), "skip_bad": ("data",), "ray_address": ("workers",)}
# Nano's own facts are asked in nano's own way.
_HOW: Needs = dict.fromkeys(("template", "instruction", "pad_to_square"), ("image", "data"))
BY_KIND: dict[str, Needs] = {
    PAIRS: {
        **_HOW,
        "question": ("image",),
        **dict.fromkeys(("other_image", "blank", "constraint"), ("image", "data")),
        **dict.fromkeys(("phrase", "token"), ("constraint", "data")),
        "answers": ("data",),
    },
    FACTS: {
        **_HOW,
        "question": ("image",),
        **dict.fromkeys(("constraint", "target"), ("image", "data")),
        "answers": ("data",),
    },
}
NEEDS: dict[str, Needs] = {
    **{name: {**ASKED, **BY_KIND.get(experiment.takes, {})} for name, experiment in EXPERIMENTS.items()},
    "nano": {},
}

# Two options of which the first would be ignored beside the second, and why.
TOGETHER: Beside = (
    ("data", "image", "a file of questions, or one"),
    ("limit", "image", "that is one question"),
    ("workers", "remote", "workers load the model themselves, and NDIF has it already"),
)
_REPORTED = "it is for nano's own facts, or those of --data"
BESIDE: dict[str, Beside] = {name: TOGETHER for name in EXPERIMENTS} | {
    **{
        name: (
            *TOGETHER,
            ("phrase", "token", "each says what is put in"),
            *(
                (name, way, "each says what the corrupt run is")
                for name in ("phrase", "token")
                for way in ("blank", "other_image")
            ),
        )
        for name, experiment in EXPERIMENTS.items()
        if experiment.takes == PAIRS
    },
    "edit": (
        *TOGETHER,
        *((name, "image", _REPORTED) for name in ("together", "control_layers", "bound")),
        ("workers", "image", "one fact is one edit, which one process finds"),
    ),
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
            f"{flag(given, empty[0])} is empty (a variable of the shell that is not set?): leave it out, or say it."
        )
    for name, needed in {**NEEDS.get(given.command, {}), "trusted": ("remote",)}.items():
        if _there(given, name) and not any(_there(given, option) for option in needed):
            wanted = " or ".join(flag(given, option) for option in needed)
            raise MMFlowError(f"{flag(given, name)} says nothing without {wanted}: give both.")
    for name, other, why in BESIDE.get(given.command, ()):
        if _there(given, name) and _there(given, other):
            raise MMFlowError(f"{flag(given, name)} and {flag(given, other)} exclude each other: {why}.")
    if getattr(given, "all", False) and given.image and not given.answer and _judges_by_answer(given):
        raise MMFlowError("--all says nothing without --answer: there is no right answer to judge by.")
    if given.command == "nano":
        _of_another_action(given)
    if given.command == "prune":
        for name, methods in PRUNED.items():
            if _there(given, name) and not set(methods) & set(given.methods):
                raise MMFlowError(f"{flag(given, name)} says nothing without one of --methods {', '.join(methods)}.")
        if given.workers and given.timed:
            raise MMFlowError(
                f"--workers and --timed {given.timed} exclude each other: times are measured alone, not beside others."
            )


def _judges_by_answer(given: argparse.Namespace) -> bool:
    """Whether the answer only decides which prompts count; one that is needed anyway is asked for elsewhere."""
    experiment = EXPERIMENTS[given.command]
    return experiment.takes == PROMPTS and not experiment.why_answer


def _of_another_action(given: argparse.Namespace) -> None:
    used = NANO[given.action]
    unused = [name for names in NANO.values() for name in names if name not in used and _there(given, name)]
    if unused:
        flags = ", ".join(flag(given, name) for name in used)
        raise MMFlowError(
            f"{flag(given, unused[0])} says nothing to `mmflow nano {given.action}`, which takes {flags}."
        )


def _there(given: argparse.Namespace, name: str) -> bool:
    value = getattr(given, name, None)
    return value is not None and value is not False
