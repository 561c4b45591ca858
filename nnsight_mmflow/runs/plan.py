"""What a sweep will do and cost, known before it runs: rows, positions, floating-point operations, bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._later import later
from nnsight_mmflow.inside.rows import Rows, tail_start
from nnsight_mmflow.model.pattern import check_edge
from nnsight_mmflow.spans.windows import window_layers

if TYPE_CHECKING:
    from torch import nn

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.spans.row_spans import Spans

ROW_BUDGET = 640  # positions in one chunk: more share weights better, but every row's mask is as wide as the chunk


@dataclass(frozen=True)
class Sizes:
    """What the cost of a forward depends on.

    Attributes:
        n_layers: decoder layers.
        layer_weights: weights of one decoder layer.
        width: d_model, for the attention scores.
        unembed_weights: weights of the unembedding.
        tower_flops: operations of the vision tower and projector for the prompt's pictures.
        bytes_per_number: of the weights' type.
    """

    n_layers: int
    layer_weights: int
    width: int
    unembed_weights: int
    tower_flops: int
    bytes_per_number: int

    def layer_flops(self, queries: int, keys: int) -> int:
        """Operations of one decoder layer: two per weight and position, four per width, query and key."""
        return 2 * self.layer_weights * queries + 4 * self.width * queries * keys


def sizes_of(graph: Graph, prompt: Prompt) -> Sizes:
    """The sizes of a graph's model, and of the pictures that its tower sees of a prompt."""
    roles = graph.adapter.roles()
    seeing = {id(weight): weight.numel() for role in ("tower", "projector") for weight in roles[role].parameters()}
    return Sizes(
        n_layers=graph.n_layers,
        layer_weights=_weights(roles["layers"][0]),
        width=graph.d_model,
        unembed_weights=roles["unembed"].weight.numel(),
        tower_flops=2 * sum(seeing.values()) * graph.adapter.tower_patches(prompt.inputs),
        bytes_per_number=roles["embed"].weight.element_size(),
    )


def _weights(layer: nn.Module) -> int:
    """How many weights it has; quantised ones are packed, so that a linear module's own sizes count instead."""
    total = sum(weight.numel() for weight in layer.parameters())
    for part in layer.modules():
        if hasattr(part, "in_features") and hasattr(part, "out_features"):
            total += part.in_features * part.out_features - part.weight.numel()
    return total


@dataclass(frozen=True)
class Plan:
    """The sweep of one prompt.

    Attributes:
        edges: the edges as "source->target".
        cells: (edge, window size, centre layer) of each number wanted.
        row_of: for each cell the row that gives it, as (chunk, row); cells with the same layers share a row.
        chunks: the rows, in the order in which they run.
        length: positions of the prompt.
        sizes: of the model.
    """

    edges: tuple[str, ...]
    cells: tuple[tuple[str, int, int], ...]
    row_of: tuple[tuple[int, int], ...]
    chunks: tuple[Rows, ...]
    length: int
    sizes: Sizes

    @property
    def n_rows(self) -> int:
        """How many different rows run; one forward per window would be as many forwards."""
        return sum(len(chunk.windows) for chunk in self.chunks)

    @property
    def forward_flops(self) -> int:
        """Operations of one plain forward."""
        sizes = self.sizes
        decoder = sizes.n_layers * sizes.layer_flops(self.length, self.length)
        return decoder + 2 * sizes.unembed_weights + sizes.tower_flops

    @property
    def row_flops(self) -> int:
        """Operations of the clean forward and all chunks."""
        total = self.forward_flops
        for chunk in self.chunks:
            for layer in range(self.sizes.n_layers):
                positions = chunk.joined(layer) * chunk.tail
                total += self.sizes.layer_flops(positions, chunk.start + positions)
            total += 2 * self.sizes.unembed_weights * len(chunk.windows)
        return total

    @property
    def naive_flops(self) -> int:
        """Operations of one forward per window, and the clean one."""
        return self.forward_flops * (self.n_rows + 1)

    @property
    def bytes(self) -> int:
        """Memory beside the weights: the cache, the clean tail, the widest mask and hidden states."""
        sizes, tail = self.sizes, max((chunk.tail for chunk in self.chunks), default=0)
        numbers = 2 * sizes.n_layers * self.length * sizes.width + sizes.n_layers * tail * sizes.width
        for chunk in self.chunks:
            positions = len(chunk.windows) * chunk.tail
            numbers = max(numbers, numbers + positions * (chunk.start + positions + 8 * sizes.width))
        return numbers * sizes.bytes_per_number

    def parts(self, most: int) -> list[Plan]:
        """The same sweep as plans of at most so many chunks each, for a server's requests."""
        found = []
        for first in range(0, max(len(self.chunks), 1), most):
            numbers = range(first, min(first + most, len(self.chunks)))
            kept = [(cell, place) for cell, place in zip(self.cells, self.row_of, strict=True) if place[0] in numbers]
            cells = tuple(cell for cell, _ in kept)
            rows = tuple((chunk - first, row) for _, (chunk, row) in kept)
            found.append(replace(self, cells=cells, row_of=rows, chunks=self.chunks[first : first + most]))
        return found

    def __repr__(self) -> str:
        return (
            f"Plan({len(self.edges)} edges x windows = {len(self.cells)} numbers from {self.n_rows} rows in"
            f" {len(self.chunks)} chunks; {self.row_flops / 1e9:.3g} GFLOP, against {self.naive_flops / 1e9:.3g} for"
            f" one forward per window ({self.naive_flops / self.row_flops:.0f}x); about {self.bytes / 1e6:.0f} MB"
            " beside the weights)"
        )

    def _repr_html_(self) -> str:

        return later("plan_html")(self)


