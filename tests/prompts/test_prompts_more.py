"""Prompts with Llama-type tokenizers and odd chat templates, and tensors refused before a forward."""

import json

import numpy as np
import pytest
import torch
from kit.tiny import picture, tiny_graph, tiny_model, tiny_processor
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

import nnsight_mmflow as mmf
from nnsight_mmflow.prompts.templates import PAPER_TEMPLATES

QUESTION = "what color is the circle ?"
ASKED = ["Is the jar full or empty?", "Which kind of animal is this, a cat or a bird?", "On which side, left or right?"]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def llama_vocabulary():
    """BPE as sentencepiece exports it: words start with "▁", what has no token (a newline) falls back to bytes."""
    trained = Tokenizer(BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    texts = [*ASKED, *(part for parts in PAPER_TEMPLATES.values() for part in parts)]
    texts = [" ".join(text.replace("{images}", "").split()) for text in texts]
    trained.train_from_iterator(texts * 3, BpeTrainer(vocab_size=620, special_tokens=[*SPECIAL, *BYTES]))
    model = json.loads(trained.to_str())["model"]
    assert "\n" not in model["vocab"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def llama(legacy):
    """transformers' own LlamaTokenizer, or the legacy form of LLaVA-1.5's tokenizer.json (a normalizer writes "▁")."""
    vocabulary, merges = llama_vocabulary()
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    image = {"extra_special_tokens": {"image_token": "<image>"}, "padding_side": "left"}
    if not legacy:
        made = LlamaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True, **tokens, **image)
        assert made("the jar")["input_ids"][0] == made.bos_token_id
        return made
    bare = Tokenizer(BPE(vocab=vocabulary, merges=merges, fuse_unk=True, byte_fallback=True, unk_token="<unk>"))
    bare.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bare.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    bare.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    bare.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bare, **tokens, **image)


def byte_level(bos="<|begin_of_text|>", unk=None):
    """As Llama 3 and Qwen have it: byte-level BPE that puts its own first token before every text."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    special = dict.fromkeys([bos, "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<pad>", "<image>"])
    texts = [*ASKED, *(part for parts in PAPER_TEMPLATES.values() for part in parts)] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        texts, BpeTrainer(vocab_size=420, special_tokens=list(special), initial_alphabet=alphabet)
    )
    trained.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, trained.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        bos_token=bos,
        unk_token=unk,
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
    )


def graph_with(tokenizer):
    processor, model = tiny_processor(), tiny_model()
    processor.tokenizer = tokenizer
    processor.image_token_id = model.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    return mmf.adapt(model, processor)


def decoded(graph, spans, name):
    return graph.processor.tokenizer.decode(
        graph.processor.tokenizer.convert_tokens_to_ids([spans.tokens[i] for i in spans[name]])
    )


@pytest.mark.parametrize("template", ["chat", "vicuna_v1"])
@pytest.mark.parametrize("legacy", [True, False])
def test_llama_tokenizers(legacy, template):
    graph = graph_with(llama(legacy))
    for question in ASKED:
        spans = graph.prompt(picture(0), question, template=template).spans
        assert decoded(graph, spans, "question").strip() == question
        assert len(spans["image"]) == 64
        assert spans.tokens[0] == "<s>"
        assert spans.tokens.count("<s>") == 1
        assert spans["last"].positions == (len(spans.tokens) - 1,)
        assert spans.tokens[-1].endswith(":")
        assert decoded(graph, spans, "suffix").strip().endswith("ASSISTANT:")
        word = question.split()[2]
        ids = graph.processor.tokenizer.convert_tokens_to_ids([spans.tokens[i] for i in spans.text(word)])
        assert graph.processor.tokenizer.decode(ids).strip() == word


def test_llama_3_begins_once_and_ends_in_the_extra_newline():
    graph = graph_with(byte_level())
    for question in ASKED:
        spans = graph.prompt(picture(0), question, template="llava_llama_3").spans
        assert spans.tokens.count("<|begin_of_text|>") == 1
        assert decoded(graph, spans, "question").strip() == question
        assert decoded(graph, spans, "suffix").endswith("assistant<|end_header_id|>\n\n \n")
        assert decoded(graph, spans, "last").endswith("\n")


def test_a_first_token_that_is_also_the_unknown_token_is_no_unknown_word():
    """Phi's tokenizer has one token, <|endoftext|>, as beginning, end and unknown; here it is put first."""
    graph = graph_with(byte_level("<|endoftext|>", "<|endoftext|>"))
    spans = graph.prompt(picture(0), ASKED[0]).spans
    assert decoded(graph, spans, "question").strip() == ASKED[0]


