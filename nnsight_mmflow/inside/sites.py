"""The places where activations can be read and written, each as the module that holds it. Ships to servers by value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from nnsight import Envoy

    from nnsight_mmflow.inside.roles import Roles


@dataclass(frozen=True)
class Site:
    """Where to find a tensor (batch, positions, width).

    Attributes:
        module: whose input or output it is.
        kind: "input" (the first argument), "output", "tuple" (the first element of the output), or "embeds" (what is
            handed in as inputs_embeds).
    """

    module: Envoy
    kind: str


def read_site(site: Site) -> torch.Tensor:
    """Inside a trace: what stands there."""
    if site.kind == "input":
        return site.module.inputs[0][0]
    if site.kind == "embeds":
        return site.module.inputs[1]["inputs_embeds"]
    return site.module.output[0] if site.kind == "tuple" else site.module.output


def write_site(site: Site, value: torch.Tensor) -> None:
    """Inside a trace: puts a tensor there."""
    if site.kind == "input":
        arguments, named = site.module.inputs
        site.module.inputs = ((value, *arguments[1:]), named)
    elif site.kind == "embeds":
        arguments, named = site.module.inputs
        site.module.inputs = (arguments, {**named, "inputs_embeds": value})
    elif site.kind == "tuple":
        site.module.output = (value, *site.module.output[1:])
    else:
        site.module.output = value


def resid(graph: Roles, layer: int) -> Site:
    """The residual stream after a layer."""
    return Site(graph.layers[layer], "output")


def attn(graph: Roles, layer: int) -> Site:
    """What a layer's attention adds to the residual stream."""
    module, is_tuple = graph.joining("attn", layer)
    return Site(module, "tuple" if is_tuple else "output")


def heads(graph: Roles, layer: int) -> Site:
    """What a layer's heads give to the output projection, head after head."""
    return Site(graph.attention_out(layer), "input")


def mlp(graph: Roles, layer: int) -> Site:
    """What a layer's MLP adds to the residual stream."""
    return Site(graph.joining("mlp", layer)[0], "output")


def embed(graph: Roles, layer: int) -> Site:
    """The merged embedding: what really enters the first layer.

    It is written where the language model takes it. In a prompt's forward its cache is empty there, so a block apart
    from the model hands on a copy of nothing, and the language model returns what it fills.
    """
    return Site(graph.decoder, "embeds")


SITES = {"resid": resid, "attn": attn, "heads": heads, "mlp": mlp, "embed": embed}


def read_all(modules: list) -> list[torch.Tensor]:
    """Inside a trace: what stands at each of the modules, in order."""
    return [read_site(module) for module in modules]
