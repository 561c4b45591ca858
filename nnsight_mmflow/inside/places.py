"""Where a pattern changes activations: which layers, positions and columns. Ships to servers by value."""

from __future__ import annotations

from dataclasses import dataclass


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
