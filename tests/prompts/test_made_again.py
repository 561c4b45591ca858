"""A prompt made from a prompt keeps all that it was made with, in every way a corruption makes one."""

from dataclasses import replace

import pytest
import torch
from kit.families import FAMILIES, QUESTION, family
from kit.tiny import picture, tiny_graph
from PIL import Image

import nnsight_mmflow as mmf
from nnsight_mmflow.model import remade as _again
from nnsight_mmflow.model.remade import made_again
from nnsight_mmflow.patterns.trace import corruption

KEPT = {"answer": "red", "options": ("red", "blue"), "boxes": ((8, 8, 24, 20),), "key": "k7", "kind": "mine"}
WAYS = {
    "plain": {},
    "squared": {"pad_to_square": True},
    "an instruction": {"instruction": "is there a ring ?", "pad_to_square": True},
    "the question again": {"instruction": "is the circle red ?"},
    "raw": {"raw": True, "pad_to_square": True},
    "long": {"max_aspect_ratio": 400},
}
ASKED, OTHER = "is the circle red ?", "is the square red ?"
HOW = {
    "phrase": lambda g, p: corruption.replace_phrase(g, p, "the circle", "the square"),
    "token": lambda g, p: corruption.repeat_token(g, p, "the circle", "ring"),
    "image": lambda g, p: corruption.other_image(g, p, picture(9, *p.images[0].size)),
    "blank": lambda g, p: corruption.blank_image(g, p),
    "box": lambda g, p: corruption.masked_box(g, p, [(0, 0, 16, 16)]),
}


@pytest.fixture(scope="module")
def small():
    return tiny_graph()


def asked(graph, way, question=ASKED, image=None):
    size = (900, 3) if way == "long" else (64, 40)
    boxes = {} if way == "long" else {"boxes": KEPT["boxes"]}
    text = f"the picture <image> {question}" if WAYS[way].get("raw") else question
    options = {**KEPT, **boxes, **WAYS[way]}
    if way == "long":
        options.pop("boxes")
    return graph.prompt(picture(2, *size) if image is None else image, text, **options)


def same(one, other, names=None):
    """What differs between two prompts."""
    wrong = [name for name in (*KEPT, "text", "question", "made") if getattr(one, name) != getattr(other, name)]
    wrong += [name for name in one.inputs if not torch.equal(one.inputs[name], other.inputs[name])]
    wrong += [name for name in one.spans if one.spans[name].positions != other.spans[name].positions]
    wrong += ["images"] * ([p.tobytes() for p in one.images] != [p.tobytes() for p in other.images])
    wrong += ["tokens"] * (one.spans.tokens != other.spans.tokens)
    wrong += ["geometry"] * (
        [i.geometry for i in one.spans["image"].images] != [i.geometry for i in other.spans["image"].images]
    )
    return wrong


@pytest.mark.parametrize("way", WAYS)
def test_each_way_equals_the_prompt_made_from_the_start(small, way):
    """The reference is the prompt that graph.prompt makes of the changed question or picture, all else the same."""
    prompt = asked(small, way)
    assert same(made_again(small, prompt), prompt) == []
    assert same(HOW["phrase"](small, prompt).prompt, asked(small, way, OTHER)) == []
    for name, image in (
        ("image", picture(9, *prompt.images[0].size)),
        ("blank", Image.new("RGB", prompt.images[0].size, (127,) * 3)),
    ):
        assert same(HOW[name](small, prompt).prompt, asked(small, way, image=image)) == []
    repeated = HOW["token"](small, prompt).prompt
    ids = prompt.inputs["input_ids"].clone()
    ids[0, list(prompt.spans.text("the circle", 0))] = small.processor.tokenizer.convert_tokens_to_ids("ring")
    assert torch.equal(repeated.inputs["input_ids"], ids)
    if way != "long":
        painted = prompt.images[0].copy()
        painted.paste((127, 127, 127), (0, 0, 16, 16))
        assert same(HOW["box"](small, prompt).prompt, asked(small, way, image=painted)) == []


def test_corruptions_of_corruptions_keep_the_first(small):
    """Tokens that were put in by hand stay when the picture is changed behind them."""
    prompt = asked(small, "squared")
    repeated = HOW["token"](small, prompt).prompt
    both = HOW["blank"](small, repeated).prompt
    assert torch.equal(both.inputs["input_ids"], repeated.inputs["input_ids"])
    assert both.spans.tokens == repeated.spans.tokens
    assert not torch.equal(both.inputs["pixel_values"], prompt.inputs["pixel_values"])
    with pytest.raises(mmf.PromptError, match="tokens of prompt .* were replaced by hand"):
        HOW["phrase"](small, repeated)
    again = HOW["blank"](small, HOW["phrase"](small, prompt).prompt).prompt
    assert again.question == OTHER
    assert again.made.pad_to_square


def test_spans_that_were_added_stay(small):
    prompt = asked(small, "plain")
    marked = replace(prompt, spans=prompt.spans.having(mine=prompt.spans["image"].box((0, 0, 16, 16))))
    for name in ("phrase", "token", "image", "blank", "box"):
        assert HOW[name](small, marked).prompt.spans["mine"].positions == marked.spans["mine"].positions


