"""What of a pattern is used where activations are changed; imported by type checkers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from jaxtyping import Float

    from nnsight_mmflow.inside.places import Place
    from nnsight_mmflow.inside.roles import Roles
    from nnsight_mmflow.spans.span import Span


class Changing(Protocol):
    """A pattern that changes activations at a span: see `mmf.Pattern`."""

    @property
    def at(self) -> str | Span | None:
        """The span."""

    @property
    def site(self) -> str:
        """What is changed."""

    @property
    def layers(self) -> int | Iterable[int] | None:
        """In which layers, as they were given."""

    @property
    def heads(self) -> tuple[int, ...] | range | list[int] | None:
        """In which heads; None for all."""

    @property
    def when(self) -> str:
        """When, in a generation."""

    @property
    def unchanged(self) -> str:
        """What is said where it changes nothing."""

    def layer_list(self, graph: Roles) -> list[int]:
        """Its layers."""

    def change_at(
        self, values: Float[torch.Tensor, "positions width"], place: Place
    ) -> Float[torch.Tensor, "positions width"]:
        """What shall stand at a place."""
