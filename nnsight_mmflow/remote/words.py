"""Runs on NDIF: what is made ready before one, and its errors in words that a person can act on."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from nnsight_mmflow import _errors
from nnsight_mmflow._errors import MMFlowError, ModelError, RemoteFailure
from nnsight_mmflow.remote.hidden_keys import can_be_sent, without_keys

if TYPE_CHECKING:
    from nnsight_mmflow.remote.place import Placed

Given = ParamSpec("Given")
Found = TypeVar("Found")
OURS = re.compile(r"nnsight_mmflow\._errors\.(?P<name>\w+): (?P<told>.*)", re.DOTALL)
TIME = re.compile(r"time ?out|timed out|time limit|too long", re.IGNORECASE)
PACKAGE = "nnsight_mmflow"
NETWORK = ("websocket", "httpx", "httpcore")  # whose errors are of the connection
REFUSED = "the server refuses the API key: `nnsight login`, or set NDIF_API_KEY."
UNKNOWN = re.compile(r"\b401\b|Unauthorized|API key")
NOT_SENT = "Failed to send request: "  # how nnsight's client begins
BROKEN = ("disconnected", "refused", "reset", "timed out", "unreachable", "Name or service")
_READY: dict[str, dict[str, str]] = {}  # by host, the versions of its packages


def make_ready(remote: bool | str) -> None:
    """Before a remote run: registers the package, so that it travels by value, unless the server has it at our version.

    Args:
        remote: True (NDIF, or the host in NDIF_HOST), a host, or "local" (nnsight's own imitation).

    Raises:
        RemoteFailure: no server there, no API key, or a server whose nnsight is another version.
    """
    import httpx
    import nnsight
    from nnsight.schema.config import CONFIG

    host = remote if isinstance(remote, str) and remote != "local" else CONFIG.API.HOST
    if remote == "local":
        nnsight.register(PACKAGE)
        return
    if host in _READY:
        return
    if not CONFIG.API.APIKEY:
        raise RemoteFailure(
            "there is no API key for a remote run: get one at https://login.ndif.us, then `nnsight login`, or set"
            " NDIF_API_KEY in the environment."
        )
    if not can_be_sent():
        raise RemoteFailure(
            "the API key is malformed: it holds a space, a line end, or a letter outside ASCII, and was not sent."
            " Copy it again: `nnsight login`, or NDIF_API_KEY."
        )
    failed = ""
    try:
        answer = httpx.get(f"{host}/env", timeout=httpx.Timeout(10, read=60))
        answer.raise_for_status()
        packages = answer.json().get("packages", {})
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError) as error:
        failed = without_keys(f"no NDIF server answers at {host} ({error})")
    if failed:
        raise RemoteFailure(f"{failed}. Is the address right (NDIF_HOST), and is there a connection?")
    there, here = packages.get("nnsight"), version("nnsight")
    if there is not None and there.split(".")[:2] != here.split(".")[:2]:
        raise RemoteFailure(
            f"the server at {host} runs nnsight {there}, here is {here}: what is sent would not be understood."
            f" pip install 'nnsight=={there}'."
        )
    if packages.get("nnsight-mmflow", packages.get(PACKAGE)) != version("nnsight-mmflow"):
        nnsight.register(PACKAGE)
    _READY[host] = packages


def has_key() -> bool:
    """Whether there is an API key for NDIF."""
    from nnsight.schema.config import CONFIG

    return bool(CONFIG.API.APIKEY)


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
        return RemoteFailure(broken(text.removeprefix(NOT_SENT)))
    if "API key" in text or "Unauthorized" in text:
        return RemoteFailure(REFUSED)
    if "no deployment" in text.lower() or "not deployed" in text.lower() or "not scheduled" in text.lower():
        return RemoteFailure(f"{graph.name} is not deployed on the server.{_near(graph)}")
    if "out of memory" in text.lower():
        return RemoteFailure(
            f"the server ran out of memory: make row_budget or batch_size smaller. It says: {text.splitlines()[-1]}"
        )
    last = text.splitlines()[-1] if text else ""
    if TIME.search(last):
        return RemoteFailure(
            "the server ended the job, which took too long. Make each request smaller (flow: chunks_per_request=8; else"
            f" fewer prompts, layers or spans at once), and go on with the same folder=. It says: {last}"
        )
    return RemoteFailure(f"the job failed on the server.{_other_versions(graph)} It says:\n{text}")


def changed_nothing(error: Exception) -> bool:
    """Whether a trace ended because a pattern would have changed nothing, here or on a server."""
    return isinstance(error, _errors.NoEffectError) or (
        type(error).__name__ == "RemoteError" and "nnsight_mmflow._errors.NoEffectError: " in str(error)
    )


def _other_versions(graph: Placed) -> str:
    """Packages whose version there is another than here: the first thing to look at when a job fails."""
    from nnsight.schema.config import CONFIG

    there = _READY.get(graph.remote if isinstance(graph.remote, str) else CONFIG.API.HOST, {})
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
