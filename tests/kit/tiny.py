"""Tiny random models made in code, whose answers depend on their pixels (asserted when one is made)."""

import functools

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PhiConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

import nnsight_mmflow as mmf
from nnsight_mmflow.nano import build

TEXTS = ("llama", "mistral", "qwen2", "phi")
TOWERS = ("clip", "siglip")


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """A picture of random colours in blocks of 8 pixels."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)[:height, :width])


def text_config(kind: str, n_layers: int):
    shared = {
        "vocab_size": 157,  # fixed, so that a new word of nano changes no random model
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    if kind == "phi":
        return PhiConfig(**shared, num_key_value_heads=4)
    made = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}[kind]
    return made(**shared, num_key_value_heads=2)


def tower_config(kind: str):
    shared = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 8,
    }
    return CLIPVisionConfig(**shared, projection_dim=32) if kind == "clip" else SiglipVisionConfig(**shared)


def tiny_model(text: str = "llama", tower: str = "clip", *, n_layers: int = 5, attention: str = "sdpa", seed: int = 0):
    """A random LLaVA in evaluation mode, its matrices large enough for attention and pixels to matter."""
    torch.manual_seed(seed)
    words = build.words()
    full = tower == "siglip"
    config = LlavaConfig(
        vision_config=tower_config(tower),
        text_config=text_config(text, n_layers),
        image_token_index=words.index("<image>"),
        image_seq_length=64,
        vision_feature_layer=-2,
        vision_feature_select_strategy="full" if full else "default",
        tie_word_embeddings=False,
    )
    config._attn_implementation = attention
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def tiny_processor(tower: str = "clip"):
    processor = build.build_processor()
    if tower == "siglip":
        processor.vision_feature_select_strategy = "full"
        processor.num_additional_image_tokens = 0
    return processor


@functools.cache
def tiny_graph(text: str = "llama", tower: str = "clip", *, n_layers: int = 5, attention: str = "sdpa", seed: int = 0):
    """A graph of such a model. Asserts that another picture gives other logits: else no test on it means anything."""
    model = tiny_model(text, tower, n_layers=n_layers, attention=attention, seed=seed)
    graph = mmf.adapt(model, tiny_processor(tower))
    with torch.no_grad():
        one, other = (model(**graph.prompt(picture(i), "what color is the circle ?").inputs).logits for i in (0, 1))
    assert (one - other)[0, -1].abs().max() > 0.1, "changing the pixels must change the logits"
    return graph
