"""The port by layers' inputs, read and assigned, for blocks that run in the model's process. Ships by value."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnsight_mmflow.inside.forwards import Held, each_forward, factor_of
from nnsight_mmflow.inside.heads import QueryKeyReader
from nnsight_mmflow.inside.masks import kept_keys, key_room, layer_mask
from nnsight_mmflow.inside.names import cache_in
from nnsight_mmflow.inside.passage import Layer, Passage

if TYPE_CHECKING:
    import torch

    from nnsight_mmflow.inside.roles import Roles


@dataclass(frozen=True, eq=False)
class Same:
    """A thing that equals nothing but itself, and is kept as long as it is asked for."""

    thing: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.thing is self.thing

    def __hash__(self) -> int:
        return id(self.thing)


@dataclass
class InputsLayer(Layer):
    """A layer by what it is handed.

    Attributes:
        graph: the model.
        number: the layer's.
        kind: the very mask and table that it is handed, and where it lies.
        arguments: what it is handed by place.
        named: what it is handed by name.
    """

    graph: Roles
    number: int
    kind: Hashable
    arguments: tuple
    named: dict
    at_hand: bool = True

    def hidden(self, changing: bool = False) -> torch.Tensor:
        """What it is handed first."""
        return self.arguments[0]  # type: ignore[no-any-return]

    def enter(self, hidden: torch.Tensor) -> None:
        """What enters instead."""
        self._write((hidden, *self.arguments[1:]), self.named)

    def table(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(cosine, sine)."""
        return self.named["position_embeddings"]  # type: ignore[no-any-return]

    def turn(self, table: tuple[torch.Tensor, torch.Tensor], seat: torch.Tensor | None = None) -> None:
        """Another table, and the position ids that belong to it."""
        changed, places = {**self.named, "position_embeddings": table}, self.named.get("position_ids")
        if seat is not None and places is not None:
            seat = seat if places.ndim == 2 else seat.expand(places.shape[0], -1, -1)
            changed["position_ids"] = places.expand(*seat.shape[:-1], -1).gather(-1, seat)
        self._write(self.arguments, changed)

    def left_out(self) -> bool:
        """Whether its cache is empty."""
        cache = cache_in(self.named)
        return cache is not None and not kept_keys(cache, self.number)[0]

    def like(self) -> torch.Tensor:
        """What enters it."""
        return self.hidden()

    def masked(self) -> bool:
        """Whether one is there."""
        return self.named.get("attention_mask") is not None

    def handed(self, like: torch.Tensor) -> torch.Tensor | None:
        """The mask that it is handed."""
        return self.named.get("attention_mask")

    def square(self, like: torch.Tensor) -> torch.Tensor:
        """What it makes of the mask that it is handed, without a cache."""
        return layer_mask(self.handed(like), like, 0, self.graph.causal)

    def width(self) -> int:
        """Keys in its cache and its own; or the room of a static cache."""
        cache = cache_in(self.named)
        room = key_room(cache, self.number)
        return kept_keys(cache, self.number)[0] + self.hidden().shape[1] if room is None else room

    def dropped(self) -> int:
        """As its cache says."""
        return kept_keys(cache_in(self.named), self.number)[1]

    def mask(self) -> torch.Tensor:
        """What it would make of the mask that it is handed."""
        past, _ = kept_keys(cache_in(self.named), self.number)
        return layer_mask(self.handed(self.hidden()), self.hidden(), past, self.graph.causal, self.width())

    def cover(self, mask: torch.Tensor | None) -> None:
        """Another mask."""
        self._write(self.arguments, {**self.named, "attention_mask": mask})

    def looks(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """From its own projections."""
        reader = QueryKeyReader(self.graph)
        return (*reader.read(self.number, "previous", self.hidden(), self.table()), reader.value(self.number))

    def _write(self, arguments: tuple, named: dict) -> None:
        self.arguments, self.named = arguments, named
        self.graph.layers[self.number].inputs = (arguments, named)


@dataclass(frozen=True)
class LayerInputs(Passage):
    """Forwards whose layers' inputs are read and assigned."""

    graph: Roles
    prompts: int
    length: int
    apart: bool = False
    unmasked: bool = False

    def each(self, act: Callable[[Held], bool], before: Callable[[], None] | None = None) -> None:
        """Each forward says itself what it holds."""
        each_forward(self.graph.decoder, self.prompts, self.length, act, before)

    def layer(self, number: int, held: Held | None = None) -> InputsLayer:
        """A layer of the forward that runs now."""
        arguments, named = self.graph.layers[number].inputs
        kind = Same(named.get("attention_mask")), Same(named.get("position_embeddings")), arguments[0].device
        return InputsLayer(self.graph, number, kind, arguments, named)

    def held_at(self, number: int) -> Held:
        """What the forward that runs now holds, as one of its layers tells."""
        layer = self.layer(number)
        rows, count = layer.hidden().shape[:2]
        first = sum(kept_keys(cache_in(layer.named), number))
        return Held(first, count, self.length, factor_of(rows, self.prompts))
