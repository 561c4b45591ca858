"""Where a pattern changes activations: which layers, positions and columns. Ships to servers by value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnsight_mmflow.spans.edges import resolve

if TYPE_CHECKING:
    from nnsight_mmflow.inside.changing import Changing
    from nnsight_mmflow.inside.roles import Roles
    from nnsight_mmflow.spans.row_spans import Spans


@dataclass(frozen=True)
class Place:
    """Where values stand that a pattern changes.

    Attributes:
        layer: the layer's number; 0 for the embedding.
        number: which of the pattern's layers that is.
        prompt: whose row it is: the prompt's number in its batch.
        there: which positions of the span stand here, as their numbers in it. A new token counts as the span's last.
        columns: the columns of the chosen heads; None for the whole width.
        new: whether it is a token that was generated.
    """

    layer: int
    number: int
    prompt: int
    there: list[int]
    columns: list[int] | None = None
    new: bool = False


@dataclass(frozen=True)
class Places:
    """All that a pattern changes in a batch.

    Attributes:
        layers: in ascending order.
        positions: for each prompt those of the span.
        columns: as in Place.
        length: of the padded prompt.
    """

    layers: list[int]
    positions: list[list[int]]
    columns: list[int] | None
    length: int


def site_of(pattern: Changing) -> str:
    """The name of its site: single heads' results are one of their own."""
    return "heads" if pattern.heads is not None else pattern.site


def places_of(pattern: Changing, graph: Roles, rows: tuple[Spans, ...]) -> Places:
    """Where a pattern changes values."""
    layers = [0] if pattern.layers is None else pattern.layer_list(graph)
    assert pattern.at is not None  # checked
    positions = [list(span) for span in resolve(pattern.at, rows, "at")]
    columns = None
    if pattern.heads is not None:
        each = graph.head_width
        columns = [head * each + i for head in dict.fromkeys(pattern.heads) for i in range(each)]
    return Places(layers, positions, columns, rows[0]["all"].row[1])
