"""The plan of a sweep in plain values: rows, chunks, what each costs. Ships to servers by value."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nnsight_mmflow._later import later
from nnsight_mmflow.inside.row_masks import Rows

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
        assumed: whether that type is the configuration's, since the weights are on a server.
    """

    n_layers: int
    layer_weights: int
    width: int
    unembed_weights: int
    tower_flops: int
    bytes_per_number: int
    assumed: bool = False

    def layer_flops(self, queries: int, keys: int) -> int:
        """Operations of one decoder layer: two per weight and position, four per width, query and key."""
        return 2 * self.layer_weights * queries + 4 * self.width * queries * keys


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
            numbers = max(numbers, numbers + positions * (chunk.n_heads * (chunk.start + positions) + 8 * sizes.width))
        return numbers * sizes.bytes_per_number

    def parts(self, most: int) -> list[Plan]:
        """The same sweep as plans of at most so many chunks each, for a server's requests."""
        parts = []
        for first in range(0, max(len(self.chunks), 1), most):
            numbers = range(first, min(first + most, len(self.chunks)))
            kept = [(cell, place) for cell, place in zip(self.cells, self.row_of, strict=True) if place[0] in numbers]
            cells = tuple(cell for cell, _ in kept)
            rows = tuple((chunk - first, row) for _, (chunk, row) in kept)
            parts.append(replace(self, cells=cells, row_of=rows, chunks=self.chunks[first : first + most]))
        return parts

    def __repr__(self) -> str:
        return (
            f"Plan({len(self.edges)} edges x windows = {len(self.cells)} numbers from {self.n_rows} rows in"
            f" {len(self.chunks)} chunks; {self.row_flops / 1e9:.3g} GFLOP, against {self.naive_flops / 1e9:.3g} for"
            f" one forward per window ({self.naive_flops / self.row_flops:.0f}x); about {self.memory} beside"
            " the weights)"
        )

    @property
    def memory(self) -> str:
        """`bytes` in words, with what is assumed."""
        each = f" (at {self.sizes.bytes_per_number} bytes a number, which the server decides)" * self.sizes.assumed
        return f"{self.bytes / 1e6:.0f} MB{each}"

    def _repr_html_(self) -> str:

        return later("plan_html")(self)
