"""Annotations that resolve when somebody asks: `typing.get_type_hints(mmf.flow)` works, and importing stays quick.

What only annotations name is imported for type checkers alone: it would close circles, load pandas, matplotlib or
TransformerLens for nothing, and a server need not have jaxtyping. So the annotations of what is public are a dictionary
that imports those names when it is read as a whole, as `typing` does. The modules' own globals stay as they are, since
what a function finds there travels with it to a server.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec
from linecache import getlines
from types import FunctionType, NoneType
from typing import Any, get_type_hints

PACKAGE = "nnsight_mmflow"
_done: set[str] = set()


class Annotations(dict[str, object]):
    """The annotations of a function or class: names until they are read as a whole, then what the names stand for."""

    def __init__(self, written: dict[str, object], modules: tuple[str, ...]) -> None:
        super().__init__(written)
        self.written = written
        self.modules = modules  # where they were written; the last one's names win

    @cached_property
    def resolved(self) -> dict[str, object]:
        """What typing makes of them."""
        holder = type("Annotated", (), {"__annotations__": dict(self.written), "__module__": self.modules[-1]})
        hints = get_type_hints(holder, {}, Names(self.modules), include_extras=True)
        return {name: None if hint is NoneType else hint for name, hint in hints.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.resolved)

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        """The names of the arguments or fields."""
        return self.resolved.keys()

    def values(self) -> ValuesView[object]:  # type: ignore[override]
        """Their types."""
        return self.resolved.values()

    def items(self) -> ItemsView[str, object]:  # type: ignore[override]
        """Names and types."""
        return self.resolved.items()

    def __getitem__(self, name: str) -> object:
        return self.resolved[name]

    def __reduce__(self) -> tuple:  # a server has no such class, and needs no types
        return dict, (self.written,)


def resolve_when_asked() -> None:
    """Makes the annotations of all modules that are loaded by now resolve when they are asked for."""
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{PACKAGE}.") and name not in _done:
            _done.add(name)
            for value in list(vars(module).values()):
                if getattr(value, "__module__", None) == name:
                    if isinstance(value, FunctionType):
                        _annotate(value, (name,))
                    elif isinstance(value, type):
                        _annotate_class(value)


def _annotate_class(owner: type) -> None:
    """A class, and the functions in it; fields that it inherits were written in other modules."""
    modules = tuple(base.__module__ for base in reversed(owner.__mro__) if base.__module__.startswith(f"{PACKAGE}."))
    if "__annotations__" in vars(owner):
        _annotate(owner, modules)
    for value in list(vars(owner).values()):
        for part in (value, *(getattr(value, name, None) for name in ("__func__", "fget", "func"))):
            if isinstance(part, FunctionType) and part.__module__.startswith(PACKAGE):
                _annotate(part, (*modules, part.__module__))


def _annotate(thing: FunctionType | type, modules: tuple[str, ...]) -> None:
    written = thing.__annotations__
    if written and not isinstance(written, Annotations):
        thing.__annotations__ = Annotations(written, modules)


class Names(dict[str, Any]):
    """What names in the annotations of some modules stand for, looked up one by one: the rest is not imported."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        super().__init__()
        self.modules = modules

    def __missing__(self, name: str) -> Any:
        for module in reversed(self.modules):
            if name in vars(sys.modules[module]) or name in _for_type_checkers(module):
                return look_up(module, name)
        raise KeyError(name)  # a builtin

    def __contains__(self, name: object) -> bool:
        return any(name in vars(sys.modules[module]) or name in _for_type_checkers(module) for module in self.modules)


def look_up(module: str, name: str) -> Any:
    """A global of a module, or what it has for type checkers alone; of an extra that is not installed: Any."""
    globals_there = vars(sys.modules[module])
    if name in globals_there:
        return globals_there[name]
    statement, imported = _for_type_checkers(module)[name]
    if isinstance(statement, ast.AnnAssign):  # an alias of types, which typing reads as it reads an annotation
        value = statement.value
        text = value.value if isinstance(value, ast.Constant) else ast.unparse(value or ast.Constant(None))
        holder = type("Aliased", (), {"__annotations__": {name: text}, "__module__": module})
        return get_type_hints(holder, {}, Names((module,)), include_extras=True)[name]
    source = str(statement.module) if isinstance(statement, ast.ImportFrom) else imported
    if find_spec(source.split(".")[0]) is None:
        return Any
    source_module = import_module(source)
    if isinstance(statement, ast.Import):
        return source_module
    return getattr(source_module, imported) if hasattr(source_module, imported) else look_up(source, imported)


@cache
def _for_type_checkers(module: str) -> dict[str, tuple[ast.stmt, str]]:
    """The names that a module's `if TYPE_CHECKING:` binds: the statement, and what it imports under the name."""
    imports: dict[str, tuple[ast.stmt, str]] = {}
    there = sys.modules[module]
    source = "".join(getlines(str(there.__file__), vars(there)))
    for node in ast.parse(source).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                if isinstance(statement, ast.Import | ast.ImportFrom):
                    imports |= {alias.asname or alias.name: (statement, alias.name) for alias in statement.names}
                elif isinstance(statement, ast.AnnAssign):
                    imports[ast.unparse(statement.target)] = (statement, "")
    return imports
