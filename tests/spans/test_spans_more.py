"""Span expressions called with every argument, malformed ones, and spans inside padded batches."""

import pickle

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kit.tiny import picture, tiny_graph

import nnsight_mmflow as mmf
from nnsight_mmflow import Span
from nnsight_mmflow.nano import build

WORDS = [word for word in build.words() if word.isalpha()]


@pytest.fixture
def colours(graph):
    """ "or" is a word of its own once, and stands inside "color" before that."""
    return graph.prompt(picture(0), "what color is the circle or ring ?").spans


@pytest.mark.parametrize(
    ("expression", "token"),
    [
        ("text('or')", "or"),
        ("text('or', match='first')", "color"),
        ("text('or', index=0)", "or"),
        ("text(substring='or')", "or"),
    ],
)
def test_an_expression_passes_every_argument_of_text(colours, expression, token):
    assert [colours.tokens[i] for i in colours[expression]] == [token]


def test_an_index_in_an_expression_picks_that_one(graph):
    spans = graph.prompt(picture(0), "is the circle to the left of the ring ?").spans
    for index in range(3):
        assert spans[f"text('the', index={index})"] == spans[f"text('the', {index})"] == spans.text("the", index)


@pytest.mark.parametrize(
    "expression",
    [
        "text(ring)",
        "text()",
        "text(3)",
        "text('ring', 'x')",
        "text('ring', 0, 'first')",
        "text('ring', colour='red')",
        "text(*'ring')",
        "image['a']",
        "image[0:1]",
        "question.last",
        "question | 3",
        "question and last",
        "-image",
        "grid('image')",
    ],
)
def test_a_malformed_expression_is_a_span_error(colours, expression):
    with pytest.raises(mmf.SpanError):
        colours[expression]


def test_added_spans_join_expressions(colours):
    spans = colours.having(mine=colours.text("ring"), both=colours["image | question"])
    assert set(spans["mine | last"]) == {*colours.text("ring"), *colours["last"]}
    assert spans["both - mine"] == colours["(image | question) - text('ring')"]
    assert list(spans)[-2:] == ["mine", "both"]
    with pytest.raises(mmf.SpanError, match="There are: .*all, mine, both"):
        spans["yours"]


def test_the_table_names_counts_and_ends_of_every_span(colours):
    rows = {name: rest for name, *rest in colours.table()}
    assert list(rows) == ["prefix", "image", "question", "suffix", "last", "all"]
    for name, (_, count, first, last) in rows.items():
        held = list(colours[name])
        assert (count, first, last) == (len(held), colours.tokens[held[0]], colours.tokens[held[-1]])
    scattered = colours.having(odd=Span("odd", (3, 5, 6, 9, 11, 13), colours["all"].row), none=~colours["all"])
    rows = {name: rest for name, *rest in scattered.table()}
    assert rows["odd"][0] == "3, 5-6, 9, 11, ..."
    assert rows["none"] == ["", 0, "", ""]
    assert len(str(scattered).splitlines()) == 9


def test_spans_travel(colours):
    again = pickle.loads(pickle.dumps(colours))
    assert again.named == colours.named
    assert again["image"].box((0, 0, 8, 8)) == colours["image"].box((0, 0, 8, 8))


questions = st.lists(st.sampled_from(WORDS), min_size=1, max_size=10).map(" ".join)


@hypothesis_settings(deadline=None, max_examples=25)
@given(questions, questions, questions, st.lists(st.booleans(), min_size=3, max_size=3))
def test_rows_of_a_padded_batch(one, two, three, pictured):
    """In each row four spans partition the real positions, padding is in none, and a span holds the same tokens."""
    graph = tiny_graph()
    prompts = [graph.prompt(picture(0) if has else None, q) for q, has in zip((one, two, three), pictured, strict=True)]
    batch = graph.batch(prompts)
    length = batch.inputs["input_ids"].shape[1]
    for row, prompt, ids, seen in zip(
        batch.spans, prompts, batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True
    ):
        real = set(range(length - len(prompt), length))
        assert set(seen.nonzero().flatten().tolist()) == real == set(row["all"])
        parts = [set(row[name]) for name in ("prefix", "image", "question", "suffix")]
        assert sum(map(len, parts)) == len(real)
        assert set().union(*parts) == real
        for name in row:
            assert set(~row[name]) == real - set(row[name])
            same = prompt.inputs["input_ids"][0, list(prompt.spans[name])]
            assert ids[list(row[name])].tolist() == same.tolist()
        assert row["~(image | question)"] == row["~image & ~question"] == row["prefix | suffix"]
        assert list(row["last"]) == [length - 1]


def test_a_row_of_a_batch_does_not_join_the_prompt_alone(graph, prompt):
    longer = graph.prompt(picture(1), "is the circle to the left or to the right of the square ?")
    batch = graph.batch([prompt, longer])
    with pytest.raises(mmf.SpanError, match="spans join within one row"):
        batch.spans[0]["image"] | prompt.spans["image"]
    with pytest.raises(mmf.SpanError, match="spans join within one row"):
        batch.spans[0]["image"] - batch.spans[1]["image"]
