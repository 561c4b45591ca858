"""Random LLaVAs of real shapes, built in code, with prompts of fixed lengths as tensors (no text is needed)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


@dataclass(frozen=True)
class Shape:
    """Sizes of a LLaVA; the tower is CLIP ViT-L/14-336's grid (24x24) in all of them."""

    layers: int
    width: int
    mlp: int
    heads: int
    tower_layers: int
    tower_width: int
    vocabulary: int = 32064


SHAPES = {
    "small": Shape(24, 512, 1376, 8, 6, 256),
    "7b": Shape(32, 4096, 11008, 32, 24, 1024),
    "13b": Shape(40, 5120, 13824, 40, 24, 1024),
}
BEFORE, QUESTION = 35, 12  # positions before the image; of the question. 25 follow the image in all.


def build(shape: Shape, dtype: torch.dtype, device: str, attention: str = "sdpa"):
    """(model, processor): random weights, a word-level tokenizer of numbered words."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=shape.tower_width,
            intermediate_size=4 * shape.tower_width,
            num_hidden_layers=shape.tower_layers,
            num_attention_heads=shape.tower_width // 64,
            image_size=336,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.mlp,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=4096,
        ),
        image_token_index=4,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    config._attn_implementation = attention
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = LlavaForConditionalGeneration(config).eval()
    torch.set_default_dtype(default)
    return model, _processor(shape.vocabulary)


def _processor(vocabulary: int) -> LlavaProcessor:
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    words = special + [f"w{i}" for i in range(vocabulary - len(special))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    return LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        # 35 positions, the image, then 25: one, the question's 12, and 12 more.
        chat_template=(
            "{% set q = namespace(t='') %}{% for m in messages %}{% for c in m['content'] %}"
            "{% if c['type'] == 'text' %}{% set q.t = c['text'] %}{% endif %}{% endfor %}{% endfor %}"
            + " ".join(f"w{i}" for i in range(BEFORE))
            + " <image> w50 {{ q.t }} "
            + " ".join(f"w{60 + i}" for i in range(12))
        ),
    )


def question() -> str:
    """Twelve words."""
    return " ".join(f"w{100 + i}" for i in range(QUESTION))
