"""Spans: the partition, the algebra, expressions, and finding text."""

import re

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kit.tiny import picture, tiny_graph

import nnsight_mmflow as mmf
from nnsight_mmflow import Span
from nnsight_mmflow.nano import build

WORDS = [word for word in build.words() if word.isalpha()]
positions = st.sets(st.integers(3, 20))


def span(held):
    return Span("x", tuple(sorted(held)), (3, 21))


@given(positions, positions)
def test_algebra_is_that_of_sets(a, b):
    one, other = span(a), span(b)
    assert set(one | other) == a | b
    assert set(one & other) == a & b
    assert set(one - other) == a - b
    assert set(~one) == set(range(3, 21)) - a  # positions before 3 are padding, never in a span
    assert len(one) == len(a)
    assert list(one) == sorted(a)
    assert (one == other) == (a == b)


def test_spans_of_two_rows_do_not_join():
    with pytest.raises(mmf.SpanError, match=re.escape("take both from prompts.spans[i]")):
        span({4}) | Span("y", (4,), (0, 21))
    with pytest.raises(mmf.SpanError, match="both sides must be spans"):
        span({4}) | {5}


@hypothesis_settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), st.integers(0, 2))
def test_four_spans_partition_the_row(words, images):
    question = " ".join(words)
    prompt = tiny_graph().prompt([picture(i) for i in range(images)] or None, question)
    spans = prompt.spans
    parts = [set(spans[name]) for name in ("prefix", "image", "question", "suffix")]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(prompt)
    assert [spans.tokens[i] for i in spans["question"]] == question.split()
    assert len(spans["image"]) == 64 * images
    assert list(spans["last"]) == [len(prompt) - 1]
    for image in range(images):
        assert len(spans[f"image[{image}]"]) == 64


@pytest.mark.parametrize(
    ("expression", "same"),
    [
        ("question | suffix", lambda s: s["question"] | s["suffix"]),
        ("~image", lambda s: ~s["image"]),
        ("question - text('red')", lambda s: s["question"] - s.text("red")),
        ("(prefix | image) & ~last", lambda s: (s["prefix"] | s["image"]) & ~s["last"]),
        ("image[0]", lambda s: s["image"][0]),
        ("text('is the', 0)", lambda s: s.text("is the", 0)),
    ],
)
def test_expressions(prompt, expression, same):
    assert prompt.spans[expression] == same(prompt.spans)


@pytest.mark.parametrize("expression", ["imag", "question +", "image[1]", "question * last", "__import__('os')", ""])
def test_bad_expressions_say_what_there_is(prompt, expression):
    with pytest.raises(mmf.SpanError, match="There are: prefix, image, question|holds 1 image"):
        prompt.spans[expression]


def test_text_takes_whole_words_and_says_when_there_are_two(graph):
    spans = graph.prompt(picture(0), "is the thing on the right or left of the ring ?").spans
    assert [spans.tokens[i] for i in spans.text("ring")] == ["ring"]
    with pytest.raises(mmf.SpanError, match=re.escape("'the' occurs 3 times")):
        spans.text("the")
    assert spans.text("the", 2).positions > spans.text("the", 1).positions > spans.text("the", 0).positions
    # the released rule: the first hit after the images, even inside another word
    assert [spans.tokens[i] for i in spans.text("in", match="first")] == ["thing"]
    assert [spans.tokens[i] for i in spans.text("the", match="first")] == ["the"]
    assert [spans.tokens[i] for i in spans.text("ng on th")] == ["thing", "on", "the"]
    assert [spans.tokens[i] for i in spans.text("ASSISTANT")] == ["ASSISTANT"]  # not in the question: the whole prompt
    for bad, text in (("blue", "does not occur"), ("", "an empty one")):
        with pytest.raises(mmf.SpanError, match=text):
            spans.text(bad)
    with pytest.raises(mmf.SpanError, match="it occurs 3 time"):
        spans.text("the", 3)


def test_boxes_follow_the_algebra(prompt):
    image = prompt.spans["image"]
    found = image.box((0, 0, 16, 8))
    assert list(found) == [3, 4]
    assert found.boxes() == ((0, 0, 8, 8), (8, 0, 16, 8))
    assert len(image - found) == 62
    assert (image - found).grid == (8, 8)
    with pytest.raises(mmf.SpanError, match="lies outside the 62 tokens"):
        (image - found).box((0, 0, 16, 8))
    with pytest.raises(mmf.SpanError, match='needs an image span, such as spans\\["image"\\]'):
        prompt.spans["question"].boxes()


def test_several_images_are_asked_one_by_one(graph):
    spans = graph.prompt([picture(0), picture(1)], "is it red ?".replace("it", "the circle")).spans
    assert spans["image[0]"] | spans["image[1]"] == spans["image"]
    assert spans["image"][1].box((0, 0, 8, 8)).positions == spans["image[1]"].positions[:1]
    with pytest.raises(mmf.SpanError, match="holds 2 images: ask one of them"):
        _ = spans["image"].grid


def test_table_and_having(prompt):
    spans = prompt.spans.having(mine=prompt.spans.text("red"))
    assert "mine      71" in str(spans)
    assert "3-66" in str(spans)
    assert "&lt;image&gt;" in spans._repr_html_()
    assert "mine" not in prompt.spans


def test_padding_moves_every_span_by_the_same_tokens(graph, prompt):
    long = graph.prompt(picture(1), "is the circle to the left or to the right of the square ?")
    batch = graph.batch([prompt, long])
    by = len(long) - len(prompt)
    row = batch.spans[0]
    for name, one in prompt.spans.named.items():
        assert [row.tokens[i] for i in row[name]] == [prompt.spans.tokens[i] for i in one]
        assert list(row[name]) == [i + by for i in one]
    assert set(~row["image"]).isdisjoint(range(by))
    assert list(row.text("red")) == [i + by for i in prompt.spans.text("red")]
    assert list(row["image"].box((0, 0, 8, 8))) == [3 + by]
