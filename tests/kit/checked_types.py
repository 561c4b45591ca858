"""The type checks of tests, where they cost most: functions whose annotations name no shape.

jaxtyping binds each call's arguments and checks them twice, because shapes may share names of axes: 8 microseconds a
call, of which there are millions. Where no shape is named, one check by beartype, of half a microsecond, is the same.
"""

import inspect
import re
import types
from functools import partial, update_wrapper

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import TypeCheckError
from jaxtyping._decorator import _destring_annotation

SHAPED = re.compile(r"Float|Int|Bool|Shaped|jaxtyping")
ONCE = beartype(conf=BeartypeConf(violation_type=TypeCheckError))


def make_cheap(whole=jaxtyping.jaxtyped):
    """What jaxtyping's import hook puts around each function, from here on; before the package is imported."""

    def jaxtyped(fn=None, *, typechecker=None):
        if fn is None:
            return partial(jaxtyped, typechecker=typechecker)
        if not isinstance(fn, types.FunctionType) or inspect.isgeneratorfunction(fn) or inspect.iscoroutinefunction(fn):
            return whole(fn, typechecker=typechecker)
        resolved = {name: _destring_annotation(one, fn.__globals__) for name, one in fn.__annotations__.items()}
        if SHAPED.search(f"{fn.__annotations__} {resolved}"):
            return whole(fn, typechecker=typechecker)
        plain = types.FunctionType(fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__)
        plain.__kwdefaults__, plain.__annotations__ = fn.__kwdefaults__, resolved
        plain.__qualname__, plain.__module__ = fn.__qualname__, fn.__module__
        return update_wrapper(ONCE(plain), fn)

    jaxtyping.jaxtyped = jaxtyped
