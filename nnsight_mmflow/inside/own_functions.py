"""Functions of the user's own that change activations: how they are called, and what they may give. Ships by value."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._kinds import came

if TYPE_CHECKING:
    from jaxtyping import Float

POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def layer_argument(name: str, function: object) -> str:
    """How a function takes the layer, by its signature: "" (not at all), "second" (after the values) or "named".

    A second argument with a default is the layer only if that is its name: another is the function's own matter.

    Args:
        name: of what the function was given as, for messages.
        function: what will be called as function(values) or function(values, layer).

    Raises:
        MMFlowError: it cannot be called, or not so.
    """
    if not callable(function) or isinstance(function, type):
        raise MMFlowError(f"{name} is a function of the values at a span, but {came(function)} came.")
    called = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        parameters = list(inspect.signature(called).parameters.values())
    except (ValueError, TypeError):  # written in C, such as torch.relu: it says nothing of itself
        return ""
    first = [one for one in parameters if one.kind in POSITION]
    needed = [one for one in first if one.default is one.empty]
    others = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.default is one.empty]
    several = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    if len(needed) > 2 or others not in ([], ["layer"]) or not (first or several) or (others and len(needed) > 1):
        takes = ", ".join(map(str, parameters))
        raise MMFlowError(
            f"{name} is called as {name}(values) or {name}(values, layer), but it takes ({takes}): give a function of"
            " the values at a span, (positions, width), and, if it wants it, of the layer's number."
        )
    if others or any(one.kind is one.KEYWORD_ONLY and one.name == "layer" for one in parameters):
        return "named"
    return "second" if len(needed) == 2 or (len(first) > 1 and first[1].name == "layer") else ""


def call(function: Callable[..., object], values: torch.Tensor, layer: int) -> object:
    """What the function gives for the values, in a layer."""
    how = layer_argument("the function", function)
    if how == "named":
        return function(values, layer=layer)
    return function(values, layer) if how == "second" else function(values)


def changed_by(
    function: Callable[..., object],
    values: Float[torch.Tensor, "positions width"],
    layer: int,
    row: int,
    what: str,
) -> Float[torch.Tensor, "positions width"]:
    """What the function gives for the values of a row, in their type. It gets a copy, and may change that in place.

    Args:
        function: the user's.
        values: what stands there.
        layer: its number.
        row: the number of the prompt in its batch.
        what: the pattern, for messages.

    Raises:
        MMFlowError: it failed, or gave something else than as many finite numbers on the same device.
    """
    where = f"{what}: its function, at layer {layer}, row {row},"
    try:
        given_back = call(function, values.clone(), layer)
    except MMFlowError:
        raise
    except Exception as error:
        failed = f"{type(error).__name__}: {error}"
        raise MMFlowError(f"{where} failed, given a tensor of {described(values)}: {failed}") from error
    return taken(where, given_back, values)


def taken(what: str, given_back: object, values: torch.Tensor) -> torch.Tensor:
    """What a function gave, as it is written: as many numbers, cast to the type of the values.

    Raises:
        MMFlowError: another shape or device, no floating-point numbers, or numbers that are NaN or infinite.
    """
    if not isinstance(given_back, torch.Tensor):
        more = ": it must return the values, changed in place or not" if given_back is None else ""
        raise MMFlowError(f"{what} gave {came(given_back)}{more}; expected a tensor of {described(values)}.")
    if given_back.shape != values.shape:
        raise MMFlowError(f"{what} gave a tensor of shape {tuple(given_back.shape)}; expected {described(values)}.")
    if not given_back.is_floating_point():
        raise MMFlowError(f"{what} gave numbers of type {given_back.dtype}; expected floating-point ones.")
    if given_back.device != values.device:
        raise MMFlowError(
            f"{what} gave a tensor on {given_back.device}, but the values are on {values.device}: move what it uses"
            " there, such as vector.to(values)."
        )
    cast: torch.Tensor = given_back.to(values.dtype)
    wrong = int((~cast.isfinite() & values.isfinite()).sum())
    if wrong:
        raise MMFlowError(
            f"{what} gave {wrong} of {cast.numel()} numbers that are NaN or infinite (as {cast.dtype}), where the model"
            " has finite ones. Was something divided by zero, or too large for the type?"
        )
    return cast


def described(values: torch.Tensor) -> str:
    """A tensor in words."""
    return f"shape {tuple(values.shape)}, {values.dtype}, on {values.device}"
