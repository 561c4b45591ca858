"""A loaded model: its modules by role, its sizes, its adapter and processor, and where it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow.inside.names import check_names, unknown_operations
from nnsight_mmflow.inside.roles import Roles
from nnsight_mmflow.remote.place import Placed, Traffic

if TYPE_CHECKING:
    import torch
    from nnsight import Envoy, TransformersModel

    from nnsight_mmflow.adapters.base import Adapter


class Loaded(Roles, Placed):
    """One model: its modules by role, its configuration and its spans. `Graph` adds what runs it."""

    def __init__(self, model: TransformersModel, adapter: Adapter, name: str = "") -> None:
        self.model = model
        self.name = name or adapter.config._name_or_path or type(adapter.model).__name__
        self.adapter = adapter
        self.processor = adapter.processor
        self.family = adapter.family
        self.image_token_id = adapter.image_token_id
        first = adapter.roles()["layers"][0]
        check_names(adapter.model, first)
        self.unknown_operations = unknown_operations(getattr(first, adapter.text.attention), adapter.text.rotated)
        paths = {id(module): name for name, module in adapter.model.named_modules()}
        places = {role: model.get(paths[id(module)]) for role, module in adapter.roles().items()}
        self.layers: Envoy = places["layers"]
        self.embed: Envoy = places["embed"]
        self.tower: Envoy = places["tower"]
        self.projector: Envoy = places["projector"]
        self.norm: Envoy = places["norm"]
        self.unembed: Envoy = places["unembed"]
        self.decoder: Envoy = model.get(paths[id(adapter.model.get_decoder())])
        self.text_config = adapter.text_config
        self._text = adapter.text
        self.traffic = Traffic()
        self.enters_after, self.causal = adapter.enters_after, adapter.causal
        self.tower_layer = adapter.tower_layer()
        self.n_layers = int(adapter.text_config.num_hidden_layers)
        self.n_heads = int(adapter.text_config.num_attention_heads)
        self.d_model = int(adapter.text_config.hidden_size)
        out = getattr(getattr(first, self._text.attention), self._text.attention_out)
        # Quantised weights are packed, so their shape says nothing; older GPT-2 layers have no in_features.
        self.head_width = int(getattr(out, "in_features", None) or out.weight.shape[1]) // self.n_heads

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}, family={self.family!r}, n_layers={self.n_layers},"
            f" n_heads={self.n_heads},"
            f" d_model={self.d_model}, attention={self.backend!r})"
        )

    @property
    def vocabulary(self) -> int:
        """How many ids the unembedding gives a logit; a few more than the tokenizer has words, in some models."""
        return int(self.unembed._module.weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the token embeddings lie."""
        return self.adapter.model.get_input_embeddings().weight.device

    def __getstate__(self) -> dict[str, object]:
        """What travels to a server: the roles and the sizes, not the adapter, which holds the local weights."""
        return {name: value for name, value in vars(self).items() if name not in ("adapter", "processor", "traffic")}
