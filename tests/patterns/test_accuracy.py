"""Generated answers: those of plain transformers, by each rule, with Wilson's interval and what stays as it was."""

import dataclasses

import pytest
import torch

import nnsight_mmflow as mmf
from nnsight_mmflow.runs.intervals import wilson

QUIET = {"progress": False, "report": lambda text: None}


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def prompts(nano):
    return mmf.nano.prompts(nano, 6)


BLIND = mmf.Knockout(source="image", target="~image", layers=range(10), when="all")


def test_answers_are_those_of_plain_generations(nano, prompts):
    wrong = dataclasses.replace(prompts[0], answer="red")
    none = dataclasses.replace(prompts[1], answer=None)
    result = mmf.accuracy(nano, [wrong, none, *prompts[2:]], BLIND, batch_size=3, **QUIET)
    table, counted = result.to_frame(), [wrong, *prompts[2:]]
    for row, prompt in zip(table.itertuples(), counted, strict=True):
        with torch.no_grad():
            ids = nano.adapter.model.generate(**prompt.inputs, max_new_tokens=16, do_sample=False)
            with nano.generate(prompt, BLIND, max_new_tokens=16, do_sample=False) as tracer:
                closed = tracer.result.save()
        texts = [
            nano.processor.tokenizer.decode(one[0, len(prompt) :], skip_special_tokens=True).strip()
            for one in (ids, closed)
        ]
        assert [row.clean, row.generated] == texts
        assert (row.clean_right, row.right) == tuple(float(text.lower() == prompt.answer) for text in texts)
        assert row.agrees == (texts[0] == texts[1])
    assert result.n == 5
    assert result.header["left_out"] == {"no answer": 1}
    assert result.clean_accuracy == pytest.approx(4 / 5)
    assert result.accuracy < result.clean_accuracy
    assert result.agreement == pytest.approx(table["agrees"].mean())
    assert result.agreement < 1
    assert result.interval == wilson(float(table["right"].sum()), 5)
    assert "n = 5" in result.summary()
    assert "(n=5)" in result.plot().axes[0].get_yticklabels()[0].get_text()


def test_wilsons_interval():
    """Against the closed form solved by hand: the p at which |share - p| is 1.96 standard errors of p."""
    for right, n in ((0, 5), (3, 7), (81, 263), (10, 10), (2.5, 9)):
        share = right / n
        for end in wilson(right, n):
            if 1e-9 < end < 1 - 1e-9:
                assert abs(share - end) == pytest.approx(1.959963984540054 * (end * (1 - end) / n) ** 0.5, abs=1e-9)
        low, high = wilson(right, n)
        assert 0 <= low <= share <= high <= 1


def test_rules(nano, prompts):
    one = prompts[:1]
    said = mmf.accuracy(nano, one, **QUIET).table["clean"][0]
    capital = [dataclasses.replace(one[0], answer=said.upper() + ".")]
    found = {match: mmf.accuracy(nano, capital, match=match, **QUIET).accuracy for match in ("exact", "gqa", "vqa")}
    assert found == {"exact": 0.0, "gqa": 1.0, "vqa": 1.0}
    half = mmf.accuracy(nano, prompts, match=lambda prompt, written: 0.5, **QUIET)
    assert half.accuracy == 0.5
    assert half.header["match"] == "<lambda>"
    pope = mmf.data.read_benchmark("pope", [{"question_id": 1, "image": "a.jpg", "text": "Is it ?", "label": "yes"}])
    asked = dataclasses.replace(one[0], key="1", answer="yes")
    assert (
        mmf.accuracy(nano, asked, match=pope.judge, **QUIET).accuracy
        == mmf.accuracy(nano, asked, match="pope", **QUIET).accuracy
        == 1
    )
    wrong = {
        "is no rule": "foo",
        "a rule's name or a function": 3,
        "match gave 7": lambda prompt, written: 7,
        "match gave 'x'": lambda prompt, written: "x",
        "match failed for .*ValueError.*called as match\\(prompt, written\\)": lambda prompt, written: int(written),
        "match failed for .*TypeError": lambda written: 1.0,
    }
    for told, match in wrong.items():
        with pytest.raises(mmf.MMFlowError, match=told):
            mmf.accuracy(nano, one, match=match, **QUIET)


def test_refused_before_any_forward(nano, prompts, tmp_path):
    for told, run in {
        "none of 1 prompts has an answer": lambda: mmf.accuracy(
            nano, dataclasses.replace(prompts[0], answer=None), **QUIET
        ),
        "would change nothing": lambda: mmf.accuracy(
            nano, prompts, mmf.Knockout(source="last", target="image", layers=1), **QUIET
        ),
        "a pattern is expected": lambda: mmf.accuracy(nano, prompts, "blind", **QUIET),
    }.items():
        with pytest.raises(mmf.MMFlowError, match=told):
            run()


def test_a_span_of_one_prompt_runs_alone_and_folders_go_on(nano, prompts, tmp_path):
    corner = mmf.Knockout(source=prompts[0].spans["image"].part(range(10, 20), "corner"), target="last", layers=3)
    told = []
    first = mmf.accuracy(nano, prompts[0], corner, folder=tmp_path, progress=False, report=told.append)
    assert "1 at once" in told[0]
    again = mmf.accuracy(nano, prompts[0], corner, folder=tmp_path, match="vqa", progress=False, report=told.append)
    assert "0 generation(s)" in told[1]
    assert again.table["generated"].equals(first.table["generated"])
    assert mmf.results.AccuracyResult.load(tmp_path).table.equals(again.table)
    longest = [dataclasses.replace(prompts[0], answer="red " * 20)]
    assert mmf.accuracy(nano, longest, **QUIET).header["max_new_tokens"] == 28