def test_several_pictures_stay_in_their_order(small):
    prompt = small.prompt([picture(0), picture(1)], ASKED, pad_to_square=True)
    made = HOW["image"](small, prompt).prompt
    expected = small.prompt([picture(9), picture(1)], ASKED, pad_to_square=True)
    assert same(made, expected) == []


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "paligemma2"])
def test_every_family_makes_prompts_again(name):
    """Whatever a family puts around image and question: the place of the question is remembered, not searched."""
    graph = family(name)
    settings = {"answer": "red", "key": "k", "instruction": QUESTION, "boxes": [(4, 4, 30, 30)]}
    prompt = graph.prompt(picture(0, 80, 48), QUESTION, **settings)
    assert same(made_again(graph, prompt), prompt) == []
    changed = corruption.replace_phrase(graph, prompt, "circle", "ring").prompt
    assert same(changed, graph.prompt(picture(0, 80, 48), QUESTION.replace("circle", "ring"), **settings)) == []
    other = corruption.other_image(graph, prompt, picture(1, 80, 48)).prompt
    assert same(other, graph.prompt(picture(1, 80, 48), QUESTION, **settings)) == []


def test_boxes_are_kept_for_a_picture_of_the_same_size_only(small):
    prompt = asked(small, "plain")
    assert corruption.other_image(small, prompt, picture(3, 64, 40)).prompt.boxes == KEPT["boxes"]
    assert corruption.other_image(small, prompt, picture(3, 40, 64)).prompt.boxes == ()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda g, p, t: corruption.blank_image(g, t), "has no picture to corrupt"),
        (lambda g, p, t: corruption.masked_box(g, t, [(0, 0, 4, 4)]), "has no picture to corrupt"),
        (lambda g, p, t: corruption.other_image(g, t, picture(0)), "has no picture that another could stand for"),
        (lambda g, p, t: corruption.masked_box(g, p, []), "no box was given"),
        (lambda g, p, t: corruption.masked_box(g, p, [(0, 0, 4)]), "four numbers"),
        (lambda g, p, t: corruption.masked_box(g, p, [(0, 0, float("nan"), 4)]), "no place in a picture|finite number"),
        (lambda g, p, t: corruption.masked_box(g, p, [(0, 0, float("inf"), 4)]), "no place in a picture|finite number"),
        (lambda g, p, t: corruption.masked_box(g, p, [(9, 9, 4, 4)]), "has no area"),
        (lambda g, p, t: corruption.masked_box(g, p, [(64, 0, 70, 4)]), "lies outside the picture, which is 64x40"),
        (lambda g, p, t: corruption.masked_box(g, p, [(0, 0, 4, 4)], (1, 2)), "colou?r"),
        (lambda g, p, t: corruption.blank_image(g, p, (0, 0, 256)), "colou?r"),
        (lambda g, p, t: corruption.blank_image(g, p, (-1, 0, 0)), "colou?r"),
        (lambda g, p, t: corruption.other_image(g, p, "gone.png"), "there is no image file"),
        (lambda g, p, t: corruption.replace_phrase(g, p, "the circle", "<image> ring"), "names 2 image|image"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused(small, make, text):
    prompt = asked(small, "plain")
    with pytest.raises(mmf.MMFlowError, match=text):
        make(small, prompt, small.prompt(None, ASKED))


@pytest.mark.parametrize(
    ("box", "painted"),
    [((0.4, 0.4, 1.2, 1.6), (0, 0, 2, 2)), ((3, 3, 3.5, 3.5), (3, 3, 4, 4)), ((60, 30, 99, 99), (60, 30, 64, 40))],
)
def test_every_pixel_that_a_box_touches_is_painted(small, box, painted):
    prompt = asked(small, "plain")
    expected = prompt.images[0].copy()
    expected.paste((127, 127, 127), painted)
    assert corruption.masked_box(small, prompt, [box]).prompt.images[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("fault", ["pad_to_square", "place", "options"])
def test_the_table_can_fail(small, monkeypatch, fault):
    """What the old replace_phrase lost, planted again."""
    prompt = asked(small, "squared" if fault != "place" else "the question again")
    real = _again.encode
    if fault == "pad_to_square":
        monkeypatch.setattr(
            _again,
            "encode",
            lambda adapter, text, place, pictures, squared: real(adapter, text, place, pictures, False),
        )
        assert "pixel_values" in same(HOW["phrase"](small, prompt).prompt, asked(small, "squared", OTHER))
    elif fault == "options":
        monkeypatch.setattr(corruption, "made_again", lambda *a, **k: replace(made_again(*a, **k), options=None))
        assert "options" in same(HOW["phrase"](small, prompt).prompt, asked(small, "squared", OTHER))
    else:  # the last place where the text stands, as rpartition found it: the instruction
        start = prompt.text.rfind(ASKED)
        moved = replace(prompt, made=replace(prompt.made, place=(start, start + len(ASKED))))
        assert "text" in same(HOW["phrase"](small, moved).prompt, asked(small, "the question again", OTHER))
