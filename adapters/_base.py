"""What every adapter provides, and the parts they share: roles of modules, checks of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nnsight_mmflow.adapters._text import IGNORED, TEXT_MODELS

from nnsight_mmflow._errors import ModelError
from nnsight_mmflow._geometry import ImageGeometry

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin


class Adapter:
    """Reads one family of models. A subclass sets the class attributes and writes `projector` and `images`.

    Attributes:
        family: the name users see.
        handled: fields of the model's top configuration that the adapter reads.
        towers: for each vision model it knows, how many tokens stand before the patches (a class token: 1).
    """

    family: str
    handled: frozenset[str] = frozenset()
    towers: Mapping[str, int] = {}

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        self.model, self.processor = model, processor
        self.config = model.config
        self.text_config = model.config.get_text_config()
        text_type = self.text_config.model_type
        if text_type not in TEXT_MODELS:
            raise ModelError(
                f"the text model is {text_type!r}; {self.family} is handled with {', '.join(TEXT_MODELS)}."
                " A new one is a line in nnsight_mmflow/adapters/_text.py."
            )
        self.text = TEXT_MODELS[text_type]
        self.check_config()

    @property
    def image_token_id(self) -> int:
        """The id that the processor repeats once per image token."""
        return self.config.image_token_id

    def roles(self) -> dict[str, nn.Module]:
        """The modules by role: layers, embed, tower, projector, norm, unembed."""
        decoder = self.model.get_decoder()
        return {
            "layers": decoder.layers,
            "embed": self.model.get_input_embeddings(),
            "norm": getattr(decoder, self.text.norm),
            "unembed": self.model.get_output_embeddings(),
            "tower": self.model.get_encoder(modality="image"),
            "projector": self.projector(),
        }

    def projector(self) -> nn.Module:
        """The module that turns tower features into token embeddings."""
        raise NotImplementedError

    def images(
        self, inputs: Mapping[str, torch.Tensor], sizes: list[tuple[int, int]], squared: bool
    ) -> list[ImageGeometry]:
        """How each image became the tokens that the model will make of it.

        Args:
            inputs: what the processor returned.
            sizes: (width, height) of each original picture.
            squared: whether each was padded to a square before the processor saw it.
        """
        raise NotImplementedError

    def feature_counts(self, inputs: Mapping[str, torch.Tensor]) -> list[int]:
        """How many features the model will make of each image."""
        raise NotImplementedError

    def sliding_window(self) -> int | None:
        """How far back a text layer may read, or None where every earlier position is open."""
        if getattr(self.text_config, "use_sliding_window", True) is False:
            return None
        return getattr(self.text_config, "sliding_window", None)

    def check_config(self) -> None:
        """Refuses any setting that differs from its class's default and is neither handled nor knowingly ignored."""
        vision = self.config.vision_config
        if vision.model_type not in self.towers:
            raise ModelError(
                f"the vision tower is {vision.model_type!r}; {self.family} is handled with {', '.join(self.towers)}."
            )
        unknown = [
            *_unhandled("", self.config, self.handled | {"text_config", "vision_config"}),
            *_unhandled("text_config.", self.text_config, self.text.handled),
            *_unhandled("vision_config.", vision, frozenset()),
        ]
        if unknown:
            raise ModelError(
                f"{type(self.model).__name__} has settings that the {self.family} adapter does not handle:"
                f" {', '.join(unknown)}. The result could be wrong without a sign; add each to the adapter's `handled`"
                " set (and read it) or to IGNORED in nnsight_mmflow/adapters/_text.py once it is known to be harmless."
            )
        dropped = [
            name
            for config in (self.text_config, vision)
            for name in ("attention_dropout", "resid_pdrop", "embd_pdrop")
            if getattr(config, name, 0)
        ]
        if self.model.training and dropped:
            raise ModelError(f"the model is in training mode with {', '.join(dropped)} on: call model.eval() first.")


def _unhandled(where: str, config: PretrainedConfig, handled: frozenset[str]) -> list[str]:
    defaults = type(config)().to_dict()
    return [
        f"{where}{name} = {value!r}"
        for name, value in config.to_dict().items()
        if name not in handled and name not in IGNORED and (name not in defaults or value != defaults[name])
    ]
