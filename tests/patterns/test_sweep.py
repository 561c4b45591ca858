"""Sweeps over anything: rows and forwards agree, with flow, with hand-made masks, and with generations."""

import dataclasses
import itertools

import nnsight
import numpy as np
import pytest
import torch
from kit.gold import Cut, gold_logits, places, twin
from kit.tiny import picture, tiny_graph

import nnsight_mmflow as mmf

QUIET = {"progress": False, "report": lambda text: None}
LOOSE = {"only_correct": False, **QUIET}
SAME = 5e-5


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def prompts(nano):
    return mmf.nano.prompts(nano, 2)


def blocked(layers):
    return mmf.Knockout(source="image", target="last", layers=layers)


@pytest.mark.parametrize("score", ["first", "answer"])
def test_a_sweep_of_knockouts_is_flow(nano, prompts, score):
    prompts = [dataclasses.replace(one, answer=f"{one.answer} red") for one in prompts]
    windows = [range(max(0, centre - 1), min(nano.n_layers, centre + 2)) for centre in range(nano.n_layers)]
    rows = mmf.sweep(nano, prompts, blocked, windows, score, **LOOSE)
    slow = mmf.sweep(nano, prompts, blocked, windows[3:5], score, engine="forward", **LOOSE)
    flow = mmf.flow(nano, prompts, ["image->last"], 3, score=score, **LOOSE).to_frame()
    column = "log_probability_change" if score == "first" else "change"
    assert rows.table["change"].tolist() == pytest.approx(flow[column].tolist(), abs=SAME)
    assert rows.table["answer_changed"].tolist() == flow["answer_changed"].tolist()
    both = rows.table[rows.table["x"].isin(slow.table["x"])]
    assert slow.table["change"].tolist() == pytest.approx(both["change"].tolist(), abs=SAME)
    assert rows.table["change"].abs().max() > 1
    assert rows.table["x"].tolist()[:3] == ["0-1", "0-2", "1-3"]
    assert len(rows.table) == len(prompts) * len(windows)
    assert (rows.table["control"] == 0).all()


def test_heads_sets_and_two_axes_are_hand_made_masks():
    graph, model = tiny_graph("llama", "clip", n_layers=4), twin(n_layers=4)
    prompt = graph.prompt(picture(0), "is the circle red or blue ?", "red", key="q")
    at = places(graph.processor, prompt.inputs)

    def make(layer, head):
        rest = mmf.Knockout(source="question", target="last", layers=[0, 3])
        return [mmf.Knockout(source="image", target="question | last", layers=layer, heads=[head]), rest]

    told = []
    result = mmf.sweep(
        graph,
        prompt,
        make,
        {"layer": np.arange(2), "head": range(2)},
        only_correct=False,
        progress=False,
        report=told.append,
    )
    assert "at most 4 rows and 0 forwards" in told[0]
    for row in result.table.itertuples():
        readers = at["question"] + at["last"]
        cuts = [Cut((row.layer,), readers, at["image"], heads=(row.head,)), Cut((0, 3), at["last"], at["question"])]
        logs = [gold_logits(model, prompt.inputs, c)[0, -1].double().log_softmax(-1) for c in ((), cuts)]
        token = int(logs[0].argmax())
        assert (row.clean, row.score) == pytest.approx((float(logs[0][token]), float(logs[1][token])), abs=SAME)
        assert row.change_percent == pytest.approx((np.exp(row.change) - 1) * 100)
    assert result.axes == ["layer", "head"]
    assert result.means()["prompts"].tolist() == [1] * 4
    pairs = mmf.sweep(graph, prompt, lambda x: make(*x), itertools.product(range(2), range(2)), **LOOSE)
    assert pairs.table["change"].tolist() == pytest.approx(result.table["change"].tolist(), abs=1e-9)
    assert pairs.table["x"].tolist() == ["(0, 0)", "(0, 1)", "(1, 0)", "(1, 1)"]
    assert pairs.table[["x_0", "x_1"]].to_numpy().tolist() == result.table[["layer", "head"]].to_numpy().tolist()


