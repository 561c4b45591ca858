"""Prompts: templates byte by byte, where the question lies, and everything that is refused before a forward."""

import re

import numpy as np
import pytest
import torch
from kit.tiny import picture, tiny_graph, tiny_model, tiny_processor
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

import nnsight_mmflow as mmf
from nnsight_mmflow.prompts.encode import check_counts
from nnsight_mmflow.prompts.templates import render

QUESTION = "what color is the circle ?"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and"
    " polite answers to the user's questions. USER: <image>\nIs the jar full or empty? \nAnswer the question using a"
    " single word or phrase. ASSISTANT:"
)
LLAMA_3 = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You"
    " are able to understand the visual content that the user provides, and assist the user with a variety of tasks using"
    " natural language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<image>\nIs the jar full or empty? \nAnswer"
    " the question using a single word or phrase.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n \n"
)


@pytest.mark.parametrize(("template", "expected"), [("vicuna_v1", VICUNA), ("llava_llama_3", LLAMA_3)])
def test_paper_templates_byte_by_byte(template, expected):
    question = "Is the jar full or empty?"
    text, start, end = render(None, question, 1, "<image>", template=template, raw=False, instruction=None)
    assert text.encode() == expected.encode()
    assert text[start:end] == question


def test_chat_template_question_and_instruction(graph):
    prompt = graph.prompt(picture(0), QUESTION, instruction="what is there ?")
    spans = prompt.spans
    assert prompt.text == f"USER: <image>\n{QUESTION}\nwhat is there ? ASSISTANT:"
    assert prompt.question == QUESTION
    assert [spans.tokens[i] for i in spans["question"]] == QUESTION.split()
    assert [spans.tokens[i] for i in spans["suffix"]] == ["\n", *"what is there ? ASSISTANT :".split()]
    assert [spans.tokens[i] for i in spans["prefix"]] == ["<s>", "USER", ":", "\n"]


def test_raw_text_is_taken_as_it_is(graph):
    prompt = graph.prompt(picture(0), "the picture <image> is there a ring ? yes", raw=True)
    spans = prompt.spans
    assert prompt.text == "the picture <image> is there a ring ? yes"
    assert [spans.tokens[i] for i in spans["question"]] == "is there a ring ? yes".split()
    assert not len(spans["suffix"])
    assert [spans.tokens[i] for i in spans["prefix"]] == ["<s>", "the", "picture"]
    alone = graph.prompt(None, "is there a ring ?", raw=True)
    assert not len(alone.spans["image"])


@pytest.mark.parametrize(
    ("image", "question", "options", "text"),
    [
        (None, "<image> what ?", {"raw": True}, "the text names 1 image(s) by '<image>', but 0 came"),
        (picture(0), "what ?", {"raw": True}, "the text names 0 image(s) by '<image>', but 1 came"),
        (picture(0), "what <image> ?", {}, "which the template places itself"),
        (picture(0), " ", {}, "the question is empty"),
        (picture(0), "what ?", {"template": "vicuna"}, 'template must be "chat" or one of vicuna_v1, llava_llama_3'),
        (picture(0), "what ?", {"raw": True, "instruction": "no"}, "leave out template= and instruction="),
        (picture(0), "is the umbrella red ?", {}, "does not know 'umbrella'. It knows 168 words: , . : ? ASSISTANT"),
        (picture(0), QUESTION, {"options": ("a", "b", "c")}, "options are two"),
        (picture(0), QUESTION, {"boxes": [(1, 2, 3)]}, "boxes are (x0, y0, x1, y1) each"),
        (3, QUESTION, {}, "an image is a path, a PIL image or an array, not int"),
        (np.zeros((4, 4, 3)), QUESTION, {}, "expected uint8 of shape (height, width, 3)"),
    ],
)
def test_what_does_not_fit_is_refused(graph, image, question, options, text):
    with pytest.raises(mmf.PromptError, match=re.escape(text)):
        graph.prompt(image, question, **options)


def test_a_processor_without_template_names_the_ways_out():
    processor = tiny_processor()
    processor.chat_template = None
    graph = mmf.adapt(tiny_model(), processor)
    with pytest.raises(mmf.PromptError, match="no chat template: name one of vicuna_v1, llava_llama_3"):
        graph.prompt(picture(0), QUESTION)
    assert len(graph.prompt(picture(0), f"<image> {QUESTION}", raw=True).spans["question"]) == 6


def test_pictures_come_in_every_form(graph, tmp_path):
    image = picture(5)
    image.save(tmp_path / "one.png")
    expected = graph.prompt(image, QUESTION).inputs["pixel_values"]
    for form in (tmp_path / "one.png", str(tmp_path / "one.png"), np.asarray(image), image.convert("RGBA")):
        assert torch.equal(graph.prompt(form, QUESTION).inputs["pixel_values"], expected)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(mmf.DataError, match="cannot be read as an image"):
        graph.prompt(tmp_path / "broken.png", QUESTION)
    with pytest.raises(mmf.DataError, match="there is no image file"):
        graph.prompt(tmp_path / "none.png", QUESTION)