def test_the_question_is_counted_not_searched(graph):
    """Its words also stand in the template, before and after it."""
    spans = graph.prompt(picture(0), "ASSISTANT : USER :").spans
    assert list(spans["question"]) == [68, 69, 70, 71]  # <s> USER : 64 image tokens, a newline
    assert [spans.tokens[i] for i in spans["suffix"]] == ["ASSISTANT", ":"]
    again = graph.prompt(picture(0), "is the circle red ?", instruction="is the circle red ?").spans
    assert list(again["question"]) == list(range(68, 73))
    assert [again.tokens[i] for i in again["suffix"]] == ["\n", *"is the circle red ? ASSISTANT :".split()]


CONTENT = "messages[0]['content'][-1]['text']"


@pytest.mark.parametrize(
    "template",
    [
        f"<image>{{{{ {CONTENT}|upper }}}} ASSISTANT:",
        f"<image>{{{{ {CONTENT} }}}} {{{{ {CONTENT} }}}} ASSISTANT:",
        "<image> ASSISTANT:",
    ],
)
def test_a_chat_template_that_changes_repeats_or_drops_the_question_is_refused(template):
    processor = tiny_processor()
    processor.chat_template = template
    with pytest.raises(mmf.PromptError, match="raw=True"):
        mmf.adapt(tiny_model(), processor).prompt(picture(0), QUESTION)


def test_a_chat_template_may_strip_the_question():
    processor = tiny_processor()
    processor.chat_template = f"<image>{{{{ {CONTENT}|trim }}}} ASSISTANT:"
    prompt = mmf.adapt(tiny_model(), processor).prompt(picture(0), f"  {QUESTION} ")
    assert prompt.text == f"<image>{QUESTION} ASSISTANT:"
    assert prompt.question == QUESTION
    assert [prompt.spans.tokens[i] for i in prompt.spans["question"]] == QUESTION.split()


def test_raw_text_with_two_pictures(graph):
    spans = graph.prompt([picture(0), picture(1)], "the <image> and the <image> is there a ring ?", raw=True).spans
    assert [spans.tokens[i] for i in spans["prefix"]] == ["<s>", "the", "and", "the"]
    assert [spans.tokens[i] for i in spans["question"]] == "is there a ring ?".split()
    assert list(spans["image[0]"]) == list(range(2, 66))
    assert list(spans["image[1]"]) == list(range(68, 132))
    assert spans["image[0] | image[1]"] == spans["image"]


def test_a_processor_that_does_not_know_its_patch_size_is_told_to_set_it():
    """As in old LLaVA checkpoints, whose processor configuration has no patch_size."""
    processor = tiny_processor()
    processor.patch_size = None
    with pytest.raises(mmf.MMFlowError, match="patch_size"):
        mmf.adapt(tiny_model(), processor).prompt(picture(0), QUESTION)