def generated(graph, prompt, patterns, count):
    """(the tokens of a greedy generation under the patterns, the log-probability of each)."""
    with (
        torch.no_grad(),
        graph.generate(
            prompt,
            *patterns,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        ) as tracer,
    ):
        result = nnsight.save(tracer.result)
    ids = result.sequences[0, len(prompt) :]
    logs = torch.stack([one[0].double().log_softmax(-1) for one in result.logits])
    return ids, logs.gather(1, ids[:, None])[:, 0]


ACTING = {  # as they act in a sweep: what the same pattern is in a generation
    "knockout": (blocked(3), mmf.Knockout(source="image", target="last", layers=3, when="all")),
    "knockout of the question": (mmf.Knockout(source="image", target="question", layers=range(6)),) * 2,
    "bias": (
        mmf.Bias(source="image", target="last", layers=[3, 4], value=2.0),
        mmf.Bias(source="image", target="last", layers=[3, 4], value=2.0, when="all"),
    ),
    "skip": (mmf.Skip(layers=4, at="image"),) * 2,
    "scale": (
        mmf.Scale(at="last", layers=4, site="mlp", factor=2.5),
        mmf.Scale(at="last", layers=4, site="mlp", factor=2.5, when="all"),
    ),
    "change": (  # what it does hangs on how many positions come together
        mmf.Change(at="question | suffix", layers=3, value=lambda values: values - values.mean() + 0.1 * len(values)),
        mmf.Change(
            at="question | suffix",
            layers=3,
            value=lambda values: values - values.mean() + 0.1 * len(values),
            when="all",
        ),
    ),
    "add": (mmf.Add(at="image", layers=3, vector=torch.ones(128)),) * 2,
    "patch": (mmf.Patch(at="image", site="mlp", layers=[1, 2], value=mmf.values.zeros()),) * 2,
    "FastV": (mmf.FastV(k=2),) * 2,
    "FastV by mask": (mmf.FastV(k=2, mode="mask"),) * 2,
    "HiMAP": (mmf.HiMAP(k1=2, k2=4),) * 2,
    "SparseVLM": (mmf.prune.SparseVLM(),) * 2,
    "DropAll": (mmf.DropAll(from_layer=3),) * 2,
    "VisionZip": (mmf.prune.VisionZip(dominant=12, contextual=4),) * 2,
}


def test_a_whole_answer_is_scored_as_it_is_generated(nano, prompts):
    """Teacher forcing under a pattern is a generation under it: for each, its own three tokens."""
    wrong = []
    for name, (pattern, in_generation) in ACTING.items():
        ids, wanted = generated(nano, prompts[0], (in_generation,), 3)
        answer = nano.processor.tokenizer.decode(ids)
        asked = dataclasses.replace(prompts[0], answer=answer)
        found = mmf.sweep(nano, asked, lambda x, pattern=pattern: pattern, ["it"], "answer", **LOOSE).table.iloc[0]
        if found["token_scores"] != pytest.approx(wanted.tolist(), abs=2e-4):
            wrong.append(f"{name}: {answer!r} {found['token_scores']} {wanted.tolist()}")
    assert wrong == []


def test_controls_are_random_positions_of_the_same_part(nano, prompts):
    def make(x):
        return mmf.Knockout(source=x, target="last", layers=range(4))

    words = ["text('color')", "text('the', 0)", "image"]
    result = mmf.sweep(nano, prompts[:1], make, words, controls=3, **LOOSE)
    assert result.table.groupby("x")["control"].max().to_dict() == {words[0]: 3, words[1]: 3, "image": 0}
    assert result.header["cells_without_control"] == 3, "the image is most of the prompt"
    drawn = result.means(control=True)
    assert drawn["x"].tolist() == words[:2]
    assert "controls:" in result.summary()
    assert "no control for 3 cell(s): their part of the prompt has too few other positions" in result.summary()
    again = mmf.sweep(nano, prompts[:1], make, words, controls=3, engine="forward", **LOOSE)
    assert again.table["change"].tolist() == pytest.approx(result.table["change"].tolist(), abs=SAME)
    with pytest.raises(mmf.MMFlowError, match="has neither"):
        mmf.sweep(nano, prompts[:1], lambda k: mmf.FastV(k=k), [2], controls=1, **LOOSE)
    with pytest.raises(mmf.MMFlowError, match="has no controls"):
        mmf.sweep(nano, prompts[:1], make, words, **LOOSE).means(control=True)


