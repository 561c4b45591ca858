"""One thread at a time: nnsight runs a model's traces through one place, and two at once end in errors of greenlets.

Threads wait for one another, whole experiments and single traces alike; a thread may open traces inside its own. Runs
on a server need no turn. `graph.model.trace`, nnsight's own, takes none.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import Lock, RLock
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from nnsight import TransformersModel
    from nnsight.intervention.tracer import InterleavingTracer

_TURNS: WeakKeyDictionary[object, AbstractContextManager] = WeakKeyDictionary()
_MAKING = Lock()


def turn_of(model: TransformersModel, remote: bool | str = False) -> AbstractContextManager:
    """To be held while the model runs here; every graph of the same model has the same."""
    if remote and remote != "local":
        return nullcontext()
    module = model._module
    with _MAKING:
        return _TURNS.setdefault(module, RLock())


def in_turn(turn: AbstractContextManager, make: Callable[[], InterleavingTracer]) -> InterleavingTracer:
    """The tracer, its making and its run waiting for their turn."""
    with turn:
        tracer = make()
    if not isinstance(turn, nullcontext):
        tracer.backend = waiting(turn, tracer.backend)
    return tracer


def waiting(turn: AbstractContextManager, run: Callable[..., object]) -> Callable[..., object]:
    """The backend, run in turn."""

    def wrapped(tracer: object) -> object:
        with turn:
            return run(tracer)

    return wrapped
