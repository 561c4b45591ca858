"""Which graph a TransformerLens bridge belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from nnsight_mmflow._errors import ModelError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from nnsight_mmflow.model.graph import Graph


_GRAPHS: WeakKeyDictionary[TransformerBridge, Graph] = WeakKeyDictionary()


def graph_of(bridge: TransformerBridge) -> Graph:
    """The graph that a bridge was made from, or that was made for it.

    Raises:
        ModelError: there is none.
    """
    graph = _GRAPHS.get(bridge)
    if graph is None:
        raise ModelError(
            "this bridge has no graph, so its image tokens are not known: make it by graph.to_transformer_lens(), or"
            " call mmf.adapt(bridge) first."
        )
    return graph
