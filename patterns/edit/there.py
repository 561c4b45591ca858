"""Edits of a model whose weights lie on a server: no weight is changed, each trace adds what the edit adds.

D k for an update D and an input k is two thin products, so the edited view costs nothing to speak of. Ships by value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import nnsight
import torch

from nnsight_mmflow.inside.updates import add_updates, digests_of

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.edit.update import Update


def edited_there(graph: Graph, updates: dict[int, Update], name: str) -> Graph:
    """The graph with the updates added in every forward, generations included.

    Args:
        graph: the model; it stays as it is.
        updates: by layer, of the MLP's output projection.
        name: what the new graph is called.
    """
    outs = [graph.mlp_out(layer) for layer in updates]
    parts = [(update.left, update.right) for update in updates.values()]
    with graph.model.edit() as (_, changed):
        add_updates(outs, parts)
    return graph.but(model=changed, name=name)


def digests_there(graph: Graph, layers: Sequence[int]) -> dict[int, str]:
    """A short fingerprint of each layer's matrix, made where the weights are."""
    outs, model, remotely = {layer: graph.mlp_out(layer) for layer in sorted(layers)}, graph.model, graph.remotely
    ids = torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad(), model.trace(input_ids=ids, use_cache=False, logits_to_keep=1, **remotely):
        digests = nnsight.save(digests_of(outs))
    return digests
