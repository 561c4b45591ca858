"""A second view of a model over the same weights: modules of its own, parameters shared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from nnsight_mmflow.model.graph import Graph


def twin_graph(graph: Graph, weights: Mapping[str, torch.Tensor], name: str) -> Graph:
    """A graph whose modules are copies on the same weights, but for those given, which are its own.

    Args:
        graph: the model; it stays as it is.
        weights: by the weight's path in the model, such as "model.language_model.layers.2.mlp.down_proj.weight".
        name: what the new graph is called.

    Raises:
        ModelError: the weights are not here (a model loaded for remote runs).
    """
    from torch.nn import Parameter

    from nnsight_mmflow.model.load import adapt

    model = graph.adapter.model
    if graph.device.type == "meta":
        raise ModelError("this model was loaded without weights (dispatch=False): load it with them first.")
    twin = copy_module(model)
    for path, weight in weights.items():
        owner, _, last = path.rpartition(".")
        setattr(twin.get_submodule(owner), last, Parameter(weight, requires_grad=False))
    made = adapt(twin, graph.processor)
    made.name = name
    return made


def copy_module(module: nn.Module) -> nn.Module:
    """A copy of all modules on the same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return copy.deepcopy(module, shared)
