"""Attention maps: exact weights of chosen layers, rows and columns, whatever the attention implementation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import nnsight
import torch

from nnsight_mmflow._errors import MMFlowError, SpanError
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.inside.heads import QueryKeyReader, differs
from nnsight_mmflow.inside.maps import read_maps
from nnsight_mmflow.model.pattern import layer_list
from nnsight_mmflow.prompts.prompt import Prompt
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.spans.edges import resolve
from nnsight_mmflow.spans.groups import Group, Grouping, groups_of

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.spans.span import Span

MOST_BYTES = 1_000_000_000
HEADS_AT_ONCE = 4
SINK = 10.0  # times an even share


@dataclass(frozen=True)
class PooledAttention:
    """Attention between groups of positions.

    Attributes:
        weights: (layers, heads, row groups, column groups): for each row group the mean over its targets of the sum
            over the sources of each column group: the attention mass that a target of the one gives the other in all.
        layers: the layers, counted from 0.
        heads: the heads, counted from 0.
        rows: the groups of targets.
        columns: the groups of sources.
    """

    weights: Float[torch.Tensor, "layers heads rows columns"] = field(repr=False)
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    rows: tuple[Group, ...] = field(repr=False)
    columns: tuple[Group, ...] = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """A row per layer, head and cell: layer, head, target, source, mass, n_targets, n_sources."""
        import pandas as pd

        index = pd.MultiIndex.from_product(
            [self.layers, self.heads, [row.name for row in self.rows], [column.name for column in self.columns]],
            names=["layer", "head", "target", "source"],
        )
        table = pd.DataFrame({"mass": self.weights.flatten().numpy()}, index).reset_index()
        counts = {row.name: len(row.positions) for row in self.rows}, {c.name: len(c.positions) for c in self.columns}
        return table.assign(n_targets=table["target"].map(counts[0]), n_sources=table["source"].map(counts[1]))


@dataclass(frozen=True)
class AttentionResult:
    """Attention weights of one prompt, on the CPU.

    Attributes:
        weights: (layers, heads, targets, sources): the softmax over all positions, cut to the sources that were asked.
        layers: the layers, counted from 0.
        heads: the heads, counted from 0.
        targets: positions that read.
        sources: positions that are read.
        received: (layers, positions): what each position of the whole prompt gets from later ones (see `sinks`).
        prompt: what was run.
        model: its name.
        patterns: what was done to it.
    """

    weights: Float[torch.Tensor, "layers heads targets sources"] = field(repr=False)
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    targets: tuple[int, ...] = field(repr=False)
    sources: tuple[int, ...] = field(repr=False)
    received: Float[torch.Tensor, "layers positions"] = field(repr=False)
    prompt: Prompt = field(repr=False)
    model: str = ""
    patterns: tuple[str, ...] = ()

    @checked
    def at(self, layer: int) -> Float[torch.Tensor, "heads targets sources"]:
        """The weights of one layer."""
        return self.weights[self._index(layer)]

    def by_span(self, rows: Grouping = "span", columns: Grouping | None = None) -> PooledAttention:
        """The maps pooled by groups of positions, as a PooledAttention: attention mass, not mean weight.

        Args:
            rows: how targets are grouped: "span", "image_row", "tile", "text_token", "token", or names with spans; see
                `nnsight_mmflow.spans.groups.groups_of`.
            columns: how sources are grouped; as the rows unless given.

        Raises:
            SpanError: groups that overlap, hold nothing, or leave out a target or source.
        """
        spans = self.prompt.spans
        down = groups_of(spans, rows, self.targets)
        across = groups_of(spans, rows if columns is None else columns, self.sources)
        mean, total = _members(down, self.targets), _members(across, self.sources)
        mean /= mean.sum(1, keepdim=True)
        return PooledAttention(mean @ self.weights @ total.T, self.layers, self.heads, down, across)

    @checked
    def sinks(self, layer: int, times: float = SINK) -> tuple[int, ...]:
        """The positions that are attention sinks in this layer: most later positions read them, whatever is asked.

        A position is one if the median, over all later positions of the prompt, of the weight they give it (mean over
        heads) is more than `times` an even share: 1 over the number of positions that the later one may read. The
        median, because a token with something to say is read much by a few, a sink by nearly all. The last few
        positions of a prompt (those with fewer than 16 later ones) are never called sinks: neighbours read one another.
        All positions and heads count, whatever `targets`, `sources` and `heads` were asked for.

        Source: what a sink is: Xiao et al., arXiv 2309.17453, section 3.1 (the first tokens), and Kang et al., arXiv
            2503.03321 (image tokens; there found by massive activations, here by the attention itself).
            The factor is ours.
        """
        received = self.received[self._index(layer)]
        return tuple((received > times).nonzero().flatten().tolist())

    def to_frame(self) -> pd.DataFrame:
        """A row per layer, head, target and source: layer, head, target, source (positions), weight."""
        import pandas as pd

        index = pd.MultiIndex.from_product(
            [self.layers, self.heads, self.targets, self.sources], names=["layer", "head", "target", "source"]
        )
        return pd.DataFrame({"weight": self.weights.flatten().numpy()}, index).reset_index()

    def summary(self) -> str:
        """What is held, and the sinks of each layer."""
        shape = " x ".join(map(str, self.weights.shape))
        lines = [f"{self.model}: attention weights, {shape} (layers, heads, targets, sources)"]
        lines += [f"under {pattern}" for pattern in self.patterns]
        for layer in self.layers:
            found = [f"{self.prompt.spans.tokens[at]!r} ({at})" for at in self.sinks(layer)]
            lines.append(f"layer {layer}, sinks: {', '.join(found[:8]) or 'none'}{' ...' if len(found) > 8 else ''}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()

    def _index(self, layer: int) -> int:
        if layer not in self.layers:
            raise MMFlowError(f"layer {layer} was not read: the maps hold {', '.join(map(str, self.layers))}.")
        return self.layers.index(layer)


@experiment
def attention(
    graph: Graph,
    prompt: Prompt,
    *patterns: Pattern,
    layers: int | Iterable[int] | None = None,
    source: str | Span = "all",
    target: str | Span = "all",
    heads: Iterable[int] | None = None,
    most_bytes: int = MOST_BYTES,
    remote: bool | str | None = None,
) -> AttentionResult:
    """The exact attention weights of a prompt, as AttentionResult, under any attention implementation.

    The model stays as it is: weights are computed again from each layer's own queries, keys and mask, four heads at a
    time, and only what was asked for leaves the forward. In every layer weights times values are compared with the
    heads' real results.

    Args:
        graph: the model.
        prompt: one prompt.
        patterns: at work during the run, as in `graph.trace`.
        layers: which; all unless given.
        source: the positions that are read: the columns of the maps.
        target: the positions that read: the rows.
        heads: which; all unless given.
        most_bytes: how large the maps may be.
        remote: run on NDIF (True, or a host); None: where the graph runs.

    Raises:
        MMFlowError: maps larger than `most_bytes`, a batch, a layer or head that does not exist, a pattern that drops
            positions, or a family whose attention does something that this does not know.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> maps = mmf.attention(graph, mmf.nano.prompts(graph, 1)[0], layers=range(2, 4), target="question")
        >>> maps.weights.shape
        torch.Size([2, 4, 6, 76])
    """
    graph = graph.at(remote)
    if not isinstance(prompt, Prompt):
        raise MMFlowError(
            f"attention takes one prompt, but a {type(prompt).__name__} came: [mmf.attention(graph, prompt, ...) for"
            " prompt in batch.prompts]."
        )
    rows = prompt.rows()
    chosen = layer_list(range(graph.n_layers) if layers is None else layers, graph.n_layers)
    kept = _heads(heads, graph.n_heads)
    down, across = (list(resolve(what, rows, role)[0]) for what, role in ((target, "target"), (source, "source")))
    for held, what, role in ((down, target, "target"), (across, source, "source")):
        if not held:
            raise SpanError(f"{role}={getattr(what, 'name', what)!r} holds no position of this prompt.")
    _check_bytes(4 * len(chosen) * len(kept) * len(down) * len(across), most_bytes, (chosen, kept, down, across))
    found = _run(graph, prompt, patterns, chosen, down, across, kept)
    return AttentionResult(
        torch.stack([one["weights"] for one in found]),
        tuple(chosen),
        tuple(kept),
        tuple(down),
        tuple(across),
        torch.stack([one["received"] for one in found]),
        prompt,
        graph.name,
        tuple(map(repr, patterns)),
    )


def _run(
    graph: Graph,
    prompt: Prompt,
    patterns: tuple[Pattern, ...],
    chosen: list[int],
    targets: list[int],
    sources: list[int],
    heads: list[int],
) -> list[dict]:
    """Each layer's map, checked against the heads' real results."""
    layers, reader, causal, positions = graph.layers, QueryKeyReader(graph), graph.causal, len(prompt)
    cap = getattr(graph.text_config, "attn_logit_softcapping", None)
    chunk = HEADS_AT_ONCE
    with torch.no_grad(), graph.trace(prompt, *patterns, use_cache=False, logits_to_keep=1):
        read = read_maps(layers, reader, chosen, targets, sources, heads, positions, cap, causal, chunk)
        found = nnsight.save(read)
    for layer, one in zip(chosen, found, strict=True):
        if differs(one["error"], one["scale"], one["dtype"]):
            raise MMFlowError(
                f"layer {layer}: weights times values differ from what the heads gave by {one['error']:.1e} (their"
                f" largest number is {one['scale']:.1e}): this family's attention does something that is not known"
                " here, or a pattern changes values."
            )
    return found


def _heads(heads: Iterable[int] | None, n_heads: int) -> list[int]:
    asked = list(range(n_heads)) if heads is None else sorted(set(heads))
    wrong = [head for head in asked if not 0 <= head < n_heads]
    if wrong or not asked:
        raise MMFlowError(f"heads {wrong or 'none'} were asked for; there are {n_heads}, counted from 0.")
    return asked


def _check_bytes(size: int, most: int, parts: tuple[list[int], ...]) -> None:
    if size > most:
        layers, heads, targets, sources = map(len, parts)
        raise MMFlowError(
            f"{layers} layers x {heads} heads x {targets} targets x {sources} sources in float32 are"
            f" {size / 1e9:.1f} GB, more than {most / 1e9:.1f} GB. Ask for less: layers=[{parts[0][layers // 2]}],"
            ' target="last" or target="question", source="image", heads=[0]; or raise most_bytes.'
        )


def _members(groups: tuple[Group, ...], positions: tuple[int, ...]) -> torch.Tensor:
    """(groups, positions): 1 where a group holds a position."""
    where = {position: index for index, position in enumerate(positions)}
    held = torch.zeros(len(groups), len(positions))
    for number, group in enumerate(groups):
        held[number, [where[position] for position in group.positions]] = 1
    return held
