"""The port between patterns and the forwards of a model: what a pattern may ask of them, whatever process it runs in.

A `Passage` gives the forwards of a generation one by one, and their layers; a `Layer` says what enters it, its mask and
its rotary table, and takes others. Inside the model's process layers' inputs are read and assigned (`LayerInputs`);
where blocks run apart from the model, the operations of attentions (`LayerOperations`). Ships to servers by value.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from nnsight_mmflow.inside.forwards import Held


class Layer:
    """A decoder layer in a forward that runs now. Ask in this order: what enters, the table, the mask, what it reads.

    Attributes:
        kind: layers of a forward that agree in this have the same mask and rotary table.
        at_hand: whether all of it is there as soon as it is entered; else each part costs a wait, and comes in order.
    """

    kind: Hashable
    at_hand: bool

    def hidden(self, changing: bool = False) -> torch.Tensor:
        """(rows, positions, width): what enters it; `changing`: `enter` follows."""
        raise NotImplementedError

    def enter(self, hidden: torch.Tensor) -> None:
        """What enters instead."""
        raise NotImplementedError

    def table(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(cosine, sine) by which queries and keys are turned."""
        raise NotImplementedError

    def turn(self, table: tuple[torch.Tensor, torch.Tensor], seat: torch.Tensor | None = None) -> None:
        """Another table instead; `seat`: which of the positions that it was handed are left."""
        raise NotImplementedError

    def left_out(self) -> bool:
        """Whether another pattern leaves it out, so that it has kept no key."""
        raise NotImplementedError

    def like(self) -> torch.Tensor:
        """Something of its scores' type, where they are computed."""
        raise NotImplementedError

    def masked(self) -> bool:
        """Whether it is handed a mask."""
        raise NotImplementedError

    def handed(self, like: torch.Tensor) -> torch.Tensor | None:
        """Its mask, if it is handed one, on the positions of the whole forward; `like` gives type and place."""
        raise NotImplementedError

    def square(self, like: torch.Tensor) -> torch.Tensor:
        """(rows, 1 or heads, positions, positions): the mask that it uses among the positions of the whole forward.

        Args:
            like: (rows, positions, any) gives their number, and type and place.
        """
        raise NotImplementedError

    def width(self) -> int:
        """How many keys its mask covers: those that are kept and its own, or all that a static cache has room for."""
        raise NotImplementedError

    def dropped(self) -> int:
        """How many keys before these a sliding window has dropped."""
        raise NotImplementedError

    def mask(self) -> torch.Tensor:
        """(rows, 1 or heads, queries, keys): the additive mask that it really uses on the keys that it reads."""
        raise NotImplementedError

    def cover(self, mask: torch.Tensor | None) -> None:
        """Another mask instead, additive; None: it reads as it would without one."""
        raise NotImplementedError

    def looks(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(query, key, value), each (rows, heads, positions, head width), turned, of the layer as it runs."""
        raise NotImplementedError


class Passage:
    """The forwards that a pattern acts in.

    Attributes:
        prompts: how many the batch has.
        length: positions of the padded prompt.
        apart: whether blocks run apart from the model, so that a pattern that changes a mask attends by itself.
        unmasked: whether it is known that no forward hands a mask to layers.
    """

    prompts: int
    length: int
    apart: bool
    unmasked: bool

    def each(self, act: Callable[[Held], bool], before: Callable[[], None] | None = None) -> None:
        """Calls `act` in each forward of a generation, until it says that nothing is left to do.

        Args:
            act: what to do, given what the forward holds; returns whether it is done.
            before: what to do once, before the first forward reaches the language model.
        """
        raise NotImplementedError

    def layer(self, number: int, held: Held) -> Layer:
        """A layer of the forward that runs now, which holds `held`."""
        raise NotImplementedError
