"""Change, Add and Scale: activations at a span become what a function makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import numpy as np
import torch

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow._kinds import came, whole
from nnsight_mmflow.inside.own_functions import call, layer_argument
from nnsight_mmflow.model.pattern import Pattern
from nnsight_mmflow.patterns.through import Through

if TYPE_CHECKING:
    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.spans.row_spans import Spans
    from nnsight_mmflow.spans.span import Span

Vectors: TypeAlias = "torch.Tensor | np.ndarray | Sequence | Mapping"


@dataclass(frozen=True, kw_only=True)
class Change(Pattern):
    """Changes activations at a span by a function.

    Attributes:
        at: the span, as a name, an expression such as "image.tile[0]", or a Span.
        value: a function from one row's activations at the span, (positions, width), to as many; or of these and the
            layer's number. It gets a copy; what it gives is cast to their type. `mmf.values.through(encoder, decoder,
            edit)` makes one of an autoencoder.
        layers: one layer or several; "embed" has none.
        site: "resid" (the residual stream after a layer), "attn" or "mlp" (what they add to it), or "embed" (the merged
            embedding); TransformerLens' names are taken too.
        heads: with site "attn", the heads whose results are handed over, one after another; None for what all add.
        when: in generation, "prefill" (the prompt's positions), "decode" (new tokens) or "all". A new token is handed
            over by itself, (1, width), and counts to the span if that holds the prompt's last position.

    Raises:
        NoEffectError: when run, if the function gives back what it was given, in every layer.
        MMFlowError: a value that is no such function; when run, if it gives another shape or device, or NaN.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> prompt = mmf.nano.prompts(graph, 1)[0]
        >>> mean = mmf.Change(at="image", layers=range(4), value=lambda values: values.mean(0).expand_as(values))
        >>> with graph.trace(prompt, mean):
        ...     logits = graph.unembed.output.save()
    """

    at: str | Span
    value: Callable[..., object] = field(repr=False)
    layers: int | Iterable[int] | None = None
    site: str = "resid"
    heads: tuple[int, ...] | range | list[int] | None = None
    when: str = "prefill"

    def __post_init__(self) -> None:
        """Refuses what cannot be called so, before any forward."""
        Pattern.__post_init__(self)
        layer_argument("value", self.value)
        if isinstance(self.value, Through) and not callable(self.value.edit):
            raise MMFlowError(f"value takes features from {came(self.value.edit)}, which Patch does: mmf.Patch(...).")

    def change(self, values: torch.Tensor, layer: int) -> object:  # type: ignore[override]  # it is looked at there
        """What the function makes of them."""
        return call(self.value, values, layer)


@dataclass(frozen=True, kw_only=True)
class Add(Pattern):
    """Adds a vector to activations at a span (steering).

    Attributes:
        at: the span, as a name, an expression or a Span.
        vector: (width,), added at each position; or one for each layer: a mapping from layers to such, or (layers,
            width) in the order in which `layers` names them.
        layers: one layer or several; "embed" has none.
        scale: what the vector is multiplied by.
        site: "resid", "attn", "mlp" or "embed", as in Change.
        heads: with site "attn", the heads to whose results it is added: a vector as wide as they are together.
        when: as in Change.

    Raises:
        NoEffectError: a zero vector or scale.
        MMFlowError: a vector of another width, or of NaN; a layer that has none.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> words = graph.unembed._module.weight[graph.processor.tokenizer("blue red")["input_ids"][-2:]]
        >>> to_blue = mmf.Add(at="last", layers=8, vector=words[0] - words[1], scale=4.0)
        >>> with torch.no_grad(), graph.trace(mmf.nano.prompts(graph, 1)[0], to_blue):
        ...     logits = graph.unembed.output.save()
    """

    by_position: ClassVar[bool] = True
    unchanged: ClassVar[str] = "what it adds is too small to change a number there."

    at: str | Span
    vector: Vectors = field(repr=False)
    layers: int | Iterable[int] | None = None
    scale: float | int = 1.0
    site: str = "resid"
    heads: tuple[int, ...] | range | list[int] | None = None
    when: str = "prefill"

    def __post_init__(self) -> None:
        """Keeps the vector as a tensor, those of several layers by their layer."""
        Pattern.__post_init__(self)
        object.__setattr__(self, "vector", vectors_of(self.vector, self.layers))

    def check(self, graph: Graph, rows: tuple[Spans, ...], form: Form | None) -> None:
        """Refuses, before any forward, what cannot be done or would change nothing."""
        Pattern.check(self, graph, rows, form)
        width = graph.d_model if self.heads is None else len(dict.fromkeys(self.heads)) * graph.head_width
        layers = [0] if self.layers is None else self.layer_list(graph)
        held = self.vector if isinstance(self.vector, Mapping) else dict.fromkeys(layers, self.vector)
        lacking = [layer for layer in layers if layer not in held]
        if lacking:
            raise MMFlowError(f"vector has none for layer(s) {lacking[:5]}; it has some for {sorted(held)[:9]}.")
        for layer in layers:
            if len(held[layer]) != width:
                where = f"the {len(width_of(self.heads))} head(s)" if self.heads is not None else f"site={self.site!r}"
                raise MMFlowError(
                    f"vector has {len(held[layer])} numbers (layer {layer}), but {where} of {graph.name} is {width}"
                    " wide."
                )
        if not self.scale or not any(bool(held[layer].any()) for layer in layers):  # type: ignore[union-attr]
            raise NoEffectError(f"{self} would change nothing: its vector, or its scale, is zero.")

    def change(self, values: torch.Tensor, layer: int) -> torch.Tensor:
        """The values with the vector added to each."""
        vector = self.vector[layer] if isinstance(self.vector, Mapping) else self.vector
        kind = torch.promote_types(values.dtype, torch.float32)
        return values + self.scale * vector.to(values.device, kind)  # type: ignore[union-attr]


@dataclass(frozen=True, kw_only=True)
class Scale(Pattern):
    """Multiplies activations at a span by a number.

    Attributes:
        at: the span, as a name, an expression or a Span.
        factor: what they are multiplied by; 0 takes them away.
        layers: one layer or several; "embed" has none.
        site: "resid", "attn", "mlp" or "embed", as in Change.
        heads: with site "attn", the heads whose results are multiplied.
        when: as in Change.

    Raises:
        NoEffectError: a factor of 1; or when run, if all values are zero.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> with graph.trace(mmf.nano.prompts(graph, 1)[0], mmf.Scale(at="image", layers=4, site="mlp", factor=0.5)):
        ...     logits = graph.unembed.output.save()
    """

    by_position: ClassVar[bool] = True
    unchanged: ClassVar[str] = "all that it multiplies is zero there, or too small to change."

    at: str | Span
    factor: float | int
    layers: int | Iterable[int] | None = None
    site: str = "resid"
    heads: tuple[int, ...] | range | list[int] | None = None
    when: str = "prefill"

    def check(self, graph: Graph, rows: tuple[Spans, ...], form: Form | None) -> None:
        """Refuses, before any forward, what cannot be done or would change nothing."""
        Pattern.check(self, graph, rows, form)
        if self.factor == 1:
            raise NoEffectError(f"{self} would change nothing: its factor is 1.")

    def change(self, values: torch.Tensor, layer: int) -> torch.Tensor:
        """The values times the factor."""
        return values * self.factor


def vectors_of(vector: object, layers: object) -> torch.Tensor | dict[int, torch.Tensor]:
    """A vector as a tensor, or those of several layers by their layer.

    Args:
        vector: as `Add` takes it.
        layers: those that are named, in that order.

    Raises:
        MMFlowError: no finite numbers, or not one vector for each layer.
    """
    if isinstance(vector, Mapping):
        if not vector:
            raise MMFlowError("vector={} holds none: name layers and their vectors.")
        by_layer = {whole("each layer of vector", layer, 0): numbers_of(one) for layer, one in vector.items()}
        wrong = [layer for layer, one in by_layer.items() if one.ndim != 1]
        if wrong:
            shape = tuple(by_layer[wrong[0]].shape)
            raise MMFlowError(f"vector of layer {wrong[0]} has shape {shape}; expected one vector, (width,).")
        return by_layer
    vectors = numbers_of(vector)
    if vectors.ndim == 1:
        return vectors
    named = [0] if layers is None else list(layers) if isinstance(layers, Iterable) else [layers]
    if vectors.ndim != 2 or len(vectors) != len(named) or len(set(named)) != len(named) or min(named, default=0) < 0:
        raise MMFlowError(
            f"vector has shape {tuple(vectors.shape)}; expected (width,), or (layers, width) with one for each of"
            f" layers={layers!r}, which are named once and from 0. A mapping says which is which: {{3: vector}}. For"
            " another vector at each position there are mmf.Change and mmf.Patch."
        )
    return dict(zip(named, vectors, strict=True))


def numbers_of(vector: object) -> torch.Tensor:
    """Finite floating-point numbers as a tensor.

    Raises:
        MMFlowError: they are none.
    """
    try:
        numbers = torch.as_tensor(vector)
    except (TypeError, ValueError, RuntimeError):
        raise MMFlowError(f"vector is a tensor or an array of numbers, but {came(vector)} came.") from None
    if numbers.dtype == torch.bool or numbers.is_complex() or not numbers.ndim or not numbers.numel():
        raise MMFlowError(f"vector is a tensor of floating-point numbers, (width,), but {came(vector)} came.")
    numbers = numbers.detach() if numbers.is_floating_point() else numbers.float()
    wrong = int((~numbers.isfinite()).sum())
    if wrong:
        raise MMFlowError(f"vector holds {wrong} of {numbers.numel()} numbers that are NaN or infinite.")
    return numbers


def width_of(heads: Iterable[int] | None) -> list[int]:
    """The heads, each once."""
    return list(dict.fromkeys(heads or ()))
