"""What every adapter provides, and the parts they share: roles of modules, checks of the configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import ModelError
from nnsight_mmflow.adapters.text import IGNORED, TEXT_MODELS
from nnsight_mmflow.spans.geometry import ImageGeometry

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as Picture
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin

    from nnsight_mmflow.spans.row_spans import Spans

PER_POSITION = ("attention_mask", "token_type_ids", "mm_token_type_ids")


class Adapter:
    """Reads one family of models. A subclass sets the class attributes and writes `images` and `feature_counts`.

    Attributes:
        family: the name users see.
        handled: fields of the model's top configuration that the adapter reads.
        handled_vision: fields of the tower's configuration that the adapter reads or that cannot matter to it.
        ignored: fields that published checkpoints carry, at any level, and on which nothing here depends.
        towers: for each vision model it knows, how many tokens stand before the patches (a class token: 1).
        texts: the text models it knows.
        projector_path: where the projector lies, below the base model.
        plain_template: for families without a chat template, the text before and after the question.
        enters_after: image features are added to the residual stream again after this many first layers.
        causal: whether a text layer that is handed no mask reads backwards alone.
        windowed_blocks: whether a sliding window also bounds what the positions of a block read.
        generated_type: what token_type_ids say of a token that the model wrote.
    """

    family: str
    handled: frozenset[str] = frozenset()
    handled_vision: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    towers: Mapping[str, int] = {}
    texts: tuple[str, ...] = ()
    projector_path: str = "multi_modal_projector"
    plain_template: tuple[str, str] | None = None
    enters_after: int = 0
    causal: bool = True
    windowed_blocks: bool = False
    generated_type: int = 0

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        self.model, self.processor = model, processor
        self.config = model.config
        self.text_config = model.config.get_text_config()
        text_type = self.text_config.model_type
        if text_type not in self.texts:
            raise ModelError(
                f"the text model is {text_type!r}; {self.family} is handled with {', '.join(self.texts)}."
                " A new one is a line in nnsight_mmflow/adapters/text.py, and its name in the adapter's `texts`."
            )
        self.text = TEXT_MODELS[text_type]
        self.input_names = frozenset(signature(type(model).forward).parameters) - {"self", "labels"}
        self.image_names = frozenset(signature(type(model).get_image_features).parameters) - {"self", "kwargs"}
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
        return self.model.base_model.get_submodule(self.projector_path)

    def nested(self, pictures: list[Picture]) -> list:
        """The pictures of one prompt, in the form in which the processor takes them."""
        return pictures

    def prepared(self, text: str, question: tuple[int, int]) -> tuple[str, tuple[int, int]]:
        """The text as the processor has it before it puts in image tokens, and where the question is in it."""
        return text, question

    def bidirectional(self, spans: Spans) -> tuple[tuple[int, int], ...]:
        """(first, end) of each stretch of positions that may read one another backwards and forwards."""
        return ()

    def join(self, rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """What stands beside the ids, of several prompts, as one batch.

        What has a number per position is padded on the left, as the ids are; pictures are padded at their ends.
        """
        import torch

        length = max(row["input_ids"].shape[1] for row in rows)
        joined: dict[str, torch.Tensor] = {}
        for name in dict.fromkeys(name for row in rows for name in row if name != "input_ids"):
            if name in PER_POSITION:
                parts = [row.get(name, torch.zeros_like(row["input_ids"])) for row in rows]
                parts = [torch.nn.functional.pad(part, (length - part.shape[1], 0)) for part in parts]
            else:
                parts = [row[name] for row in rows if name in row]
                largest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
                parts = [torch.nn.functional.pad(part, _missing(part.shape[1:], largest)) for part in parts]
            joined[name] = torch.cat(parts)
        return joined

    def tower_patches(self, inputs: Mapping[str, torch.Tensor]) -> int:
        """How many patches the tower sees, for the cost of a run; tiles that only fill up a batch are counted too."""
        if "pixel_values" not in inputs:
            return 0
        vision = self.config.vision_config
        patch = _height(vision.patch_size)
        numbers = 3 * patch * patch * _height(getattr(vision, "temporal_patch_size", 1))
        return inputs["pixel_values"].numel() // numbers

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

    def tower_layer(self) -> int | None:
        """The tower's layer whose output becomes image tokens, patch by patch, with a class token before the patches.

        None where there is no class token, or a token is not one patch: methods that read the tower cannot run then.
        """
        return None

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
            *_unhandled("", self.config, self.ignored | self.handled | {"text_config", "vision_config"}),
            *_unhandled("text_config.", self.text_config, self.ignored | self.text.handled),
            *_unhandled("vision_config.", vision, self.ignored | self.handled_vision),
        ]
        if unknown:
            raise ModelError(
                f"{type(self.model).__name__} has settings that the {self.family} adapter does not handle:"
                f" {', '.join(unknown)}. The result could be wrong without a sign; add each to the adapter's `handled`"
                " set (and read it), or to its `ignored` set once it is known to be harmless."
            )
        cap = "final_logit_softcapping"
        if getattr(self.text_config, cap, None) is not None and not mentions(type(self.model).forward, cap):
            raise ModelError(
                f"{type(self.model).__name__} of the transformers installed leaves out {cap}, with which a"
                f" {self.text_config.model_type} text model was trained: its probabilities would be wrong. Install"
                " transformers 5.23 or later."
            )
        dropped = [
            name
            for config in (self.text_config, vision)
            for name in ("attention_dropout", "hidden_dropout_prob", "projection_dropout", "resid_pdrop", "embd_pdrop")
            if getattr(config, name, 0)
        ]
        if self.model.training and dropped:
            raise ModelError(f"the model is in training mode with {', '.join(dropped)} on: call model.eval() first.")

    def check_seen(self, seen: tuple[int, int]) -> None:
        """Refuses pictures of another (width, height) than the tower reads."""
        side = _height(self.config.vision_config.image_size)
        if seen != (side, side):
            raise ModelError(
                f"the processor makes pictures of {seen[0]}x{seen[1]} pixels, the tower reads {side}x{side}:"
                " load the processor that belongs to this model."
            )


def _missing(shape: Sequence[int], largest: list[int]) -> list[int]:
    """The padding, as torch takes it (last dimension first), that brings a shape up to the largest."""
    return [
        number for size, want in zip(reversed(shape), reversed(largest), strict=True) for number in (0, want - size)
    ]


def _height(size: int | Sequence[int]) -> int:
    """Sizes are numbers or pairs of equal numbers."""
    return size if isinstance(size, int) else size[0]


def _unhandled(where: str, config: PretrainedConfig, handled: frozenset[str]) -> list[str]:
    defaults = type(config)().to_dict()
    return [
        f"{where}{name} = {value!r}"
        for name, value in config.to_dict().items()
        if name not in handled and name not in IGNORED and (name not in defaults or value != defaults[name])
    ]


def mentions(forward: Callable, name: str) -> bool:
    """Whether a forward's own code names something, as an attribute or as text."""
    code = inspect.unwrap(forward).__code__
    return name in (*code.co_names, *code.co_consts)
