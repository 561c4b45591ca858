"""Runs on NDIF: what is made ready before one, and its errors in words that a person can act on."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from nnsight_mmflow import _errors
from nnsight_mmflow._errors import MMFlowError, ModelError, ServerError
from nnsight_mmflow.remote import ready
from nnsight_mmflow.remote.server_words import TRACEBACK, meaning

if TYPE_CHECKING:
    from nnsight_mmflow.remote.place import Placed

Given = ParamSpec("Given")
Found = TypeVar("Found")
OURS = re.compile(r"nnsight_mmflow\._errors\.(?P<name>\w+): (?P<told>.*)", re.DOTALL)
TIME = re.compile(r"time ?out|timed out|time limit|too long", re.IGNORECASE)
NETWORK = ("websocket", "httpx", "httpcore")  # whose errors are of the connection
NOT_SENT = "Failed to send request: "  # how nnsight's client begins
BROKEN = ("disconnected", "refused", "reset", "timed out", "unreachable", "Name or service")


def broken(why: str) -> str:
    """What a broken connection means."""
    return f"the connection to the server broke ({why}). Run it again: with folder= it goes on where it was."


def told(graph: Placed, text: str) -> MMFlowError:
    """What a server's error means here."""
    ours = OURS.search(text)
    if ours:  # a pattern's own refusal, raised on the server
        kind = getattr(_errors, ours["name"], MMFlowError)
        return kind(ours["told"].strip())
    if text.startswith(NOT_SENT) and any(sign in text for sign in BROKEN):
        return ServerError(broken(text.removeprefix(NOT_SENT)))
    near = "" if TRACEBACK in text else _near(graph)
    said = meaning(text, name=graph.name, near=near, versions=_other_versions(graph))
    if said:
        return ServerError(said)
    if "out of memory" in text.lower():
        return ServerError(
            f"the server ran out of memory: make row_budget or batch_size smaller. It says: {text.splitlines()[-1]}"
        )
    last = text.splitlines()[-1] if text else ""
    if TIME.search(last):
        return ServerError(
            "the server ended the job, which took too long. Make each request smaller (flow: chunks_per_request=8; else"
            f" fewer prompts, layers or spans at once), and go on with the same folder=. It says: {last}"
        )
    return ServerError(f"the job failed on the server.{_other_versions(graph)} It says:\n{text}")


def changed_nothing(error: Exception) -> bool:
    """Whether a trace ended because a pattern would have changed nothing, here or on a server."""
    return isinstance(error, _errors.NoEffectError) or (
        type(error).__name__ == "RemoteError" and "nnsight_mmflow._errors.NoEffectError: " in str(error)
    )


def _other_versions(graph: Placed) -> str:
    """Packages whose version there is another than here: the first thing to look at when a job fails."""
    from nnsight.schema.config import CONFIG

    there = ready.READY.get(graph.remote if isinstance(graph.remote, str) else CONFIG.API.HOST, {})
    different = [
        f"{name} {there[name]} (here {version(name)})"
        for name in ("nnsight", "transformers", "torch")
        if name in there and there[name].split("+")[0] != version(name).split("+")[0]
    ]
    return f" It has {', '.join(different)}." if different else ""


def needs_gradients(graph: Placed, what: str) -> None:
    """Refuses what is found by gradients, where blocks run apart from the model's process.

    Raises:
        ModelError: the graph's traces run with an ordinary key on NDIF.
    """
    if graph.apart:
        raise ModelError(
            f"{what} is found by gradients, which do not reach a process apart from the model's, where NDIF runs"
            f" ordinary keys' blocks. With a key that NDIF trusts: mmf.{what}(graph.at(True, trusted=True), ...). Or"
            " load the model here."
        )


def _near(graph: Placed) -> str:
    """The deployed models, those with a like name first."""
    from difflib import SequenceMatcher

    try:
        import nnsight

        names = list(nnsight.ndif.status().deployments)
    except Exception:  # the list only helps: where it cannot be had, the error stands without it
        return ""
    names.sort(key=lambda name: -SequenceMatcher(None, name, graph.name).ratio())
    return f" Deployed are: {', '.join(names[:5])}." if names else " Nothing is deployed there now."