@pytest.mark.parametrize(
    ("tokens", "features", "cause"),
    [
        (0, [576], "the image is missing from the text"),
        (576, [], "no pixel_values came"),
        (1, [576], "the placeholder was not expanded"),
        (577, [576], "one token an image: the class token"),
        (728, [729], "one token an image: the class token"),
        (300, [576], "truncation"),
        (1152, [576], "a smaller patch_size than the tower's"),
    ],
)
def test_token_counts_are_checked_with_the_three_numbers(tokens, features, cause):
    with pytest.raises(mmf.PromptError, match=re.escape(cause)) as error:
        check_counts(tokens, features)
    for number in (tokens, sum(features), len(features)):
        assert str(number) in str(error.value)


def test_a_processor_that_does_not_fit_the_model_is_refused_before_a_forward():
    processor = tiny_processor()
    processor.num_additional_image_tokens = 2
    graph = mmf.adapt(tiny_model(), processor)
    with pytest.raises(mmf.PromptError, match="65 image tokens in the prompt, 64 features from 1 image"):
        graph.prompt(picture(0), QUESTION)
    processor = tiny_processor()
    processor.patch_size = 16
    with pytest.raises(mmf.PromptError, match="16 image tokens in the prompt, 64 features.*larger patch_size"):
        mmf.adapt(tiny_model(), processor).prompt(picture(0), QUESTION)


def test_tensors_of_ones_own_are_checked(graph, prompt):
    batch = graph.batch([prompt, graph.prompt(picture(1), "is there a ring or a cross ? yes")])
    bare = {name: batch.inputs[name] for name in ("input_ids", "pixel_values")}
    with pytest.raises(
        mmf.PromptError, match=re.escape("row(s) [0] start or end with padding, but there is no attention_mask")
    ):
        graph.trace(bare)
    with pytest.raises(mmf.PromptError, match="128 image tokens in the prompt, 64 features from 1 image"):
        graph.trace({**batch.inputs, "pixel_values": batch.inputs["pixel_values"][:1]})
    with pytest.raises(mmf.PromptError, match="no pixel_values came"):
        graph.trace({"input_ids": prompt.inputs["input_ids"]})
    with pytest.raises(mmf.PromptError, match="input_ids are missing"):
        graph.trace({"pixel_values": bare["pixel_values"]})
    with pytest.raises(mmf.PromptError, match="patterns need spans"):
        graph.trace(dict(prompt.inputs), mmf.Knockout(source="image", target="last", layers=1))
    with pytest.raises(mmf.PromptError, match="at least one prompt"):
        graph.batch([])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_row_of_a_batch_equals_the_prompt_alone(attention):
    graph = tiny_graph(attention=attention)
    asked = ((0, QUESTION), (None, "is there a ring ?"), ([1, 2], "do the ring and the cross have the same color ?"))
    prompts = []
    for image, question in asked:
        images = [picture(i) for i in image] if isinstance(image, list) else image if image is None else picture(image)
        prompts.append(graph.prompt(images, question))
    batch = graph.batch(prompts)
    model = graph.adapter.model
    with torch.no_grad():
        together = model(**batch.inputs).logits
        for row, prompt in zip(together, prompts, strict=True):
            alone = model(**prompt.inputs).logits[0]
            # rotary positions differ by the padding: equal up to float32 rounding
            assert (row[-len(prompt) :] - alone).abs().max() <= 2e-5


@pytest.mark.parametrize("kind", ["metaspace", "byte level"])
def test_sub_word_tokenizers(kind):
    """Tokens that carry a leading space or a newline: the question's span decodes back to the question."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    if kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), "\n"]
    questions = ["Is the jar full or empty?", "Which kind of animal is this, a cat or a bird?", "On which side?"]
    texts = [*questions, VICUNA] * 3
    tokenizer.train_from_iterator(texts, BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet))
    processor = tiny_processor()
    processor.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    model = tiny_model()
    model.config.image_token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    graph = mmf.adapt(model, processor)
    for template in (None, "vicuna_v1"):
        for question in questions:
            spans = graph.prompt(picture(0), question, template=template).spans
            ids = [processor.tokenizer.convert_tokens_to_ids(spans.tokens[i]) for i in spans["question"]]
            assert processor.tokenizer.decode(ids).strip() == question
            word = question.split()[1]
            ids = [processor.tokenizer.convert_tokens_to_ids(spans.tokens[i]) for i in spans.text(word)]
            assert word in processor.tokenizer.decode(ids)
            assert spans.tokens[spans["last"].positions[0]].endswith(":")


def test_pad_to_square_keeps_the_whole_picture(graph):
    wide = Image.new("RGB", (128, 64), (255, 0, 0))
    cropped, padded = (graph.prompt(wide, QUESTION, pad_to_square=square).spans["image"] for square in (False, True))
    with pytest.raises(mmf.SpanError, match="pad_to_square=True"):
        cropped.box((0, 0, 16, 16))
    assert len(padded.box((0, 0, 16, 16)))
    assert padded.boxes().count(None) == 32  # half of the square is padding
    assert None not in cropped.boxes()
