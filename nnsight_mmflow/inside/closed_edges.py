"""Edges of attention closed in the masks of layers, inside traces. Ships to servers by value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.apart import own_mask, read_attention, write_attention
from nnsight_mmflow.inside.forwards import Held
from nnsight_mmflow.inside.masks import close, kept_keys, key_room, layer_mask
from nnsight_mmflow.inside.names import cache_in

if TYPE_CHECKING:
    import torch
    from nnsight import Envoy

    from nnsight_mmflow.inside.apart import Layout

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


def close_edges(
    layers: Envoy,
    chosen: list[int],
    edges: list[tuple[list[int], list[int]]],
    heads: list[int] | None,
    n_heads: int,
    causal: bool = True,
) -> int:
    """Inside a trace: closes the edges in the chosen layers, and returns how many open ones it closed.

    Args:
        layers: the decoder layers.
        chosen: which, in ascending order.
        edges: for each row of the batch its target queries and source keys.
        heads: the heads, None for all.
        n_heads: how many there are.
        causal: what a layer does that is handed no mask.
    """
    total = 0
    seen: torch.Tensor | None = None
    built: torch.Tensor | None = None
    for layer in chosen:
        arguments, named = layers[layer].inputs
        hidden, mask = arguments[0], named.get("attention_mask")
        cache = cache_in(named)
        past, dropped = kept_keys(cache, layer)
        room = key_room(cache, layer)
        width = past + hidden.shape[1] if room is None else room
        # Layers mostly share one mask: then the closed copy is shared too.
        if built is None or mask is not seen or built.device != hidden.device or built.shape[-1] != width:
            there = [(targets, [key - dropped for key in sources if key >= dropped]) for targets, sources in edges]
            built, changed, starved = close(layer_mask(mask, hidden, past, causal, room), there, heads, n_heads)
            seen = mask
            check_starved(starved, layer)
        total += changed
        layers[layer].inputs = (arguments, {**named, "attention_mask": built})
    return total


def close_edges_apart(
    attentions: dict[int, Envoy],
    edges: list[tuple[list[int], list[int]]],
    heads: list[int] | None,
    n_heads: int,
    layout: Layout,
    step: int,
) -> int:
    """Inside a generation whose blocks run apart from the model: as `close_edges`, attending by itself.

    Args:
        attentions: of the chosen layers, in ascending order.
        edges: for each row the target queries and the source keys.
        heads: the heads in which they close; None for all.
        n_heads: how many heads the layer has.
        layout: what positions may read.
        step: how many tokens came since the prompt, this one included.
    """
    total = 0
    for layer, attention in attentions.items():
        query, key, value = read_attention(attention, layout)
        end, held = layout.length + step, key.shape[-2]
        dropped = end - held  # by a sliding window
        mask = own_mask(layout, layer, range(end - query.shape[2], end), range(dropped, end), query)
        there = [(targets, [key - dropped for key in sources if key >= dropped]) for targets, sources in edges]
        built, changed, starved = close(mask, there, heads, n_heads)
        check_starved(starved, layer)
        total += changed
        write_attention(attention, query, key, value, built, layout)
    return total


def check_starved(starved: int, layer: int) -> None:
    """Refuses a mask in which a position has no key left."""
    if starved:
        raise MMFlowError(
            f"the patterns together leave {starved} position(s) of layer {layer} nothing to read, and softmax needs a"
            " key. Leave the first position out of one source."
        )
