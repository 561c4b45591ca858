"""Before a run on a server: is it there, is there a key, and does the package have to travel?"""

from __future__ import annotations

from importlib.metadata import version

from nnsight_mmflow._errors import ServerError
from nnsight_mmflow.remote.hidden_keys import can_be_sent, without_keys
from nnsight_mmflow.remote.server_words import meaning

PACKAGE = "nnsight_mmflow"


READY: dict[str, dict[str, str]] = {}  # by host, the versions of its packages


def make_ready(remote: bool | str) -> None:
    """Before a remote run: registers the package, so that it travels by value, unless the server has it at our version.

    Args:
        remote: True (NDIF, or the host in NDIF_HOST), a host, or "local" (nnsight's own imitation).

    Raises:
        ServerError: no server there, no API key, or a server whose nnsight is another version.
    """
    import httpx
    import nnsight
    from nnsight.schema.config import CONFIG

    host = remote if isinstance(remote, str) and remote != "local" else CONFIG.API.HOST
    if remote == "local":
        nnsight.register(PACKAGE)
        return
    if host in READY:
        return
    if not CONFIG.API.APIKEY:
        raise ServerError(
            "there is no API key for a remote run: get one at https://login.ndif.us, then `nnsight login`, or set"
            " NDIF_API_KEY in the environment."
        )
    if not can_be_sent():
        raise ServerError(
            "the API key is malformed: it holds a space, a line end, or a letter outside ASCII, and was not sent."
            " Copy it again: `nnsight login`, or NDIF_API_KEY."
        )
    failed = ""
    try:
        answer = httpx.get(f"{host}/env", timeout=httpx.Timeout(10, read=60))
        said = "" if answer.is_success else meaning(answer.text)
        if said:
            raise ServerError(without_keys(said))
        answer.raise_for_status()
        packages = answer.json().get("packages", {})
    except ServerError:
        raise
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError) as error:
        failed = without_keys(f"no NDIF server answers at {host} ({error})")
    if failed:
        raise ServerError(f"{failed}. Is the address right (NDIF_HOST), and is there a connection?")
    there, here = packages.get("nnsight"), version("nnsight")
    if there is not None and there.split(".")[:2] != here.split(".")[:2]:
        raise ServerError(
            f"the server at {host} runs nnsight {there}, here is {here}: what is sent would not be understood."
            f" pip install 'nnsight=={there}'."
        )
    if packages.get("nnsight-mmflow", packages.get(PACKAGE)) != version("nnsight-mmflow"):
        nnsight.register(PACKAGE)
    READY[host] = packages


def has_key() -> bool:
    """Whether there is an API key for NDIF."""
    from nnsight.schema.config import CONFIG

    return bool(CONFIG.API.APIKEY)
