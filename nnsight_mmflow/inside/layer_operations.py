"""The port by attentions' operations, for blocks that run in a process apart from the model's (see `apart.py`).

Tokens leave where a layer's output comes out (before layer 0: where the language model takes the merged embedding), the
rotary table is cut where queries and keys are turned, and where a mask is due the pattern attends by itself. Ships by
value.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow.inside.apart import own_mask, read_attention, write_attention
from nnsight_mmflow.inside.forwards import Held
from nnsight_mmflow.inside.names import ROTARY, operation
from nnsight_mmflow.inside.passage import Layer, Passage

if TYPE_CHECKING:
    from nnsight import Envoy

    from nnsight_mmflow.inside.apart import Layout
    from nnsight_mmflow.inside.roles import Roles


@dataclass
class OperationsLayer(Layer):
    """A layer by the operations of its attention.

    Attributes:
        graph: the model.
        number: the layer's.
        layout: what positions may read.
        held: what the forward holds.
        read: query, key and value, once they were read.
        given: what the language model and the rotation were given, once they were read.
    """

    graph: Roles
    number: int
    layout: Layout
    held: Held
    read: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    given: dict[str, tuple] = field(default_factory=dict)
    at_hand: bool = False

    def __post_init__(self) -> None:
        """Families turn layers with a window by one table and those without by another."""
        self.kind: Hashable = self.layout.windows[self.number]

    def hidden(self, changing: bool = False) -> torch.Tensor:
        """What the layer before gave; for layer 0 what the language model takes, where that is changed."""
        if self.number:
            return self.graph.layers[self.number - 1].output
        if not changing:
            return self.graph.layers[0].input_layernorm.input
        self.given["decoder"] = self.graph.decoder.inputs
        return self.given["decoder"][1]["inputs_embeds"]  # type: ignore[no-any-return]

    def enter(self, hidden: torch.Tensor) -> None:
        """What the layer before gives instead; positions are counted as if nothing had left."""
        if self.number:
            self.graph.layers[self.number - 1].output = hidden
            return
        arguments, named = self.given["decoder"]
        named = {**named, "inputs_embeds": hidden}
        if named.get("position_ids") is None:
            named["position_ids"] = torch.arange(self.layout.length, device=hidden.device)[None]
        self.graph.decoder.inputs = (arguments, named)

    def table(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What the rotation is given."""
        self.given["rotation"] = operation(self._attention(), ROTARY).inputs
        arguments, _ = self.given["rotation"]
        return arguments[2], arguments[3]

    def turn(self, table: tuple[torch.Tensor, torch.Tensor], seat: torch.Tensor | None = None) -> None:
        """What the rotation is given instead; the table was asked for."""
        arguments, named = self.given["rotation"]
        operation(self._attention(), ROTARY).inputs = ((*arguments[:2], *table, *arguments[4:]), named)

    def left_out(self) -> bool:
        """Not known."""
        return False

    def like(self) -> torch.Tensor:
        """Its queries."""
        return self._read()[0]

    def masked(self) -> bool:
        """As the layout says."""
        return not self.layout.unmasked

    def handed(self, like: torch.Tensor) -> torch.Tensor | None:
        """As the layout says; None where the family's layers are handed none."""
        return None if self.layout.unmasked else self.square(like)

    def square(self, like: torch.Tensor) -> torch.Tensor:
        """As the layout says."""
        held = range(self.held.first, self.held.end)
        return own_mask(self.layout, self.number, held, held, like)

    def width(self) -> int:
        """As many as its cache gives."""
        return self._read()[1].shape[-2]

    def dropped(self) -> int:
        """Those that its cache does not give."""
        return self.held.end - self.width()

    def mask(self) -> torch.Tensor:
        """As the layout says."""
        held, keys = range(self.held.first, self.held.end), range(self.dropped(), self.held.end)
        return own_mask(self.layout, self.number, held, keys, self._read()[0])

    def cover(self, mask: torch.Tensor | None) -> None:
        """Attends by itself under the mask."""
        if mask is not None:
            write_attention(self._attention(), *self._read(), mask, self.layout)

    def looks(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As they were read."""
        query, key, value = self._read()
        groups = query.shape[1] // key.shape[1]
        return query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)

    def _attention(self) -> Envoy:
        return self.graph.attention(self.number)

    def _read(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.read is None:
            self.read = read_attention(self._attention(), self.layout)
        return self.read


@dataclass(frozen=True)
class LayerOperations(Passage):
    """Forwards of a generation whose settings were checked: the first holds the whole prompt, each later one a token.

    What a forward holds cannot be read there: with it goes the cache.
    """

    graph: Roles
    prompts: int
    length: int
    unmasked: bool
    layout: Layout
    apart: bool = True

    def each(self, act: Callable[[Held], bool], before: Callable[[], None] | None = None) -> None:
        """Counts forwards; `act` must wait for something in each after the first, or say that it is done."""
        from nnsight.intervention.interleaver import OutOfOrderError
        from nnsight.intervention.iterator import Iterations

        for step in Iterations()[0:]:
            first, count = (self.length - 1 + step, 1) if step else (0, self.length)
            if not step and before is not None:
                before()
            try:
                if act(Held(first, count, self.length, self.layout.factor, True)):
                    return
            except OutOfOrderError:
                if not step:
                    raise
                return  # the generation has ended

    def layer(self, number: int, held: Held) -> OperationsLayer:
        """A layer of the forward that runs now."""
        return OperationsLayer(self.graph, number, self.layout, held)
