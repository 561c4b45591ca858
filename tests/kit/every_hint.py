"""Run by test_type_hints.py in a process of its own: every public annotation, as a user's plain Python sees it."""

import inspect
import json
import sys
import typing
from importlib import import_module
from types import FunctionType

import nnsight_mmflow as mmf

PACKAGE = "nnsight_mmflow"
# What those who add a family or a pattern import; the rest is reached by its public name.
MORE = ("adapters", "adapters.base", "checks", "nano", "nano.edit_facts", "patterns")


def parts(label, thing):
    """The functions and classes under a public name, inherited methods and properties too."""
    if inspect.ismodule(thing):
        for name, value in vars(thing).items():
            if getattr(value, "__module__", None) == thing.__name__ and name[0] != "_":
                yield from parts(f"{label}.{name}", value)
    elif callable(thing):
        yield label, thing
    for base in getattr(thing, "__mro__", ()):
        for name, value in vars(base).items() if base.__module__.startswith(PACKAGE) else ():
            for part in (value, *(getattr(value, holder, None) for holder in ("__func__", "fget", "func"))):
                if isinstance(part, FunctionType):
                    yield f"{label}.{name}", part


def unresolved(value):
    """Names that stand as text inside a type."""
    if isinstance(value, str | typing.ForwardRef):
        return [str(value)]
    if typing.get_origin(value) is typing.Literal:
        return []
    return [name for part in typing.get_args(value) for name in unresolved(part)]


def public():
    """Modules, functions and classes by the names that users write."""
    things = {f"{PACKAGE}.{name}": import_module(f"{PACKAGE}.{name}") for name in MORE}
    things |= {name: getattr(mmf, name) for name in mmf.__all__}
    for name, thing in list(things.items()):
        if inspect.ismodule(thing):  # a group, whose names load when they are first used
            things |= {f"{name}.{member}": getattr(thing, member) for member in getattr(thing, "__all__", ())}
    return things


def main():
    wrong, seen = [], 0
    for name, thing in public().items():
        for label, part in parts(name, thing):
            seen += 1
            try:
                hints = typing.get_type_hints(part)
            except Exception as error:
                wrong.append(f"{label}: {type(error).__name__}: {error}")
            else:
                wrong += [f"{label}: {argument} is {hint}" for argument, hint in hints.items() if unresolved(hint)]
    weights = typing.get_type_hints(mmf.results.AttentionResult)["weights"]
    json.dump({"seen": seen, "wrong": wrong, "shape": str(weights)}, sys.stdout)


if __name__ == "__main__":
    main()
