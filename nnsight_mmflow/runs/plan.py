"""What a sweep will do and cost, known before it runs: rows, positions, floating-point operations, bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nnsight_mmflow.inside.plan import ROW_BUDGET, Plan, Sizes
from nnsight_mmflow.inside.row_masks import RowEdges, Rows
from nnsight_mmflow.inside.rows import tail_start
from nnsight_mmflow.model.edits import MaskEdges
from nnsight_mmflow.spans.edges import edge_positions
from nnsight_mmflow.spans.windows import window_layers

if TYPE_CHECKING:
    from torch import nn

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.spans.row_spans import Spans

Row = tuple[MaskEdges, ...]


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
    positions = {edge: edge_positions(spans, edge, blocks) for edge in edges}
    cells = {}
    for edge in edges:
        source, target = positions[edge]
        for size in windows:
            for centre in range(sizes.n_layers) if centres is None else centres:
                layers = tuple(window_layers(centre, size, sizes.n_layers))
                cells[edge, size, centre] = (MaskEdges(layers, ((target, source),)),)
    return plan_rows(sizes, len(spans["all"]), cells, row_budget, blocks)


def plan_rows(
    sizes: Sizes,
    length: int,
    cells: Mapping[tuple[str, int, int], Sequence[MaskEdges]],
    row_budget: int = ROW_BUDGET,
    blocks: tuple[tuple[int, int], ...] = (),
    n_heads: int = 1,
) -> Plan:
    """The plan of one prompt in whose rows any edges are changed. Cells of one name that change the same share a row.

    Args:
        sizes: of the model.
        length: positions of the prompt, which is not padded.
        cells: by what it is called, what each number wanted is measured under: of one prompt, at least one edge, as
            `pattern.mask_edges(graph, prompt.rows())` of each of its patterns says.
        row_budget: how many positions a chunk may hold.
        blocks: as in `make_plan`.
        n_heads: of the model, where edges of some heads are among them.
    """
    groups: dict[int, dict[tuple[str, Row], None]] = {}  # ordered sets
    wanted: dict[tuple[str, int, int], tuple[int, str, Row]] = {}
    for cell, changes in cells.items():
        start = tail_start(min(target for change in changes for target in change.edges[0][0]), blocks)
        wanted[cell] = start, cell[0], tuple(changes)
        groups.setdefault(start, {})[cell[0], tuple(changes)] = None
    chunks: list[Rows] = []
    where: dict[tuple[int, str, Row], tuple[int, int]] = {}
    for start, held in sorted(groups.items()):
        rows = sorted(held, key=lambda named: (*_window(named[1]), named[0]))
        per_chunk = max(1, row_budget // (length - start))
        for first in range(0, len(rows), per_chunk):
            part = rows[first : first + per_chunk]
            where |= {(start, *named): (len(chunks), number) for number, named in enumerate(part)}
            chunks.append(_chunk(start, length - start, [row for _, row in part], n_heads))
    row_of = tuple(where[wanted[cell]] for cell in cells)
    return Plan(tuple(dict.fromkeys(name for name, *_ in cells)), tuple(cells), row_of, tuple(chunks), length, sizes)


def _window(row: Row) -> tuple[int, int]:
    """(first layer in which a row is changed, one behind the last)."""
    return min(change.layers[0] for change in row), 1 + max(change.layers[-1] for change in row)


def _chunk(start: int, tail: int, rows: list[Row], n_heads: int) -> Rows:
    edges: dict[RowEdges, int] = {}
    changes = []
    for row in rows:
        parts = []
        for change in row:
            targets, sources = change.edges[0]
            edge = RowEdges(tuple(target - start for target in targets), sources, change.amount, change.heads)
            parts.append((edges.setdefault(edge, len(edges)), change.layers))
        changes.append(tuple(parts))
    by_head = any(edge.heads is not None for edge in edges)
    windows = tuple(_window(row) for row in rows)
    return Rows(start, tail, windows, tuple(edges), tuple(changes), n_heads if by_head else 1)
