"""What a Patch may write: activations of another run, a mean over runs, zeros, noise, or features of an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import nnsight
import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.inside.sites import SITES, read_all
from nnsight_mmflow.patterns.through import Through
from nnsight_mmflow.patterns.through import through as through

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Batch, Prompt
    from nnsight_mmflow.spans.span import Span


@dataclass(frozen=True)
class FromRun:
    """The activations of another run, at the same span or at another of as many positions.

    Attributes:
        prompt: the prompt (or batch, row by row) whose clean run gives them.
        at: the span to take them from; None for the same expression as the target's.
    """

    prompt: Prompt | Batch
    at: str | Span | None = None


@dataclass(frozen=True)
class MeanOf:
    """The mean activation over all positions of a span, over several runs.

    Attributes:
        prompts: the prompts whose runs the mean is over.
        at: the span in each; None for the same expression as the target's.
    """

    prompts: Sequence[Prompt]
    at: str | None = None


@dataclass(frozen=True)
class Zeros:
    """Zeros."""


@dataclass(frozen=True)
class Noise:
    """What stands there plus Gaussian noise.

    Attributes:
        scale: its standard deviation, in multiples of the standard deviation of what stands there.
        seed: draws of the same seed are the same.
    """

    scale: float
    seed: int = 0


Value: TypeAlias = "torch.Tensor | FromRun | MeanOf | Zeros | Noise | Through"


@checked
def from_run(prompt: Prompt | Batch, at: str | Span | None = None) -> FromRun:
    """A value for Patch: the activations of another run; see `FromRun`.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> one, other = (graph.prompt(s.image, s.question) for s in mmf.nano.samples(2, "QueryAttr"))
        >>> with graph.trace(one, mmf.Patch(at="image", site="embed", value=mmf.values.from_run(other))):
        ...     logits = graph.unembed.output.save()
    """
    return FromRun(prompt, at)


@checked
def mean_of(prompts: Sequence[Prompt], at: str | None = None) -> MeanOf:
    """A value for Patch: the mean activation over several prompts; see `MeanOf`."""
    return MeanOf(tuple(prompts), at)


def zeros() -> Zeros:
    """A value for Patch: zeros."""
    return Zeros()


@checked
def noise(scale: float, seed: int = 0) -> Noise:
    """A value for Patch: what stands there plus Gaussian noise; see `Noise`."""
    return Noise(scale, seed)


def read_run(
    graph: Graph, prompt: Prompt | Batch, spans: list[Span], site: str, layers: list[int]
) -> list[list[torch.Tensor]]:
    """For each layer and row the activations (positions, width) of a clean run at a site."""
    modules = [SITES[site](graph, layer) for layer in layers]
    positions = [list(span) for span in spans]
    with torch.no_grad(), graph.trace(prompt, use_cache=False, logits_to_keep=1):
        read = nnsight.save(
            [[whole[row, at].clone() for row, at in enumerate(positions)] for whole in read_all(modules)]
        )
    return read


def resolve_value(
    value: Value, graph: Graph, targets: list[Span], site: str, layers: list[int], expression: str | Span
) -> list[list[torch.Tensor]] | Zeros | Noise | Through:
    """The value as tensors, for each layer and row (positions, width); what needs no run stays as it is.

    Raises:
        MMFlowError: shapes, lengths or rows that do not fit.
    """
    if isinstance(value, Zeros | Noise):
        return value
    if isinstance(value, Through):
        if not isinstance(value.edit, FromRun | MeanOf):
            return value
        return replace(value, edit=resolve_value(value.edit, graph, targets, site, layers, expression))
    if isinstance(value, FromRun):
        return _finite(_from_run(value, graph, targets, site, layers, expression), "the other run's values")
    if isinstance(value, MeanOf):
        return _finite(_mean(value, graph, targets, site, layers, expression), "the mean")
    if not value.is_floating_point() or value.ndim == 0:
        raise MMFlowError(
            f"the value is a tensor of {value.dtype} with {value.ndim} dimensions; expected floating-point numbers that"
            " broadcast to (layers, rows, positions, width)."
        )
    result = []
    for number in range(len(layers)):
        rows = []
        for row, target in enumerate(targets):
            shape = (len(layers), len(targets), len(target), value.shape[-1])
            try:
                rows.append(value.expand(shape)[number, row])
            except RuntimeError:
                raise MMFlowError(
                    f"the value has shape {tuple(value.shape)}; it must broadcast to (layers, rows, positions, width) ="
                    f" {shape} here ({len(layers)} layer(s), {len(targets)} row(s), {len(target)} positions)."
                ) from None
        result.append(rows)
    return _finite(result, "the value")


def _finite(values: list[list[torch.Tensor]], what: str) -> list[list[torch.Tensor]]:
    """The values; refuses those that would make every later number NaN."""
    for number, rows in enumerate(values):
        for row, part in enumerate(rows):
            wrong = int((~part.isfinite()).sum())
            if wrong:
                raise MMFlowError(
                    f"{what} for layer number {number}, row {row} holds {wrong} of {part.numel()} numbers that are NaN"
                    " or infinite, so nothing behind it would mean anything. Did the run overflow (half precision), or"
                    " was a mean taken over nothing?"
                )
    return values


def _from_run(
    value: FromRun, graph: Graph, targets: list[Span], site: str, layers: list[int], expression: str | Span
) -> list[list[torch.Tensor]]:
    from nnsight_mmflow.spans.edges import resolve

    rows = value.prompt.rows()
    if len(rows) != len(targets):
        raise MMFlowError(
            f"from_run has {len(rows)} row(s), the run that is patched {len(targets)}: give it as many prompts, in a"
            " batch."
        )
    at = value.at if value.at is not None else expression
    if not isinstance(at, str) and len(targets) == 1 and value.at is None:
        raise MMFlowError(
            f"`at` is the Span {at.name!r} of the run that is patched, whose positions need not mean the same in the"
            " other run: say where to take the values from, from_run(prompt, at=...), or give `at` as an expression."
        )
    sources = resolve(at, rows, "from_run's at")
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        if len(source) != len(target):
            raise MMFlowError(
                f"row {row}: {target.name!r} has {len(target)} positions, but {source.name!r} in the run that the"
                f" values come from has {len(source)}. Choose spans of one length: a question of as many tokens, a"
                " picture of the same shape, or a part of the span such as its last token."
            )
    return read_run(graph, value.prompt, sources, site, layers)


def _mean(
    value: MeanOf, graph: Graph, targets: list[Span], site: str, layers: list[int], expression: str | Span
) -> list[list[torch.Tensor]]:
    at = value.at if value.at is not None else expression
    if not value.prompts or not isinstance(at, str):
        raise MMFlowError("mean_of needs at least one prompt, and a span by expression: mean_of(prompts, at='image').")
    runs = [read_run(graph, prompt, [prompt.spans[at]], site, layers) for prompt in value.prompts]
    means = [torch.cat([run[number][0] for run in runs]).mean(0) for number in range(len(layers))]
    return [[mean.expand(len(target), -1) for target in targets] for mean in means]
