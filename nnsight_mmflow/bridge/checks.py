"""Where an edit on a TransformerLens bridge would silently do nothing, and what to do instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow.bridge.known import graph_of

if TYPE_CHECKING:
    from transformer_lens.hook_points import HookPoint
    from transformer_lens.model_bridge import TransformerBridge

NEVER_FIRE = ("vision_encoder.hook_patch_embed", "vision_encoder.hook_pos_embed", "vision_projector.hook_projected")
AFTER_WEIGHTS = re.compile(r"(?P<attention>.*\.attn)\.hook_(pattern|attn_scores)$")
TOWER_LAYER = re.compile(r"vision_encoder\.encoder_layers\.(?P<layer>\d+)\.(?P<rest>.+)$")
TOWER_END = ("vision_encoder.hook_out", "vision_encoder.hook_vision_out", "vision_encoder.post_layernorm.")
INSTEAD = "Edit vision_projector.hook_in, or blocks.0.hook_in at the image tokens."
Edit = Callable[..., "torch.Tensor | None"]


def computes_attention(attention: torch.nn.Module) -> bool:
    """Whether TransformerLens computes this attention itself, so that editing scores or weights has an effect."""
    from transformer_lens.model_bridge.generalized_components.position_embeddings_attention import (
        PositionEmbeddingsAttentionBridge,
    )

    return isinstance(attention, PositionEmbeddingsAttentionBridge)


def why_inert(bridge: TransformerBridge, name: str) -> tuple[str, bool]:
    """(why returning another tensor at a hook point does nothing, or "" where it does; whether changing in place does).

    Reading is right at all of them.
    """
    match = AFTER_WEIGHTS.match(name)
    if match and not computes_attention(bridge.get_submodule(match["attention"])):
        return (
            f"TransformerLens leaves this attention to Hugging Face, which has used the weights when {name} fires."
            + (
                " " + INSTEAD
                if name.startswith("vision")
                else " Use graph.hooks(bridge, prompt, Knockout(...)), which closes edges in the mask."
            ),
            False,
        )
    graph = graph_of(bridge)
    chosen = getattr(graph.adapter.config, "vision_feature_layer", None)
    if not isinstance(chosen, int):
        return "", True
    depth = int(graph.adapter.config.vision_config.num_hidden_layers)
    last = chosen - 1 if chosen >= 0 else depth + chosen  # the tower's layer whose output the projector takes
    why = f"{graph.family} takes the output of the tower's layer {last}, and not what comes behind it. {INSTEAD}"
    if name.startswith(TOWER_END):
        return why, False
    layer = TOWER_LAYER.match(name)
    if layer and int(layer["layer"]) > last:
        return why, False
    if layer and int(layer["layer"]) == last and layer["rest"] in ("hook_out", "hook_resid_post"):
        return (
            f"Hugging Face has taken the output of the tower's layer {last} before {name} fires: changing the tensor in"
            f" place has an effect, returning another has none. {INSTEAD}",
            True,
        )
    return "", True


def check_names(bridge: TransformerBridge, names: list[str]) -> None:
    """Refuses hook points that do not exist or never fire.

    Raises:
        MMFlowError: there is no hook point of that name; the nearest are told.
        NoEffectError: it is there, but nothing ever passes it.
    """
    from difflib import get_close_matches

    known = bridge.hook_dict
    for name in names:
        if name in NEVER_FIRE:
            raise NoEffectError(f"{name} never fires in TransformerLens 4.3: a hook there does nothing. {INSTEAD}")
        if name not in known:
            near = get_close_matches(name, known, 3)
            raise MMFlowError(
                f"there is no hook point {name!r}" + (f"; near it are {', '.join(near)}." if near else ".")
            )


def guarded(bridge: TransformerBridge, user: Edit, fired: dict[int, int], number: int) -> Edit:
    """The hook, counted, and refused where its edit would be lost; wherever it fires, by name or by a filter.

    Args:
        bridge: the TransformerLens bridge that runs.
        user: the user's hook function.
        fired: how often each hook ran, by its number.
        number: the number of this hook.
    """

    def run(tensor: torch.Tensor, hook: HookPoint) -> torch.Tensor | None:
        fired[number] = fired.get(number, 0) + 1
        why, in_place = why_inert(bridge, str(hook.name))
        before = tensor.detach().clone() if why else None
        new = user(tensor, hook=hook)
        if before is not None:
            lost = new is not None and not torch.equal(new, before) and (new is not tensor or not in_place)
            if lost or (not in_place and not torch.equal(tensor, before)):
                raise NoEffectError(f"the hook at {hook.name} would change nothing. {why}")
        return new

    return run