WRONG = {
    "x=2 would change nothing: make gave no pattern": (lambda x: [] if x == 2 else blocked(x), [1, 2]),
    "sweep, x=2: Knockout": (lambda x: mmf.Knockout(source="last", target="image", layers=x), [2]),
    "sweep, x=2: layers": (lambda x: blocked(99), [2]),
    "make failed at x=2: ZeroDivisionError": (lambda x: 1 / 0, [2]),
    "at x=2 3": (lambda x: 3, [2]),
    "at x=2 it holds 'a'": (lambda x: [blocked(1), "a"], [2]),
    "over is empty": (blocked, []),
    "x=1 comes twice": (blocked, [1, 1]),
    "over is a list": (blocked, "abc"),
    "3 came": (blocked, {"a": [1], "b": [1], "c": [1]}),
    "no name that a column can have": (blocked, {"prompt": [1]}),
    "over\\['a'\\] is empty": (blocked, {"a": []}),
    "make is a function": (3, [1]),
}


def test_all_is_refused_before_any_forward(nano, prompts, monkeypatch):
    from nnsight_mmflow.patterns.sweep import run

    def ran(*given):
        raise AssertionError("a forward ran")

    monkeypatch.setattr(run, "answer_of", ran)
    for told, (make, over) in WRONG.items():
        kind = mmf.NoEffectError if "change nothing" in told else mmf.MMFlowError
        with pytest.raises(kind, match=told):
            mmf.sweep(nano, prompts, make, over, **LOOSE)
    with pytest.raises(mmf.MMFlowError, match="no answer"):
        mmf.sweep(nano, dataclasses.replace(prompts[0], answer=None), blocked, [1], **QUIET)
    with pytest.raises(mmf.MMFlowError, match="engine"):
        mmf.sweep(nano, prompts, blocked, [1], engine="fast", **QUIET)


def test_what_changes_nothing_in_the_forward_is_told_by_its_x(nano, prompts):
    same = mmf.values.from_run(prompts[0])
    with pytest.raises(mmf.NoEffectError, match="x=3: Patch"):
        mmf.sweep(nano, prompts[0], lambda x: mmf.Patch(at="question", layers=x, value=same), [3], **LOOSE)


def test_pictures_and_files(nano, prompts, tmp_path):
    def halved(share):
        return mmf.FastV(k=3, r=share)

    line = mmf.sweep(nano, prompts, halved, [0.25, 0.5, 0.75], folder=tmp_path / "a", **QUIET)
    bars = mmf.sweep(
        nano,
        prompts,
        lambda source: mmf.Knockout(source=source, target="last", layers=range(5)),
        ["image", "question"],
        **QUIET,
    )
    heat = mmf.sweep(
        nano,
        prompts,
        lambda layer, r: mmf.FastV(k=layer, r=r),
        {"layer": [2, 3], "r": [0.2, 0.5]},
        "options",
        only_correct=False,
        **QUIET,
    )
    assert line.plot().axes[0].get_ylabel() == "change of the answer's probability (%)"
    assert bars.plot().axes[0].get_xlabel() == "change of the answer's probability (%)"
    assert [axes.get_ylabel() for axes in heat.plot().axes][0] == "r"
    assert heat.header["left_out"] == {"no options": 1}
    loaded = mmf.results.SweepResult.load(tmp_path / "a")
    assert loaded.table.equals(line.table)
    assert loaded.means().equals(line.means())
    told = []
    mmf.sweep(nano, prompts, halved, [0.25, 0.5, 0.75], folder=tmp_path / "a", progress=False, report=told.append)
    assert told[0].startswith("sweep: 0 prompt(s)")
    with pytest.raises(mmf.DataError, match="patterns"):
        mmf.sweep(nano, prompts, lambda r: mmf.FastV(k=4, r=r), [0.25, 0.5, 0.75], folder=tmp_path / "a", **QUIET)
