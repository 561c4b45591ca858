"""Commands that do not say all that they need: told before anything is loaded or written."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnsight_mmflow._errors import MMFlowError


def refuse_incomplete(given: argparse.Namespace) -> None:
    """Refuses a command that leaves open which questions, which corruption or which fact is meant.

    Raises:
        MMFlowError: with what to give too.
    """
    if given.command in ("flow", "lens", "prune", "saliency"):
        _questions(given)
    elif given.command == "trace" and not given.data and (given.image or given.model != "nano"):
        _corruption(given)
    elif given.command == "edit" and (given.image or given.model != "nano"):
        _fact(given)


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
    if not (given.image and given.question):
        raise MMFlowError(f"which question should {given.model} answer? --image FILE --question TEXT.")
    ways = [name for name in ("other_image", "blank", "constraint") if getattr(given, name)]
    if len(ways) != 1:
        raise MMFlowError(
            "say how the corrupt run is made: give one of --other-image FILE, --blank, or --constraint TEXT with"
            " --phrase TEXT or --token WORD."
        )
    if given.constraint and bool(given.phrase) == bool(given.token):
        raise MMFlowError("--constraint needs --phrase or --token: what to put in its place.")


def _fact(given: argparse.Namespace) -> None:
    missing = [name for name in ("image", "question", "constraint", "target", "layers") if not getattr(given, name)]
    if missing:
        told = ", ".join(f"--{name}" for name in missing)
        raise MMFlowError(
            f"which fact should be edited in {given.model}? {told} missing: a picture, a question about it, the words"
            " of the question that stand for the thing, the new answer, and the layers."
        )
