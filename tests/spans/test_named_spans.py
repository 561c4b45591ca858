"""Spans of one's own: named by boxes, masks, words and expressions; kept in batches, copies and results."""

import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from kit.experiments import ROWS, prompts_of
from kit.families import QUESTION, family
from kit.tiny import picture, tiny_graph
from PIL import Image

import nnsight_mmflow as mmf
from nnsight_mmflow.model.remade import made_again
from nnsight_mmflow.patterns.trace import corruption
from nnsight_mmflow.prompts.asked import named_in_pixels

BOX = (8, 8, 24, 20)
UNTOLD = {"progress": False, "report": str}


@pytest.fixture(scope="module")
def small():
    return tiny_graph()


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


def mask_of(size, *boxes):
    """True in the boxes, (height, width)."""
    made = np.zeros(size[::-1], bool)
    for left, top, right, bottom in boxes:
        made[top:bottom, left:right] = True
    return made


def covered(span, mask, share):
    """The tokens that count, by painting each one's box on a picture eight times as fine: slow and plain."""
    fine = mask.repeat(8, 0).repeat(8, 1)
    found = []
    for position, box in zip(span, span.boxes(), strict=True):
        if box is None:
            continue
        left, top, right, bottom = (round(8 * edge) for edge in box)
        if fine[top:bottom, left:right].mean() >= share:
            found.append(position)
    return found


def test_boxes_masks_words_and_expressions_name_spans(small):
    spans = small.prompt(picture(0, 64, 64), "is the red circle on the left ?").spans
    two = [BOX, (40, 40, 48, 48)]
    mask = mask_of((64, 64), (8, 8, 24, 20))
    made = spans.having(
        sky=BOX, both=two, as_array=np.array(BOX), rest="image - sky", thing="red circle", side=spans.text("left")
    )
    assert made["sky"] == spans["image"].box(BOX) == made["as_array"]
    assert made["both"] == spans["image"].box(*two)
    assert made["rest"] == spans["image"] - spans["image"].box(BOX)
    assert made["thing"] == spans.text("red circle")
    assert made["side"] == spans.text("left")
    assert [made[name].name for name in ("sky", "rest", "thing")] == ["sky", "rest", "thing"]
    assert made["sky | last"] == made["sky"] | made["last"]
    assert made["sky"].grid == (8, 8)
    assert "sky" not in spans
    forms = {
        "numpy": mask,
        "bytes": mask.astype(np.uint8) * 255,
        "torch": torch.from_numpy(mask),
        "stacked": torch.from_numpy(mask)[None],
        "PIL": Image.fromarray(mask),
        "grey": Image.fromarray(mask.astype(np.uint8) * 255),
        "by picture": {0: mask},
    }
    found = {name: list(spans.having(a=value)["a"]) for name, value in forms.items()}
    assert set(map(tuple, found.values())) == {tuple(covered(spans["image"], mask, 0.5))}, found
    assert list(spans.having(a=mask, share=0.4)["a"]) == covered(spans["image"], mask, 0.4)
    assert "sky" in str(made)
    assert pickle.loads(pickle.dumps(made)).given["sky"].boxes == made.given["sky"].boxes


def test_other_and_the_object_follow_what_is_named(small):
    prompt = small.prompt(picture(0), "is the circle red ?", boxes=[BOX])
    named = prompt.spans.having(object=(32, 32, 48, 48))
    assert named["object"] == prompt.spans["image"].box((32, 32, 48, 48))
    assert named["other"] == prompt.spans["image"] - named["object"]
    assert prompt.spans["object"] == prompt.spans["image"].box(BOX)
    same = small.prompt(picture(0), "is the circle red ?", boxes={"object": BOX})
    assert same.boxes == prompt.boxes


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "qwen2_vl", "idefics3", "gemma3", "internvl"])
def test_masks_go_by_the_real_geometry(name):
    """Every view counts: the small whole picture and the tiles; odd sizes, crops and padding too."""
    graph = family(name)
    prompt = graph.prompt(picture(0, 90, 50), QUESTION)
    image = prompt.spans["image"]
    mask = np.random.default_rng(1).random((50, 90)) < 0.5
    mask[:, 45:] |= mask_of((90, 50), (45, 0, 90, 30))[:, 45:]
    found = prompt.spans.having(thing=mask, share=0.55)["thing"]
    slow = []
    for position, place in zip(image, image.places(), strict=True):
        if place.box is None:
            continue
        left, top, right, bottom = place.box
        x = np.clip(np.minimum(np.arange(1, 91), right) - np.maximum(np.arange(90), left), 0, 1)
        y = np.clip(np.minimum(np.arange(1, 51), bottom) - np.maximum(np.arange(50), top), 0, 1)
        if (mask * y[:, None] * x).sum() / ((right - left) * (bottom - top)) >= 0.55 - 1e-9:
            slow.append(position)
    assert list(found) == slow
    assert 0 < len(found) < len(image)
    views = {place.view for place in image.places() if place.box}
    assert {place.view for place in found.places()} == views


