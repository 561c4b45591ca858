"""nano before training: its architecture, tokenizer and image processor, all plain Hugging Face objects."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from nnsight_mmflow.nano import facts, world

N_LAYERS, WIDTH, N_HEADS, MLP_WIDTH = 10, 128, 4, 384
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
SCENE_WORDS = """what color is the ? or to left right of do and have same there a thing on yes no , . USER ASSISTANT :
object objects picture""".split()

# The form of the LLaVA-1.5 template: pictures first, then the text, then "ASSISTANT:" without a trailing space.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] if content['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] + ' ' }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def words() -> list[str]:
    """Nano's whole vocabulary, special tokens and the newline first; a word's place in the list is its id."""
    return list(dict.fromkeys([*SPECIAL, "\n", *SCENE_WORDS, *world.SHAPES, *world.COLORS, *facts.fact_words()]))


def build_processor() -> LlavaProcessor:
    """A LLaVA processor over a word-level tokenizer and the CLIP image processor that needs no torchvision."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words())}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex(r"\n|\w+|[^\w\s]"), behavior="removed", invert=True)
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", words().index("<s>"))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
        model_input_names=["input_ids", "attention_mask"],
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": world.SIZE},
        crop_size={"height": world.SIZE, "width": world.SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=fast,
        patch_size=world.PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_config(n_layers: int = N_LAYERS) -> LlavaConfig:
    """Nano's configuration: a CLIP tower of 4 layers (features from the last but one), a Llama of `n_layers`."""
    vocabulary = words()
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=MLP_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=world.SIZE,
            patch_size=world.PATCH,
            projection_dim=WIDTH,
        ),
        text_config=LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=WIDTH,
            intermediate_size=MLP_WIDTH,
            num_hidden_layers=n_layers,
            num_attention_heads=N_HEADS,
            num_key_value_heads=N_HEADS,
            max_position_embeddings=512,
            pad_token_id=vocabulary.index("<pad>"),
            bos_token_id=vocabulary.index("<s>"),
            eos_token_id=vocabulary.index("</s>"),
            tie_word_embeddings=False,
        ),
        image_token_index=vocabulary.index("<image>"),
        image_token_id=vocabulary.index("<image>"),
        image_seq_length=(world.SIZE // world.PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        pad_token_id=vocabulary.index("<pad>"),
        tie_word_embeddings=False,
    )


def build_model(n_layers: int = N_LAYERS) -> LlavaForConditionalGeneration:
    """Nano with random weights, in float32."""
    return LlavaForConditionalGeneration(build_config(n_layers))
