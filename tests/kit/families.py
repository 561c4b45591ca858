"""Tiny random models of every family, made in code with the real processors; their answers depend on their pixels."""

from __future__ import annotations

import functools
import sys

import torch
import transformers.models as hf
from kit.tiny import picture, tiny_model, tiny_processor
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.pixtral import image_processing_pil_pixtral
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import nnsight_mmflow as mmf
from nnsight_mmflow.checks.report import CheckReport
from nnsight_mmflow.model.images_only import images_only

QUESTION = "what color is the circle ?"
WORDS = (
    """<pad> <s> </s> <unk> <image> <video> <boi> <eoi> <soft> <vstart> <vend> [IMG] [IMG_BREAK] [IMG_END]
    <fake_token_around_image> <global-img> <end_of_utterance> USER ASSISTANT : what color is the circle ring square ?
    do and have same or red blue green Here original image here are some crops to help you see better""".split()
    + ["\n"]
    + [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
)
SPECIAL = [word for word in WORDS if word[0] in "<["]
TILE, PATCH = 32, 8
CHAT = (
    "<s>{% for message in messages %}USER : {% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}ASSISTANT :"
)
PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]


def tokenizer(**extra: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows the special tokens of all families."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    inner.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in SPECIAL])
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named, padding_side="left", extra_special_tokens=extra)


def ident(word: str) -> int:
    """The id of a word."""
    return WORDS.index(word)


def text(kind: str, n_layers: int = 4, **more: object):
    """The configuration of a small text model."""
    shared = {
        "vocab_size": len(WORDS),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    classes = {
        "llama": hf.llama.LlamaConfig,
        "qwen2": hf.qwen2.Qwen2Config,
        "qwen3": hf.qwen3.Qwen3Config,
        "gemma": hf.gemma.GemmaConfig,
        "gemma2": hf.gemma2.Gemma2Config,
        "gemma3": hf.gemma3.Gemma3TextConfig,
    }
    return classes[kind](**shared, **more)


VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": TILE,
    "patch_size": PATCH,
}


def llava(text_model: str = "llama", tower: str = "clip"):
    """LLaVA-1.5, as the other tests have it."""
    return tiny_model(text_model, tower), tiny_processor(tower)


