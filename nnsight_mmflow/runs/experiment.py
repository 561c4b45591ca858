"""An experiment: its arguments are checked, it waits for its turn, and a server's errors come in words."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps

from nnsight_mmflow._errors import MMFlowError, RemoteFailure
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.remote.hidden_keys import without_keys
from nnsight_mmflow.remote.turns import turn_of
from nnsight_mmflow.remote.words import NETWORK, REFUSED, UNKNOWN, Found, Given, broken, told


def experiment(run: Callable[Given, Found]) -> Callable[Given, Found]:
    """An experiment whose arguments are checked, and whose remote errors are told in words; what is finished stays."""
    run = checked(run)

    @wraps(run)
    def wrapped(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        from nnsight.intervention.backends.remote import RemoteError

        graph = args[0] if args else kwargs.get("graph")
        place = None if kwargs.get("measured_by") or not hasattr(graph, "at") else graph.at(kwargs.get("remote"))
        try:
            with nullcontext() if place is None else turn_of(place.model, place.remote):
                return run(*args, **kwargs)
        except RemoteError as error:
            found: MMFlowError = told(graph, str(error))  # type: ignore[arg-type]
        except Exception as error:
            if not (isinstance(error, ConnectionError) or type(error).__module__.partition(".")[0] in NETWORK):
                raise
            why = str(error) or type(error).__name__
            found = RemoteFailure(REFUSED if UNKNOWN.search(why) else broken(why))
        raise type(found)(without_keys(str(found)))  # outside: what is chained, or lies in its frames, may hold the key

    return wrapped
