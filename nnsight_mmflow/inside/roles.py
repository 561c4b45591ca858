"""A model's modules by role, and its sizes: what a trace needs to know of a model. Ships to servers by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._errors import ModelError
from nnsight_mmflow._kinds import choice, whole

if TYPE_CHECKING:
    from nnsight import Envoy
    from transformers import PretrainedConfig

    from nnsight_mmflow.adapters.text import TextModel


class Roles:
    """The modules of one model by role, whatever its family calls them.

    Attributes:
        layers: the decoder layers; `embed`, `tower`, `projector`, `norm` and `unembed` are the other roles.
        decoder: the language model around the layers; what it is handed as inputs_embeds is the merged embedding.
        n_layers, n_heads, d_model, head_width: sizes of the language model.
        text_config: of the language model.
        enters_after, causal: see the adapter.
    """

    layers: Envoy
    embed: Envoy
    tower: Envoy
    projector: Envoy
    norm: Envoy
    unembed: Envoy
    decoder: Envoy
    n_layers: int
    n_heads: int
    d_model: int
    head_width: int
    text_config: PretrainedConfig
    enters_after: int
    causal: bool
    _text: TextModel

    @property
    def rotated(self) -> str:
        """The operation of an attention's forward that gives the rotated queries; "" for the rotation itself."""
        return self._text.rotated

    @property
    def backend(self) -> str:
        """The attention implementation of the language model now, such as "sdpa" or "eager"."""
        return str(self.text_config._attn_implementation)

    @property
    def logit_cap(self) -> float | None:
        """Where the family squeezes its logits into -cap to cap (Gemma 2), the cap."""
        return getattr(self.text_config, "final_logit_softcapping", None)

    def attention(self, layer: int) -> Envoy:
        """The attention module of a layer."""
        return getattr(self.layers[self._layer(layer)], self._text.attention)

    def mlp(self, layer: int) -> Envoy:
        """The MLP of a layer."""
        return getattr(self.layers[self._layer(layer)], self._text.mlp)

    def attention_out(self, layer: int) -> Envoy:
        """The output projection of a layer's attention; its input holds the heads' results, one after another."""
        return getattr(self.attention(layer), self._text.attention_out)

    def mlp_out(self, layer: int) -> Envoy:
        """The output projection of a layer's MLP, where facts are edited; its input holds the neurons."""
        return getattr(self.mlp(layer), self._text.mlp_out)

    def joining(self, site: str, layer: int) -> tuple[Envoy, bool]:
        """The module whose output joins the residual stream at a site ("attn" or "mlp"), and whether it is a tuple.

        It is the attention module or the MLP itself, or the norm that a family puts behind it (Gemma 2 and 3).
        """
        choice("site", site, ("attn", "mlp"))
        norm = self._text.after_attention if site == "attn" else self._text.after_mlp
        if norm is not None:
            return getattr(self.layers[self._layer(layer)], norm), False
        return (self.attention(layer), True) if site == "attn" else (self.mlp(layer), False)

    def _layer(self, layer: int) -> int:
        if not -self.n_layers <= whole("layer", layer) < self.n_layers:
            raise ModelError(f"layer {layer} was asked for, but there are {self.n_layers}, counted from 0.")
        return layer % self.n_layers
