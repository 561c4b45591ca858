"""Numbers added to the scores of attention edges, in the masks of layers, inside traces. Ships to servers by value."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.masks import add_to_edges

if TYPE_CHECKING:
    import torch

    from nnsight_mmflow.inside.forwards import Held
    from nnsight_mmflow.inside.passage import Passage

PromptEdges = tuple[list[int], list[int], bool]  # targets, sources, and whether new tokens are targets too


def edges_in(held: Held, edges: Sequence[PromptEdges], when: str) -> list[tuple[list[int], list[int]]] | None:
    """For each row of a forward its target queries and source keys; None if it holds no target.

    Args:
        held: what the forward holds.
        edges: for each prompt its targets, its sources, and whether new tokens are targets too.
        when: "prefill" (targets of the prompt), "decode" (new tokens) or "all".
    """
    there = []
    for targets, sources, newest in edges:
        queries = held.local(targets) if when != "decode" else []
        if when != "prefill" and newest:
            queries = queries + held.generated()
        there.append((queries, held.keys(sources)))
    return held.by_row(there) if any(queries and keys for queries, keys in there) else None


def change_edges(
    passage: Passage,
    held: Held,
    chosen: list[int],
    edges: list[tuple[list[int], list[int]]],
    amount: float,
    heads: list[int] | None,
    n_heads: int,
) -> int:
    """Inside a trace: adds a number to the scores of the edges in the chosen layers; returns how many open ones it met.

    Args:
        passage: of the forward.
        held: what it holds.
        chosen: the layers, in ascending order.
        edges: for each row of the batch its target queries and source keys.
        amount: what is added; -inf closes the edges.
        heads: the heads, None for all.
        n_heads: how many there are.
    """
    total = 0
    made: dict[Hashable, tuple[torch.Tensor, int]] = {}  # layers mostly share one mask: then the changed one too
    for number in chosen:
        layer = passage.layer(number, held)
        dropped = layer.dropped()
        known = (layer.kind, layer.width(), dropped)
        if known not in made:
            there = [(targets, [key - dropped for key in sources if key >= dropped]) for targets, sources in edges]
            mask, changed, starved = add_to_edges(layer.mask(), there, heads, n_heads, amount)
            check_starved(starved, number)
            made[known] = mask, changed
        total += made[known][1]
        layer.cover(made[known][0])
    return total


def check_starved(starved: int, layer: int) -> None:
    """Refuses a mask in which a position has no key left."""
    if starved:
        raise MMFlowError(
            f"the patterns together leave {starved} position(s) of layer {layer} nothing to read, and softmax needs a"
            " key. Leave the first position out of one source."
        )
