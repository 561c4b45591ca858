"""An experiment: its arguments are checked, it waits for its turn, and a server's errors come in words."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar, cast, overload, runtime_checkable

from nnsight_mmflow._errors import MMFlowError, ServerError
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.remote.hidden_keys import without_keys
from nnsight_mmflow.remote.server_words import meaning
from nnsight_mmflow.remote.turns import turn_of
from nnsight_mmflow.remote.words import NETWORK, broken, told
from nnsight_mmflow.runs.job import Job

if TYPE_CHECKING:
    from nnsight_mmflow.remote.place import Placed

Given = ParamSpec("Given")
Found = TypeVar("Found")


@runtime_checkable
class Experiment(Protocol[Given, Found]):
    """How type checkers see an experiment: it returns its result, and with `blocking=False` a Job that gets it."""

    # A ParamSpec takes no keyword of ours beside its own, so the other arguments of a job are looked at when it starts.
    @overload
    def __call__(self, *args: Any, blocking: Literal[False], **kwargs: Any) -> Job[Found]: ...

    @overload
    def __call__(self, *args: Given.args, **kwargs: Given.kwargs) -> Found: ...


def experiment(function: Callable[Given, Found]) -> Experiment[Given, Found]:
    """An experiment whose arguments are checked, and whose remote errors are told in words; what is finished stays."""
    run = checked(function)

    @wraps(run)
    def wrapped(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        graph = args[0] if args else kwargs.get("graph")
        if kwargs.get("workers") or not hasattr(graph, "at"):  # nothing runs here; or the check says what is wrong
            return run(*args, **kwargs)
        return in_turn_and_words(graph.at(kwargs.get("remote")), lambda: run(*args, **kwargs))

    return cast("Experiment[Given, Found]", wrapped)


def in_turn_and_words(graph: Placed, run: Callable[[], Found]) -> Found:
    """What a run returns, once its turn among threads has come; a server's error is told in words.

    Raises:
        MMFlowError: what went wrong there; without any API key.
    """
    from nnsight.intervention.backends.remote import RemoteError

    try:
        with turn_of(graph.model, graph.remote):
            return run()
    except RemoteError as error:
        worded: MMFlowError = told(graph, str(error))
    except Exception as error:
        if not (isinstance(error, ConnectionError) or type(error).__module__.partition(".")[0] in NETWORK):
            raise
        why = str(error) or type(error).__name__
        worded = ServerError(meaning(why) or broken(why))
    raise type(worded)(without_keys(str(worded)))  # outside: what is chained, or lies in its frames, may hold the key
