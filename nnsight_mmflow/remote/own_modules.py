"""Modules of the user's whose code a remote run needs: registered, so that it travels by value.

nnsight registers what lies on the import path when its first request is sent; a module that came later, or that stands
behind a pattern alone, would be looked for on the server.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType, ModuleType

INSTALLED = ("site-packages", "dist-packages")  # a server has its own of these, or nnsight.register(...) says so
DEEP = 4


def register_own(things: Iterable[object]) -> None:
    """Registers the modules of the classes and functions that things are made of, where they are the user's own."""
    import nnsight

    for name in sorted({top for thing in things for top in _tops(thing, DEEP)}):
        nnsight.register(name)


def _tops(thing: object, deep: int) -> Iterator[str]:
    """The top modules of the user's own code in a thing."""
    if deep < 0 or thing is None or isinstance(thing, str | int | float | range | bytes):
        return
    if isinstance(thing, ModuleType):
        owners: Iterable[object] = [thing]
    elif isinstance(thing, type | FunctionType):
        owners = getattr(thing, "__mro__", [thing])
    else:
        owners = type(thing).__mro__
    for owner in owners:
        top = str(getattr(owner, "__module__", None) or getattr(owner, "__name__", "")).partition(".")[0]
        if _is_own(top):
            yield top
    for one in _held(thing):
        yield from _tops(one, deep - 1)


def _held(thing: object) -> Iterable[object]:
    """What a thing is made of."""
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, Mapping):
        return thing.values()
    if isinstance(thing, list | tuple):
        return thing[:100]
    if isinstance(thing, FunctionType):
        closed = [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
        return [*closed, *(thing.__globals__[name] for name in thing.__code__.co_names if name in thing.__globals__)]
    if isinstance(thing, MethodType):
        return [thing.__func__, thing.__self__]
    return [] if isinstance(thing, type | ModuleType) else getattr(thing, "__dict__", {}).values()


def _is_own(top: str) -> bool:
    """Whether a top module is the user's: neither Python's, nor installed, nor this package."""
    if top in ("__main__", "nnsight_mmflow") or top in sys.stdlib_module_names:
        return False
    there = sys.modules.get(top)
    places = [getattr(there, "__file__", None) or "", *map(str, getattr(there, "__path__", ()))]
    return any(places) and not any(part in place for part in INSTALLED for place in places)


def _filled(cell: object) -> bool:
    try:
        return cell.cell_contents is not None  # type: ignore[attr-defined]
    except ValueError:
        return False