def test_several_pictures(small):
    prompt = small.prompt(
        [picture(0), picture(1, 80, 40)],
        "is the circle red ?",
        boxes={"sky": {1: (30, 0, 50, 10)}, "both": {0: BOX, 1: [(30, 0, 50, 10)]}, "first": BOX},
        masks={"sea": {1: mask_of((80, 40), (40, 0, 80, 40))}},
    )
    one, two = prompt.spans["image"][0], prompt.spans["image"][1]
    assert prompt.spans["sky"] == two.box((30, 0, 50, 10))
    assert prompt.spans["both"] == one.box(BOX) | two.box((30, 0, 50, 10))
    assert prompt.spans["first"] == one.box(BOX)
    assert set(prompt.spans["sea"]) < set(two)
    with pytest.raises(mmf.SpanError, match=r"sky: pictures are named by number.* has 2; 2 \(int\) came"):
        prompt.spans.having(sky={2: BOX})


def test_what_names_nothing_is_refused(small):
    spans = small.prompt(picture(0, 64, 40), "is the circle red ?").spans
    wrong = {
        "sky": [
            (
                mask_of((40, 64), (0, 0, 9, 9)),
                r"the mask is 40x64 pixels .* picture 64x40 \(upright\). Is it transposed",
            ),
            (np.zeros((40, 64), bool), "the mask of 64x40 pixels is empty"),
            (
                mask_of((64, 40), (20, 4, 22, 6)),
                r"no image token is covered by at least 50% .* give share=0\.\d+ or less",
            ),
            (np.random.default_rng(0).random((40, 64)), r"boolean, but float64 with \d+ different values"),
            (np.zeros((3, 40, 64), bool), "an array of shape"),
            ((0, 0, 9), "a box .* is expected|four numbers"),
            ((9, 9, 0, 0), "sky: box .* has no area"),
            ((200, 200, 220, 220), "sky: box .* lies outside the picture"),
            ("umbrella", "is no span's name or expression, and as words: 'umbrella' does not occur"),
            ("image[3]", r"image\[3\] was asked for"),
            (3, "is expected, but 3"),
            ({}, "no box or mask came"),
        ],
        "last": [(BOX, "'last' is the name of a span that every prompt has")],
        "image": [(BOX, "give yours another name")],
        "a->b": [(BOX, "is no name of a span")],
    }
    failed = []
    for name, rows in wrong.items():
        for value, text in rows:
            try:
                spans.having(**{name: value})
                failed.append(f"{name}={value!r:.50} was taken")
            except mmf.SpanError as error:
                if not re.search(text, str(error)):
                    failed.append(f"{name}={value!r:.50}: {error}")
    assert not failed, "\n".join(failed)
    with pytest.raises(mmf.SpanError, match="share=0"):
        spans.having(a=np.ones((40, 64), bool), share=0)
    with pytest.raises(mmf.SpanError, match="the prompt has none"):
        small.prompt(None, "is the circle red ?").spans.having(sky=BOX)
    ask = {"image": picture(0), "question": "is the circle red ?"}
    for given, text in (
        ({"boxes": {"a": BOX}, "masks": {"a": np.ones((64, 64), bool)}}, "'a' is given by boxes and by a mask"),
        ({"boxes": [BOX], "masks": {"object": np.ones((64, 64), bool)}}, "the object is given by boxes and by a mask"),
        ({"boxes": {"object": (9, 9, 1, 1)}}, "has no area"),
    ):
        with pytest.raises(mmf.MMFlowError, match=text):
            small.prompt(**ask, **given)
    for boxes, masks in (((), np.ones((64, 64), bool)), ({3: BOX}, None)):
        with pytest.raises(mmf.PromptError, match="are given by name"):
            named_in_pixels(boxes, masks)


