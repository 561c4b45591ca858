"""What a user's own functions and classes are made of, so that one that was changed is not taken for what it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from types import CodeType, FunctionType, ModuleType

import numpy as np
import torch

LIBRARIES = ("site-packages", "dist-packages")  # their versions are told by themselves
PLAIN = (type(None), bool, int, float, complex, str, bytes, range, torch.Tensor, torch.dtype, np.ndarray, np.generic)
# A class's own entries that say nothing of what it does, and those that a dataclass writes itself.
BESIDE: tuple[str, ...] = (
    "__module__",
    "__qualname__",
    "__doc__",
    "__dict__",
    "__weakref__",
    "__annotations__",
    "__firstlineno__",
)
BESIDE += ("__static_attributes__", "__dataclass_fields__", "__dataclass_params__", "__match_args__", "__annotate__")
WRITTEN = ("__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__replace__")


def is_own(value: object) -> bool:
    """Whether a function or class is the user's own: from a notebook, a script, or a module that is not installed."""
    name = getattr(value, "__module__", None) or "__main__"
    top = name.partition(".")[0]
    if top == "__main__" or top in sys.stdlib_module_names:  # a notebook's file is that of its kernel
        return top == "__main__"
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return top not in ("nnsight_mmflow", "torch", "numpy") and not any(part in file for part in LIBRARIES)


def used_globals(function: object) -> dict[str, object]:
    """The globals that a user's function reads, by name: numbers, tensors, and functions and classes of one's own."""
    if not isinstance(function, FunctionType) or not is_own(function):
        return {}
    there = function.__globals__
    used = {name: there[name] for name in _names(function.__code__) if name in there}
    return {name: value for name, value in sorted(used.items()) if _counts(value)}


def class_parts(kind: type) -> dict[str, object]:
    """What a user's class does, by name: its functions and values, and its bases."""
    if not is_own(kind):
        return {}
    beside = (*BESIDE, *WRITTEN) if is_dataclass(kind) else BESIDE
    parts = {name: _bare(value) for name, value in vars(kind).items() if name not in beside}
    return {"bases": list(kind.__bases__), **{name: value for name, value in parts.items() if _counts(value)}}


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _bare(value: object) -> object:
    """The function within a property, a class method or a static one."""
    return getattr(value, "fget", None) or getattr(value, "__func__", value)


def _counts(value: object) -> bool:
    """Whether a value can change what a function does and is the same in every process."""
    if isinstance(value, PLAIN):
        return True
    if isinstance(value, list | tuple | set | frozenset):
        return all(_counts(item) for item in value)
    if isinstance(value, Mapping):
        return all(_counts(item) for pair in value.items() for item in pair)
    if isinstance(value, ModuleType):
        return False
    if isinstance(value, FunctionType | type):
        return is_own(value)
    return is_own(type(value))
