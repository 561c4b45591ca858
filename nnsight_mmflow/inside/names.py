"""Names in transformers that change from release to release: the one place that knows them. Ships by value.

Each is looked for in the code that runs, here or on a server, whose transformers may be another. Loading a model looks
once (`check_names`), so that a release with a name of its own is told then, in words, and not in the middle of a run.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import ModelError

if TYPE_CHECKING:
    from nnsight import Envoy, TransformersModel
    from nnsight.intervention.source import SourceEnvoy
    from torch import nn
    from transformers import Cache, PreTrainedModel

CACHE = ("cache", "past_key_values")  # 5.24 renamed it, and takes the old one with a warning until 5.40

# Operations in the forward of an attention, as nnsight's `.source` labels them.
ROTARY = ("apply_rotary_pos_emb_0",)
UPDATE = ("cache_update_0", "past_key_values_update_0")
ATTEND = ("attention_interface_1",)
OPERATIONS = {
    "turns queries and keys": ROTARY,
    "keeps keys and values": UPDATE,
    "attends": ATTEND,
}


def cache_keyword(forward: object) -> str:
    """The name under which a forward takes its cache.

    Raises:
        ModelError: it takes none that is known.
    """
    return _first("a cache", CACHE, inspect.signature(forward).parameters)  # type: ignore[arg-type]


def with_its_cache(model: PreTrainedModel, given: Mapping[str, object]) -> dict[str, object]:
    """Keyword arguments of a call, a cache among them under the name that the model takes.

    Raises:
        ModelError: a cache came under both names.
    """
    came = [name for name in CACHE if name in given]
    if len(came) > 1:
        raise ModelError(f"a cache came twice, as {' and as '.join(came)}: leave one of them out.")
    taken = cache_keyword(type(model).forward)
    return {taken if name in CACHE else name: value for name, value in given.items()}


def cached(model: TransformersModel, cache: Cache) -> dict[str, Cache]:
    """The keyword argument that hands a cache to the whole model."""
    return {cache_keyword(type(model._module).forward): cache}


def cache_in(named: Mapping[str, object]) -> Cache | None:
    """The cache among the keyword arguments of a layer, of the language model, of the model, or of a generation."""
    return next((named[name] for name in CACHE if named.get(name) is not None), None)  # type: ignore[return-value]


def cache_of(output: Mapping[str, object]) -> Cache:
    """The cache that came out of a forward, or of a generation."""
    return output[_first("a cache", CACHE, list(output))]  # type: ignore[no-any-return]


def operation(attention: Envoy, names: tuple[str, ...]) -> SourceEnvoy:
    """Inside a trace: the operation of an attention's forward that has one of the names.

    Raises:
        ModelError: there is none.
    """
    source = attention.source
    return getattr(source, _first("an operation", names, source.names))  # type: ignore[no-any-return]


def check_names(model: PreTrainedModel, layer: nn.Module) -> None:
    """Looks once whether the model and its layers take their cache under a known name.

    Raises:
        ModelError: they do not.
    """
    for part in (model, model.get_decoder(), layer):
        try:
            cache_keyword(type(part).forward)
        except ModelError as error:
            raise _unknown(type(part).__name__, str(error)) from None


def unknown_operations(attention: nn.Module, rotated: str) -> str:
    """What an attention's forward lacks that patterns need where blocks run apart, in words; "" where it has all.

    Args:
        attention: the module.
        rotated: the operation that gives its rotated queries; "" for the rotation itself.
    """
    from nnsight.intervention.source import SourceNotAvailable, compiled, decorator_chain

    kind = type(attention).__name__
    try:
        there = compiled(decorator_chain(type(attention).forward)[0]).names
        for what, names in {**OPERATIONS, "gives the rotated queries": (rotated,) if rotated else ROTARY}.items():
            _first(f"an operation that {what}", names, there)
    except SourceNotAvailable as error:
        return str(_unknown(kind, f"its source cannot be read ({error})"))
    except ModelError as error:
        return str(_unknown(kind, str(error)))
    return ""


def _first(what: str, names: Iterable[str], there: Iterable[str]) -> str:
    """The first of the names that is there."""
    present = [name for name in names if name in there]
    if not present:
        raise ModelError(f"{what} was expected as {' or '.join(names)}, but there are {', '.join(there)}")
    return present[0]


def _unknown(what: str, names: str) -> ModelError:
    import transformers

    return ModelError(
        f"{what} of transformers {transformers.__version__} has names that this package does not know: {names}. It is"
        " tested with the releases in the README's table: install one of those, or add the name to"
        " nnsight_mmflow/inside/names.py."
    )
