"""What is printed of a span can be typed, and spans by boxes and options are there wherever spans are named."""

import pytest
import torch

import nnsight_mmflow as mmf
from nnsight_mmflow import Span

PRINTED = (
    *("image", "last", "object", "other", "image - object", "image[0]", "~image", "text('the', 1)", "text('the', 0)"),
    *("image.box((0, 0, 20, 20))", "image.box((0, 0, 9, 9), (50, 50, 64, 64))", "question | suffix"),
    *("(~image) & question", "image - image.box((0, 0, 20, 20))", "text('th', 0, match='first')"),
)


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def prompt(nano):
    return mmf.nano.prompts(nano, 3)[2]  # "is the cross to the right or to the left of the diamond ?"


@pytest.mark.parametrize("expression", PRINTED)
def test_what_is_printed_can_be_typed(prompt, expression):
    span = prompt.spans[expression]
    assert eval(repr(span), {"Span": Span}) == span
    assert prompt.spans[span.name] == span


@pytest.mark.parametrize("name", ["object", "other", "true_option", "false_option", "question_without_options"])
def test_boxes_and_options_name_spans_everywhere(nano, prompt, name):
    longer = nano.prompt(prompt.images[0], prompt.question + " is the cross to the right ?")
    row = nano.batch([longer, prompt]).spans[1]
    padding = row.named["all"].row[0]
    assert padding > 0
    assert [position + padding for position in prompt.spans[name]] == list(row[name])
    assert list(prompt.spans) == ["prefix", "image", "question", "suffix", "last", "all"], "they are not listed"
    with torch.no_grad(), nano.trace(prompt):
        clean = nano.unembed.output[0, -1].save()
    with torch.no_grad(), nano.trace(prompt, mmf.Knockout(source=name, target="last", layers=range(nano.n_layers))):
        cut = nano.unembed.output[0, -1].save()
    assert not torch.equal(clean, cut)
    quiet = {"only_correct": False, "progress": False, "report": str}
    assert mmf.lens(nano, prompt, at=name, **quiet).header["at"] == name
    assert set(mmf.skip_flow(nano, prompt, [name], **quiet).to_frame()["span"]) == {name}


def test_they_are_the_papers(prompt):
    spans = prompt.spans
    assert set(spans["object"]) | set(spans["other"]) == set(spans["image"])
    assert not set(spans["object"]) & set(spans["other"])
    assert spans["true_option"] == spans["text('right', 0)"]
    assert spans["question_without_options"] == spans["question - true_option - false_option"]


def test_without_boxes_and_options_it_is_said_what_to_give(nano):
    plain = nano.prompt(mmf.nano.samples(1)[0].image, "what color is the diamond ?")
    with pytest.raises(mmf.SpanError, match=r"no boxes: graph.prompt\(..., boxes="):
        plain.spans["object"]
    with pytest.raises(mmf.SpanError, match=r"no options: graph.prompt\(..., options="):
        plain.spans["question - true_option"]
    with pytest.raises(mmf.SpanError, match="boxes are numbers"):
        plain.spans["image.box(here)"]


def test_another_object_of_the_same_question_has_its_own_spans(prompt):
    from dataclasses import replace

    moved = replace(prompt, boxes=((0, 0, 16, 16),))
    assert moved.spans["object"] != prompt.spans["object"]