def test_cut_and_unexpanded_ids_are_refused(graph, prompt):
    ids, pixels = prompt.inputs["input_ids"], prompt.inputs["pixel_values"]
    with pytest.raises(mmf.PromptError, match="40 image tokens in the prompt, 64 features .*truncation"):
        graph.checked({"input_ids": ids[:, :43], "pixel_values": pixels})
    with pytest.raises(mmf.PromptError, match="1 image tokens in the prompt, 64 features .*was not expanded"):
        graph.checked({"input_ids": torch.cat([ids[:, :4], ids[:, 67:]], 1), "pixel_values": pixels})
    with pytest.raises(mmf.PromptError, match="65 image tokens in the prompt, 64 features .*the class token"):
        graph.checked({"input_ids": torch.cat([ids[:, :4], ids[:, 3:]], 1), "pixel_values": pixels})


@pytest.mark.parametrize("padding", [(3, 0), (0, 3)])
def test_a_padded_batch_without_a_mask_is_refused_on_either_side(graph, prompt, padding):
    pad = graph.processor.tokenizer.pad_token_id
    ids = torch.nn.functional.pad(prompt.inputs["input_ids"], padding, value=pad).repeat(2, 1)
    pixels = prompt.inputs["pixel_values"].repeat(2, 1, 1, 1)
    with pytest.raises(mmf.PromptError, match="there is no attention_mask"):
        graph.checked({"input_ids": ids, "pixel_values": pixels})
    seen = (ids != pad).long()
    assert set(graph.checked({"input_ids": ids, "pixel_values": pixels, "attention_mask": seen})) >= {"attention_mask"}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_last_logits_of_every_row_order(attention):
    """Text alone first, in the middle, or only text: each row's last logits are those of the prompt alone."""
    graph = tiny_graph(attention=attention)
    texts = [graph.prompt(None, "is there a ring ?"), graph.prompt(None, "is there a ring or a cross on the left ?")]
    seen = [graph.prompt(picture(0), QUESTION), graph.prompt([picture(1), picture(2)], "is there a ring ?")]
    model = graph.adapter.model
    with torch.no_grad():
        alone = {id(prompt): model(**prompt.inputs).logits[0, -1] for prompt in texts + seen}
        for order in ([texts[0], *seen], [seen[1], texts[1], seen[0]], texts):
            together = model(**graph.batch(order).inputs).logits[:, -1]
            for row, prompt in zip(together, order, strict=True):
                # float32: sums run in another order over a padded row; the issue allows 1e-5 on logits
                assert (row - alone[id(prompt)]).abs().max() <= 1e-5


@pytest.mark.parametrize("shape", [(64, 64, 1), (3, 64, 64), (64, 64, 5), (0, 4, 3)])
def test_arrays_that_are_no_picture_are_named_by_their_shape(graph, shape):
    with pytest.raises(mmf.PromptError, match=r"expected uint8 of shape"):
        graph.prompt(np.zeros(shape, np.uint8), QUESTION)


def test_files_that_are_cut_short_or_are_folders(graph, tmp_path):
    picture(0).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
    for path in (tmp_path / "half.png", tmp_path):
        with pytest.raises(mmf.DataError, match="cannot be read as an image"):
            graph.prompt(path, QUESTION)
    grey = np.asarray(picture(0).convert("L"))
    same = graph.prompt(Image.fromarray(grey), QUESTION).inputs["pixel_values"]
    assert torch.equal(graph.prompt(grey, QUESTION).inputs["pixel_values"], same)


def test_padding_to_a_square_is_what_the_model_sees(graph):
    """The processor of nano has a mean of 0.5: the padding of a red strip is grey (127 of 255)."""
    prompt = graph.prompt(Image.new("RGB", (64, 32), (255, 0, 0)), QUESTION, pad_to_square=True)
    assert prompt.spans["image"].images[0].geometry.fill == (127, 127, 127)
    pixels = (prompt.inputs["pixel_values"][0].permute(1, 2, 0) * 0.5 + 0.5) * 255
    grey, red = torch.tensor([127.0, 127, 127]), torch.tensor([255.0, 0, 0])
    assert (pixels[:16] - grey).abs().max() < 1e-3  # float32 after scaling there and back
    assert (pixels[48:] - grey).abs().max() < 1e-3
    assert (pixels[16:48] - red).abs().max() < 1e-3
