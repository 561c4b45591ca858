"""Edits of a model whose weights lie on a server: no weight is changed, each trace adds what the edit adds.

D k for an update D and an input k is two thin products, so the edited view costs nothing to speak of. Ships by value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import nnsight
import torch

if TYPE_CHECKING:
    from nnsight import Envoy
    from nnsight_mmflow.patterns.edit.update import Update

    from nnsight_mmflow.model.graph import Graph


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


def add_updates(outs: list[Envoy], parts: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Inside an edit: adds to each projection's output what its update gives for its input, in every step.

    Args:
        outs: the projections, in the order in which they run.
        parts: their updates, as (out, facts) and (facts, in).
    """
    from nnsight.intervention.interleaver import OutOfOrderError
    from nnsight.intervention.iterator import Iterations

    try:
        for _ in Iterations()[0:]:
            for out, (left, right) in zip(outs, parts, strict=True):
                keys, given = out.input, out.output
                added = keys.to(right.dtype) @ right.to(keys.device).T @ left.to(keys.device).T
                out.output = given + added.to(given)
    except OutOfOrderError:  # a trace has one step, and a generation ends
        pass


def digests_there(graph: Graph, layers: Sequence[int]) -> dict[int, str]:
    """A short fingerprint of each layer's matrix, made where the weights are."""
    outs, model, remotely = {layer: graph.mlp_out(layer) for layer in layers}, graph.model, graph.remotely
    ids = torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad(), model.trace(input_ids=ids, use_cache=False, logits_to_keep=1, **remotely):
        found = nnsight.save(digests_of(outs))
    return found


def digests_of(outs: dict[int, Envoy]) -> dict[int, str]:
    """Inside a trace: by layer, the fingerprint of a projection's matrix."""
    return {layer: digest_of(out._module.weight) for layer, out in outs.items()}


def digest_of(weight: torch.Tensor) -> str:
    """A short fingerprint of a matrix."""
    from hashlib import sha256

    return sha256(weight.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
