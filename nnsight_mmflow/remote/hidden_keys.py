"""API keys stay out of messages: what a server or a library echoes is cleaned before anybody reads it.

What cannot be cleaned is not kept: errors of requests are made anew, without the chain and the frames behind them, in
which headers lie. Keys are only ever taken out here.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar
from urllib.parse import quote

HIDDEN = "[the API key]"
SHORTEST = 4  # what is shorter stands in ordinary words
ECHOED = re.compile(r"(Invalid API key format: )'.*?'(?=\. API keys|$)", re.DOTALL)  # NDIF tells what it was sent

Given = ParamSpec("Given")
Found = TypeVar("Found")


def keys() -> list[str]:
    """The keys that this process holds, as they are and as libraries may echo them, longest first."""
    from nnsight.schema.config import CONFIG

    held = [str(value) for name, value in CONFIG.API.model_dump().items() if name.upper().endswith("KEY") and value]
    held += [os.environ.get(name, "") for name in ("NDIF_API_KEY", "HF_TOKEN")]
    shown = {
        form
        for key in held
        for form in (
            key,
            key.strip(),
            *key.split(),
            repr(key)[1:-1],
            ascii(key)[1:-1],
            repr(key.encode())[2:-1],
            quote(key),
        )
    }
    return sorted((form for form in shown if len(form) >= SHORTEST), key=len, reverse=True)


def without_keys(text: str) -> str:
    """The text, with a mark where a key stood."""
    for key in keys():
        text = text.replace(key, HIDDEN)
    return ECHOED.sub(rf"\1{HIDDEN}", text)


def can_be_sent() -> bool:
    """Whether the keys are what a header may hold: no spaces, line ends or letters outside ASCII."""
    from nnsight.schema.config import CONFIG

    held = [str(value) for name, value in CONFIG.API.model_dump().items() if name.upper().endswith("KEY") and value]
    return all(key.isascii() and key.isprintable() and " " not in key for key in held)


def hiding(call: Callable[Given, Found]) -> Callable[Given, Found]:
    """A request to a server, its errors without a key: in their text, their chain, or the frames behind them."""
    from nnsight.intervention.backends.remote import RemoteError

    @wraps(call)
    def wrapped(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        try:
            return call(*args, **kwargs)
        except RemoteError as error:
            hidden: Exception = RemoteError(without_keys(str(error)))
        except Exception as error:
            if not _holds_key(error):
                raise
            hidden = ConnectionError(without_keys(f"{type(error).__name__}: {error}"))
        raise hidden  # outside: nothing is chained

    return wrapped


def _holds_key(error: BaseException) -> bool:
    written = "".join(traceback.format_exception(error)) + repr(vars(error))
    return any(key in written for key in keys()) or any(key in repr(error.args) for key in keys())