def llava_pixtral():
    """LLaVA with Pixtral's tower and processor: pictures of any shape, a token at the end of each row."""
    config = hf.llava.LlavaConfig(
        vision_config=hf.pixtral.PixtralVisionConfig(**{**VISION, "image_size": 64}, head_dim=16),
        text_config=text("llama"),
        image_token_index=ident("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    made = PixtralImageProcessorPil(size={"longest_edge": 64}, patch_size={"height": PATCH, "width": PATCH})
    # The processor's module takes one function from a module that needs torchvision; the one without has it too.
    sys.modules.setdefault("transformers.models.pixtral.image_processing_pixtral", image_processing_pil_pixtral)
    from transformers.models.pixtral.processing_pixtral import PixtralProcessor

    processor = PixtralProcessor(made, tokenizer(), patch_size=PATCH, chat_template=CHAT.replace("IMAGE", "[IMG] "))
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration(config), processor


def llava_next(tower: str = "clip", text_model: str = "llama", patch: int = PATCH):
    """LLaVA-NeXT with tiles of 32 pixels; with patches of 6, each tile leaves 2 pixels unseen."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor

    strategy = "default" if tower == "clip" else "full"
    vision = {"clip": hf.clip.CLIPVisionConfig, "siglip": hf.siglip.SiglipVisionConfig}[tower]
    config = LlavaNextConfig(
        vision_config=vision(**{**VISION, "patch_size": patch}),
        text_config=text(text_model),
        image_token_index=ident("<image>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=False,
    )
    made = LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE}, crop_size={"height": TILE, "width": TILE}, image_grid_pinpoints=PINPOINTS
    )
    processor = LlavaNextProcessor(
        made,
        tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(tower == "clip"),
        chat_template=CHAT.replace("IMAGE", "<image> "),
    )
    return LlavaNextForConditionalGeneration(config), processor


def llava_onevision(aspect: str = "anyres_max_9", patch: int = PATCH):
    """LLaVA-OneVision with tiles of 32 pixels; few allowed patches make it shrink them."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor

    config = LlavaOnevisionConfig(
        vision_config=hf.siglip.SiglipVisionConfig(**{**VISION, "patch_size": patch}, vision_use_head=False),
        text_config=text("qwen2"),
        image_token_index=ident("<image>"),
        video_token_index=ident("<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=aspect,
        tie_word_embeddings=False,
    )
    made = LlavaOnevisionImageProcessorPil(size={"height": TILE, "width": TILE}, image_grid_pinpoints=PINPOINTS)
    processor = images_only(LlavaOnevisionProcessor)(
        made,
        tokenizer(),
        num_image_tokens=(TILE // patch) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=aspect,
        chat_template=CHAT.replace("IMAGE", "<image> "),
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def _qwen_text(cls, **more: object):
    return cls(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **more,
    )


def _qwen_processor(cls):
    made = Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
    )
    extra = {"image_token": "<image>", "video_token": "<video>", "vision_start_token": "<vstart>"}
    template = CHAT.replace("IMAGE", "<vstart> <image> <vend> ")
    return images_only(cls)(made, tokenizer(**extra, vision_end_token="<vend>"), chat_template=template)


QWEN_IDS = {
    "image_token_id": ident("<image>"),
    "video_token_id": ident("<video>"),
    "vision_start_token_id": ident("<vstart>"),
    "vision_end_token_id": ident("<vend>"),
}


def qwen2_vl():
    """Qwen2-VL: patches of 8 pixels, four of them a token."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "patch_size": PATCH,
            "mlp_ratio": 2,
        },
        text_config=_qwen_text(hf.qwen2_vl.Qwen2VLTextConfig, rope_parameters=rope).to_dict(),
        **QWEN_IDS,
    )
    return Qwen2VLForConditionalGeneration(config), _qwen_processor(Qwen2VLProcessor)


def qwen2_5_vl():
    """Qwen2.5-VL: one of two tower blocks looks through windows of two by two tokens."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": PATCH,
            "window_size": 32,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
        text_config=_qwen_text(hf.qwen2_5_vl.Qwen2_5_VLTextConfig, rope_parameters=rope).to_dict(),
        **QWEN_IDS,
    )
    return Qwen2_5_VLForConditionalGeneration(config), _qwen_processor(Qwen2_5_VLProcessor)


def qwen3_vl():
    """Qwen3-VL: features of two tower blocks enter after the first two decoder layers."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": PATCH,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        text_config=_qwen_text(hf.qwen3_vl.Qwen3VLTextConfig, head_dim=16, rope_parameters=rope).to_dict(),
        **QWEN_IDS,
    )
    return Qwen3VLForConditionalGeneration(config), _qwen_processor(Qwen3VLProcessor)


def gemma3(pan_and_scan: bool = False):
    """Gemma 3: 4x4 tokens a picture, every other layer with a sliding window shorter than the prompt."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor

    kinds = ["sliding_attention", "full_attention"] * 2
    rope = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in zip(kinds, (1e4, 1e6), strict=False)}
    config = Gemma3Config(
        vision_config=hf.siglip.SiglipVisionConfig(**{**VISION, "image_size": 64}, vision_use_head=False),
        text_config=text(
            "gemma3", head_dim=16, sliding_window=12, layer_types=kinds, query_pre_attn_scalar=16, rope_parameters=rope
        ),
        mm_tokens_per_image=16,
        boi_token_index=ident("<boi>"),
        eoi_token_index=ident("<eoi>"),
        image_token_index=ident("<soft>"),
        tie_word_embeddings=False,
    )
    made = Gemma3ImageProcessorPil(size={"height": 64, "width": 64})
    extra = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<soft>"}
    template = CHAT.replace("IMAGE", "<boi> ")
    processor = Gemma3Processor(made, tokenizer(**extra), image_seq_length=16, chat_template=template)
    how = {
        "do_pan_and_scan": pan_and_scan,
        "pan_and_scan_min_crop_size": 16,
        "pan_and_scan_max_num_crops": 4,
        "pan_and_scan_min_ratio_to_activate": 1.2,
    }
    if hasattr(Gemma3Processor, "images_kwargs"):
        processor.images_kwargs = how
    else:  # transformers before 5.23 keeps them with the types of its arguments
        before = Gemma3Processor.valid_processor_kwargs
        now = type(before)("Given", (before,), {"__annotations__": {}}, total=False)
        now._defaults = {**before._defaults, "images_kwargs": how}
        processor.valid_processor_kwargs = now
    return Gemma3ForConditionalGeneration(config), processor


def paligemma(text_model: str = "gemma"):
    """PaliGemma: the whole prompt reads itself forwards and backwards."""
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor

    more = {"head_dim": 16} if text_model == "gemma" else {"head_dim": 16, "sliding_window": 12}
    config = PaliGemmaConfig(
        vision_config=hf.siglip.SiglipVisionConfig(**VISION, vision_use_head=False, projection_dim=64),
        text_config=text(text_model, **more),
        image_token_index=ident("<image>"),
        vocab_size=len(WORDS),
        projection_dim=64,
        hidden_size=64,
        tie_word_embeddings=False,
    )
    made = SiglipImageProcessorPil(size={"height": TILE, "width": TILE})
    made.image_seq_length = (TILE // PATCH) ** 2
    processor = PaliGemmaProcessor(made, tokenizer(image_token="<image>"))
    return PaliGemmaForConditionalGeneration(config), processor


def idefics3(splits: bool = True, patch: int = PATCH):
    """Idefics 3: tiles of 32 pixels, four patches a token; with patches of 5, each tile leaves 2 pixels unseen."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor

    config = Idefics3Config(
        vision_config=hf.idefics3.configuration_idefics3.Idefics3VisionConfig(**{**VISION, "patch_size": patch}),
        text_config=text("llama"),
        image_token_id=ident("<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
    )
    made = Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": TILE}, do_image_splitting=splits
    )
    seq = (TILE // patch // 2) ** 2
    template = CHAT.replace("IMAGE", "<image> ")
    processor = Idefics3Processor(made, tokenizer(), image_seq_len=seq, chat_template=template)
    return Idefics3ForConditionalGeneration(config), processor


def smolvlm():
    """SmolVLM: Idefics 3 with other names."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMProcessor
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    config = SmolVLMConfig(
        vision_config=hf.smolvlm.configuration_smolvlm.SmolVLMVisionConfig(**VISION),
        text_config=text("llama"),
        image_token_id=ident("<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
    )
    made = SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": TILE})
    seq = (TILE // PATCH // 2) ** 2
    template = CHAT.replace("IMAGE", "<image> ")
    processor = images_only(SmolVLMProcessor)(made, tokenizer(), image_seq_len=seq, chat_template=template)
    return SmolVLMForConditionalGeneration(config), processor


def internvl(text_model: str = "qwen2"):
    """InternVL: up to six tiles of 32 pixels, four patches a token, a thumbnail behind them."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor

    vision = {**VISION, "image_size": [TILE, TILE], "patch_size": [PATCH, PATCH]}
    config = InternVLConfig(
        vision_config=hf.internvl.InternVLVisionConfig(**vision),
        text_config=text(text_model),
        image_token_id=ident("<image>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    made = GotOcr2ImageProcessorPil(size={"height": TILE, "width": TILE}, crop_to_patches=True, max_patches=6)
    extra = {"start_image_token": "<vstart>", "end_image_token": "<vend>", "context_image_token": "<image>"}
    template = CHAT.replace("IMAGE", "<image> ")
    named = tokenizer(**extra, video_token="<video>")
    processor = images_only(InternVLProcessor)(made, named, image_seq_length=4, chat_template=template)
    return InternVLForConditionalGeneration(config), processor


FAMILIES = {
    "llava": llava,
    "llava_phi_siglip": lambda: llava("phi", "siglip"),
    "llava_mistral": lambda: llava("mistral"),
    "llava_qwen2_siglip": lambda: llava("qwen2", "siglip"),
    "llava_pixtral": llava_pixtral,
    "llava_next": llava_next,
    "llava_next_siglip": lambda: llava_next("siglip", "qwen2"),
    "llava_onevision": llava_onevision,
    "llava_onevision_shrunk": lambda: llava_onevision("anyres_max_1"),
    "llava_onevision_strips": lambda: llava_onevision(patch=6),
    "llava_onevision_shrunk_strips": lambda: llava_onevision("anyres_max_1", patch=6),
    "llava_next_strips": lambda: llava_next("siglip", "llama", patch=6),
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "gemma3": gemma3,
    "gemma3_pan_and_scan": lambda: gemma3(True),
    "paligemma": paligemma,
    "paligemma2": lambda: paligemma("gemma2"),
    "idefics3": idefics3,
    "idefics3_undivided": lambda: idefics3(False),
    "idefics3_strips": lambda: idefics3(patch=5),
    "smolvlm": smolvlm,
    "internvl": internvl,
    "internvl_qwen3": lambda: internvl("qwen3"),
}


EAGER_ONLY = ("paligemma2",)  # transformers gives Gemma 2 no sdpa: its attention squeezes the scores


@functools.cache
def refused_here() -> set[str]:
    """Those that the transformers installed gets wrong, so that they are refused at load (test_versions.py)."""
    from nnsight_mmflow.adapters.base import mentions

    merger = getattr(hf.smolvlm.SmolVLMModel, "inputs_merger", None)
    refused = {
        "paligemma2": not mentions(hf.paligemma.PaliGemmaForConditionalGeneration.forward, "final_logit_softcapping"),
        "smolvlm": merger is not None and mentions(merger, "vision_config"),
    }
    return {name for name, is_so in refused.items() if is_so}


def family(name: str, attention: str = "sdpa") -> mmf.Graph:
    """A graph of a tiny random model of that family: made once, and anew where a test has changed the model."""
    graph, was = MADE.get((name, attention), (None, None))
    if graph is None or _state(graph) != was:
        graph = _made(name, attention)
        MADE[name, attention] = graph, _state(graph)
    torch.manual_seed(1)
    return graph


MADE: dict[tuple[str, str], tuple[mmf.Graph, tuple]] = {}


@functools.cache
def conformance(name: str) -> CheckReport:
    """What `mmf.check` says of a family: run once, for the conformance test and README's table."""
    return mmf.check(family(name, "eager" if name in EAGER_ONLY else "sdpa"), progress=False)


def _state(graph: mmf.Graph) -> tuple:
    """What tests may leave behind in a model: other weights, hooks, settings."""
    model = graph.adapter.model
    modules = list(model.modules())
    return (
        [(id(one), one._version, one.requires_grad, one.grad is None) for one in model.parameters()],
        [(one.training, _hooks(one._forward_hooks), _hooks(one._forward_pre_hooks)) for one in modules],
        model.config.to_dict(),
        model.generation_config.to_dict(),
    )


def _hooks(found: dict) -> int:
    """How many there are apart from transformers' own, which stay once a run has asked for attention maps."""
    return sum(not hook.__module__.startswith("transformers.") for hook in found.values())


def _made(name: str, attention: str) -> mmf.Graph:
    """Asserts that another picture gives other logits: else no test on it means anything."""
    torch.manual_seed(0)
    model, processor = FAMILIES[name]()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                if not parameter.any():  # Gemma 3's projection is zero at birth
                    parameter.normal_(0, 0.05)
                parameter.mul_(4)
    model.eval().set_attn_implementation(attention)
    graph = mmf.adapt(model, processor)
    with torch.no_grad():
        one, other = (model(**graph.prompt(picture(i, 80, 48), QUESTION).inputs).logits[0, -1] for i in (0, 1))
    assert (one - other).abs().max() > 0.1, "changing the pixels must change the logits"
    return graph


@functools.cache
def real_llava() -> mmf.Graph:
    """LLaVA-1.5's real preprocessing (336 pixels, patches of 14), with a narrow model behind it."""
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    config = hf.llava.LlavaConfig(
        vision_config=hf.clip.CLIPVisionConfig(**{**VISION, "image_size": 336, "patch_size": 14}),
        text_config=text("llama", 1),
        image_token_index=ident("<image>"),
        tie_word_embeddings=False,
    )
    made = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    settings = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = LlavaProcessor(made, tokenizer(), chat_template=CHAT.replace("IMAGE", "<image> "), **settings)
    return mmf.adapt(LlavaForConditionalGeneration(config).eval(), processor)


@functools.cache
def real_llava_next() -> mmf.Graph:
    """LLaVA-v1.6's real preprocessing (tiles of 336 pixels, its five resolutions), with a narrow model behind it."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor

    resolutions = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    config = LlavaNextConfig(
        vision_config=hf.clip.CLIPVisionConfig(**{**VISION, "image_size": 336, "patch_size": 14}),
        text_config=text("llama", 1),
        image_token_index=ident("<image>"),
        image_grid_pinpoints=resolutions,
        tie_word_embeddings=False,
    )
    made = LlavaNextImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_grid_pinpoints=resolutions
    )
    settings = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = LlavaNextProcessor(made, tokenizer(), chat_template=CHAT.replace("IMAGE", "<image> "), **settings)
    return mmf.adapt(LlavaNextForConditionalGeneration(config).eval(), processor)