def make_plan(
    sizes: Sizes,
    spans: Spans,
    edges: tuple[str, ...],
    windows: tuple[int, ...],
    row_budget: int = ROW_BUDGET,
    blocks: tuple[tuple[int, int], ...] = (),
    centres: Sequence[int] | None = None,
) -> Plan:
    """The plan of one prompt.

    Args:
        sizes: of the model.
        spans: of the prompt.
        edges: "source->target" each, source and target being span expressions.
        windows: window sizes.
        row_budget: how many positions a chunk may hold.
        blocks: (first, end) of stretches whose positions read one another backwards and forwards. A tail that starts
            inside one takes all of it, since what lies before a tail must not read it.
        centres: of the windows; every layer unless given.

    Raises:
        NoEffectError: an edge without any open key.
    """
    groups: dict[int, dict[tuple[int, int, str], None]] = {}  # ordered sets
    wanted: dict[tuple[str, int, int], tuple[int, int]] = {}
    positions = {edge: edge_positions(spans, edge, blocks) for edge in edges}
    for edge in edges:
        start = tail_start(positions[edge][1][0], blocks)
        for size in windows:
            for centre in range(sizes.n_layers) if centres is None else centres:
                layers = window_layers(centre, size, sizes.n_layers)
                wanted[edge, size, centre] = (layers.start, layers.stop)
                groups.setdefault(start, {})[layers.start, layers.stop, edge] = None
    length = len(spans["all"])
    chunks: list[Rows] = []
    where: dict[tuple[int, int, str], tuple[int, int]] = {}
    for start, held in sorted(groups.items()):
        tail = length - start
        per_chunk = max(1, row_budget // tail)
        rows = sorted(held)
        for first in range(0, len(rows), per_chunk):
            part = rows[first : first + per_chunk]
            names = {edge: number for number, edge in enumerate(dict.fromkeys(edge for *_, edge in part))}
            for number, row in enumerate(part):
                where[row] = (len(chunks), number)
            chunks.append(
                Rows(
                    start,
                    tail,
                    tuple((a, b) for a, b, _ in part),
                    tuple(names[edge] for *_, edge in part),
                    tuple(tuple(target - start for target in positions[name][1]) for name in names),
                    tuple(positions[name][0] for name in names),
                )
            )
    cells = tuple(wanted)
    row_of = tuple(where[wanted[cell][0], wanted[cell][1], cell[0]] for cell in cells)
    return Plan(edges, cells, row_of, tuple(chunks), length, sizes)


def edge_positions(
    spans: Spans, edge: str, blocks: tuple[tuple[int, int], ...] = ()
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The source and target positions of an edge "source->target"; `blocks` as in `make_plan`.

    Raises:
        MMFlowError: it is not of that form, or leaves a target without any key.
        NoEffectError: no source is open to any target.
    """
    source_name, arrow, target_name = edge.partition("->")
    if not arrow:
        raise MMFlowError(f'an edge is "source->target", such as "image->question", not {edge!r}.')
    source, target = spans[source_name.strip()], spans[target_name.strip()]
    check_edge(repr(edge), source, target, blocks)
    return source.positions, target.positions
