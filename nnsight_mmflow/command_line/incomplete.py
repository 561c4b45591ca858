"""Commands that do not say all that they need: told before anything is loaded or written."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.command_line.experiments import EXPERIMENTS, FACTS, PAIRS

WAYS = ("other_image", "blank", "constraint")


def refuse_incomplete(given: argparse.Namespace) -> None:
    """Refuses a command that leaves open which questions, which corruption or which fact is meant.

    Raises:
        MMFlowError: with what to give too.
    """
    experiment = EXPERIMENTS.get(given.command)
    if experiment is None:
        return
    if experiment.takes == PAIRS:
        _corruption(given)
    elif experiment.takes == FACTS:
        _fact(given)
    else:
        _questions(given)
        if experiment.why_answer and given.image and not given.answer:
            raise MMFlowError(f"{given.command} {experiment.why_answer}: give --answer.")
    if given.command == "attention-and-effect" and given.image and given.source == "object":
        raise MMFlowError(
            "what of the picture is read? --source SPAN, such as 'image.box((x0, y0, x1, y1))' in pixels."
        )


def _questions(given: argparse.Namespace) -> None:
    if bool(given.image) != bool(given.question):
        raise MMFlowError("--image and --question belong together: give both, or --data FILE --images DIR.")
    if given.data and not given.images:
        raise MMFlowError("--data needs --images DIR, the folder in which pictures are looked up by img_id.")
    if Path(given.model).is_dir():  # a name may be of nothing, which loading tells
        refuse_no_question(given)


def refuse_no_question(given: argparse.Namespace) -> None:
    """Refuses a model of the user's own without questions.

    Raises:
        MMFlowError: with what to give too.
    """
    if given.model != "nano" and not (given.image or given.data):
        raise MMFlowError(
            f"which questions should {given.model} answer? --image FILE --question TEXT, or --data FILE --images DIR."
        )


def _corruption(given: argparse.Namespace) -> None:
    if not (given.image or given.data or given.model != "nano"):
        return
    if not given.data and not (given.image and given.question):
        raise MMFlowError(
            f"which question should {given.model} answer? --image FILE --question TEXT, or --data FILE --images DIR."
        )
    ways = [name for name in WAYS if getattr(given, name)]
    if len(ways) > 1 or (given.image and not ways):
        refuse_no_corruption()
    if given.constraint and bool(given.phrase) == bool(given.token):
        raise MMFlowError("--constraint needs --phrase or --token: what to put in its place.")


def refuse_no_corruption() -> None:
    """Refuses questions whose corrupt run is not said.

    Raises:
        MMFlowError: with what to give.
    """
    raise MMFlowError(
        "say how the corrupt run is made: give one of --other-image FILE, --blank, or --constraint TEXT with"
        " --phrase TEXT or --token WORD."
    )


def _fact(given: argparse.Namespace) -> None:
    if not (given.image or given.data or given.model != "nano"):
        return
    needed = ("layers",) if given.data else ("image", "question", "constraint", "target", "layers")
    missing = [name for name in needed if not getattr(given, name)]
    if missing:
        flags = ", ".join(f"--{name}" for name in missing)
        raise MMFlowError(
            f"which fact should be edited in {given.model}? {flags} missing: a picture, a question about it, the words"
            " of the question that stand for the thing, the new answer, and the layers."
        )
