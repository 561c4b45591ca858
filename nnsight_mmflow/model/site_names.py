"""TransformerLens' names for the places where activations are read and written, accepted wherever a site is named."""

from __future__ import annotations

import re

from nnsight_mmflow._errors import MMFlowError

SITE_OF = {
    "hook_out": "resid",
    "hook_resid_post": "resid",
    "resid_post": "resid",
    "hook_in": "before",
    "hook_resid_pre": "before",
    "resid_pre": "before",
    "hook_attn_out": "attn",
    "attn.hook_out": "attn",
    "attn_out": "attn",
    "attn.hook_z": "attn",
    "hook_mlp_out": "mlp",
    "mlp.hook_out": "mlp",
    "mlp_out": "mlp",
}
BLOCK = re.compile(r"blocks\.(?P<layer>\d+)\.(?P<rest>.+)$")
WEIGHTS = ("hook_pattern", "hook_attn_scores", "pattern", "attn_scores")


def site_named(name: str, layers: list[int] | None, known: tuple[str, ...]) -> tuple[str, list[int] | None]:
    """(site, layers) of a name: one of ours, or TransformerLens', with a layer in it or without.

    Args:
        name: such as "resid", "hook_resid_post" or "blocks.3.hook_out".
        layers: as given beside it.
        known: our names.

    Raises:
        MMFlowError: there is no such name, or it names a layer and layers are given too.
    """
    if name in known:
        return name, layers
    match = BLOCK.match(name)
    if match and layers is not None:
        raise MMFlowError(f"{name!r} names its layer: leave layers out, or write {match['rest']!r}.")
    rest = match["rest"] if match else name
    layers = [int(match["layer"])] if match else layers
    if rest.endswith(WEIGHTS):
        raise MMFlowError(
            f"{name!r} holds attention weights, which are closed and not written: Knockout (renormalised) or"
            " ZeroWeights."
        )
    if rest in ("hook_embed", "embed"):
        raise MMFlowError(
            f"{name!r} is the table's embedding, without the image: what enters the first layer is site='embed'"
            " (blocks.0.hook_in)."
        )
    site = SITE_OF.get(rest)
    if site is None:
        raise MMFlowError(
            f"site must be one of {', '.join(known)}, or a TransformerLens name such as hook_resid_post, hook_attn_out,"
            f" hook_mlp_out or blocks.3.hook_out, not {name!r}."
        )
    if site != "before":
        return site, layers
    if layers == [0]:
        return "embed", None
    if layers is not None and 0 in layers:
        raise MMFlowError(f"{name!r} of layer 0 is site='embed': write it apart from the other layers.")
    return "resid", None if layers is None else [layer - 1 for layer in layers]