def test_batches_and_copies_keep_them(small):
    mask = mask_of((64, 40), (0, 0, 32, 40))
    prompt = small.prompt(
        picture(2, 64, 40), "is the circle red ?", "red", boxes={"sky": BOX}, masks={"left": mask}, share=0.9
    )
    marked = replace(prompt, spans=prompt.spans.having(word="red", rest="image - sky"))
    assert "named=('sky', 'left', 'word', 'rest')" in repr(marked)
    long = small.prompt(picture(1), "is the circle to the left or to the right of the square ?")
    batch, by = small.batch([marked, long]), len(long) - len(marked)
    assert [list(batch.spans[0][name]) for name in marked.spans.given] == [
        [at + by for at in marked.spans[name]] for name in marked.spans.given
    ]
    with pytest.raises(mmf.SpanError, match="'sky' is no span"):
        batch.spans[1]["sky"]
    ways = {
        "again": made_again(small, marked),
        "phrase": corruption.replace_phrase(small, marked, "circle", "square").prompt,
        "token": corruption.repeat_token(small, marked, "circle", "ring").prompt,
        "image": corruption.other_image(small, marked, picture(9, 64, 40)).prompt,
        "blank": corruption.blank_image(small, marked).prompt,
    }
    for way, made in ways.items():
        for name in marked.spans.given:
            assert made.spans[name] == marked.spans[name], (way, name)
        assert dict(made.spans.given) == dict(marked.spans.given), way
    longer = made_again(small, marked, question="is the big red thing a circle ?".replace("big", "left"))
    assert longer.spans["sky"] == longer.spans["image"].box(BOX)
    assert longer.spans["word"] == longer.spans.text("red")
    turned = made_again(small, marked, image=picture(9, 40, 64))
    assert "sky" not in turned.spans
    assert "left" not in turned.spans
    assert turned.spans["word"] == marked.spans["word"]


# Every argument by which an experiment is told a span takes one of the user's own, and the result tells its name.
OWN = "my_part"
PLACES = {
    "flow": {"edges": [f"{OWN}->last"]},
    "skip_flow": {"spans": [OWN]},
    "lens": {"at": OWN},
    "word_overlap": {"at": OWN},
    "contributions": {"source": OWN},
    "causal_trace": {"spans": [OWN]},
    "attribution_patching": {"spans": [OWN]},
    "kept_tokens": {},
    "prune_report": {},
    "edit": {},
    "edit_report": {},
    "knockout_by_token": {"source": OWN},
    "knockout_by_patch": {"source": OWN},
    "lens_by_patch": {"source": OWN},
    "attention": {"source": OWN},
    "attention_and_effect": {"source": OWN},
    "features": {"at": OWN},
    "sweep": {"over": [OWN], "make": lambda span: mmf.Knockout(source=span, target="last", layers=range(6))},
    "accuracy": {},
    "saliency": None,  # its groups are the paper's: system, image, instruction
    "disruption": None,  # its ways are the paper's
}
EXPRESSION = {"source", "target", "at", "spans", "edges"}


def own(prompt):
    """The prompt with a span of its own: a mask of the left half of its picture; words where it has no picture."""
    width, height = prompt.images[0].size
    return replace(prompt, spans=prompt.spans.having(**{OWN: mask_of((width, height), (0, 0, width // 2, height))}))


def settings_of(row, given):
    """What is given and the settings of a row, with the own span in place of each that is named."""
    if row.function == "kept_tokens":
        return (given[0], mmf.prune.Keep(at=OWN, from_layer=3)), {}
    if row.function == "sweep":
        return given[:1], {**PLACES["sweep"], "only_correct": False}
    if row.function == "accuracy":
        return (given[0], mmf.Knockout(source=OWN, target="last", layers=range(6))), row.settings
    if row.function == "prune_report":
        return (given[0], [mmf.prune.Keep(at=OWN, from_layer=3)]), {"max_new_tokens": 1, "timed": 0, "controls": 0}
    if row.function in ("edit", "edit_report"):
        facts = [replace(fact, prompt=own(fact.prompt), at=OWN) for fact in given[0]]
        return (facts, *given[1:]), {**row.settings}
    return given, {**row.settings, **PLACES[row.function]}


def named_places():
    return {row.function: row for row in reversed(ROWS)}


def test_every_experiment_takes_a_span_of_ones_own_and_tells_its_name(nano):
    rows, failed = named_places(), []
    assert set(rows) == set(PLACES), "a new experiment joins by a line in PLACES"
    one, two = map(own, prompts_of(nano))
    for name, row in rows.items():
        if PLACES[name] is None:
            continue
        given, settings = settings_of(row, row.given(nano, one, two))
        if name in ("causal_trace", "attribution_patching"):
            given = [own(one) for one in given[0]], given[1]
        if name == "causal_trace":
            settings["controls"] = 0
        try:
            result = getattr(mmf, name)(nano, *given, **settings, **UNTOLD)
        except mmf.MMFlowError as error:
            failed.append(f"{name}: {type(error).__name__}: {error}"[:300])
            continue
        frame = result.to_frame()
        cells = {str(cell) for column in frame.columns for cell in frame[column].head(2000)}
        if OWN not in repr(result) and not any(OWN in cell for cell in cells):
            failed.append(f"{name}: neither the frame nor {result!r} tells the span's name")
    assert not failed, "\n".join(failed)
