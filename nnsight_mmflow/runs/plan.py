"""What a sweep will do and cost, known before it runs: rows, positions, floating-point operations, bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnsight_mmflow.inside.plan import ROW_BUDGET, Plan, Sizes
from nnsight_mmflow.inside.rows import Rows, tail_start
from nnsight_mmflow.spans.edges import edge_positions
from nnsight_mmflow.spans.windows import window_layers

if TYPE_CHECKING:
    from torch import nn

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.spans.row_spans import Spans


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
        assumed=graph.remote not in (False, "local"),
    )


def _weights(layer: nn.Module) -> int:
    """How many weights it has; quantised ones are packed, so that a linear module's own sizes count instead."""
    total = sum(weight.numel() for weight in layer.parameters())
    for part in layer.modules():
        if hasattr(part, "in_features") and hasattr(part, "out_features"):
            total += part.in_features * part.out_features - part.weight.numel()
    return total


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
        # with an answer behind the prompt, rows are read from the prompt's last position on
        start = tail_start(min(positions[edge][1][0], spans["all"].row[1] - 1), blocks)
        for size in windows:
            for centre in range(sizes.n_layers) if centres is None else centres:
                layers = window_layers(centre, size, sizes.n_layers)
                wanted[edge, size, centre] = (layers.start, layers.stop)
                groups.setdefault(start, {})[layers.start, layers.stop, edge] = None
    length = len(spans.tokens)
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
