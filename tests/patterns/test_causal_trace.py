"""Causal tracing: rows equal one forward per cell, causality makes exact zeros, pictures say what they show."""

import json
import math
import sys

import pytest
import torch
from kit.families import family
from kit.tiny import picture, tiny_graph

import nnsight_mmflow as mmf
from nnsight_mmflow.inside.restore import Cell, chunks_of

QUESTION = "what color is the circle ?"
QUIET = {"progress": False, "report": lambda text: None}
LOOSE = {**QUIET, "only_correct": False, "min_clean": 0.0, "max_corrupt": math.inf}
GRAPHS = {
    "llama": lambda attention: tiny_graph("llama", attention=attention),
    "phi": lambda attention: tiny_graph("phi", "siglip", attention=attention),
    "gemma3": lambda attention: family("gemma3", attention),
    "qwen3_vl": lambda attention: family("qwen3_vl", attention),
    "llava_next": lambda attention: family("llava_next", attention),
}


def pair(graph, how="image"):
    prompt = graph.prompt(picture(0), QUESTION)
    if how == "image":
        return prompt, mmf.corruption.other_image(graph, prompt, picture(1))
    if how == "noise":
        return prompt, mmf.corruption.noisy_image(prompt, 2.0)
    return prompt, mmf.corruption.repeat_token(graph, prompt, "the circle", "ring")


# Each graph with each corruption, with either attention, and each corruption under either attention.
PAIRWISE = [
    (name, how, ("sdpa", "eager")[(i + j) % 2])
    for i, name in enumerate(GRAPHS)
    for j, how in enumerate(("image", "text", "noise"))
]


@pytest.mark.parametrize(("name", "how", "attention"), PAIRWISE)
def test_rows_equal_one_forward_per_cell(name, how, attention):
    graph = GRAPHS[name](attention)
    prompt, corrupt = pair(graph, how)
    sites = ("mlp", "attn", "resid")
    windows = [1, 3] if name == "llama" else [3]
    for window in windows:
        rows, forward = (
            mmf.causal_trace(graph, prompt, corrupt, sites=sites, window=window, engine=engine, **LOOSE).to_frame()
            for engine in ("rows", "forward")
        )
        assert (rows["log_probability_change"] - forward["log_probability_change"]).abs().max() < 1e-5
        assert (rows["effect"] - forward["effect"]).abs().max() < 1e-5
        assert rows["effect"].abs().max() > 1e-4
        assert set(rows["site"]) == set(sites)


def test_a_small_budget_gives_the_same():
    graph = GRAPHS["llama"]("sdpa")
    prompt, corrupt = pair(graph)
    one, other = (
        mmf.causal_trace(graph, prompt, corrupt, row_budget=budget, **LOOSE).to_frame()["effect"] for budget in (1, 640)
    )
    assert (one - other).abs().max() < 1e-6


def test_chunks_hold_every_cell_once_and_share_a_tail():
    cells = [Cell("a", (5, 6), "mlp", layer, layer + 1) for layer in range(6)]
    cells += [Cell("b", (9,), "attn", layer, layer + 1) for layer in range(6)]
    chunks = chunks_of(cells, 12, 16)
    assert sorted(map(str, cells)) == sorted(str(cell) for _, chunk in chunks for cell in chunk)
    for start, chunk in chunks:
        assert {cell.positions[0] for cell in chunk} == {start}
        assert len(chunk) * (12 - start) <= 16
        assert [cell.first for cell in chunk] == sorted(cell.first for cell in chunk)
    starts = [start for start, _ in chunks]
    assert starts == sorted(starts, reverse=True)


# Spec, checklist A.


def test_everything_before_the_first_corrupted_position_is_exactly_without_effect():
    graph = GRAPHS["llama"]("sdpa")
    prompt, corrupt = pair(graph, "text")
    result = mmf.causal_trace(graph, prompt, corrupt, **LOOSE)
    assert "image" not in set(result.to_frame()["span"])
    with pytest.raises(mmf.NoEffectError, match="To trace the image, corrupt the image"):
        mmf.causal_trace(graph, prompt, corrupt, ["image"], **LOOSE)
    for site in ("mlp", "attn", "resid"):  # and indeed, bit for bit
        patch = mmf.Patch(at="image", site=site, layers=range(5), value=mmf.values.from_run(prompt))
        with pytest.raises(mmf.NoEffectError), torch.no_grad(), graph.trace(corrupt.prompt, patch):
            graph.unembed.output.save()


@pytest.mark.parametrize("name", ["llama", "phi", "llava_next"])
def test_restoring_all_that_the_last_position_adds_gives_the_clean_run(name):
    graph = GRAPHS[name]("sdpa")
    prompt, corrupt = pair(graph)
    every = range(graph.n_layers)
    attn, mlp = (
        mmf.Patch(at="last", site=site, layers=every, value=mmf.values.from_run(prompt)) for site in ("attn", "mlp")
    )
    with torch.no_grad(), graph.trace(corrupt.prompt, attn):
        found = graph.model.output.logits[0, -1].save()
    # its MLPs read nothing but its own stream: with all attention restored they are the clean ones already
    with pytest.raises(mmf.NoEffectError), torch.no_grad(), graph.trace(corrupt.prompt, attn, mlp):
        graph.unembed.output.save()
    with torch.no_grad(), graph.trace(prompt):
        wanted = graph.model.output.logits[0, -1].save()
    assert torch.equal(found, wanted)


def test_the_same_run_twice_is_refused():
    graph = GRAPHS["llama"]("sdpa")
    prompt, _ = pair(graph)
    same = mmf.corruption.other_image(graph, prompt, picture(0))
    with pytest.raises(mmf.NoEffectError, match="are the same: nothing can be restored"):
        mmf.causal_trace(graph, prompt, same, **LOOSE)


def test_windows_are_stated_and_truncated():
    graph = GRAPHS["llama"]("sdpa")
    prompt, corrupt = pair(graph)
    table = mmf.causal_trace(graph, prompt, corrupt, ["last"], ("mlp",), window=3, controls=0, **LOOSE)
    frame = table.to_frame()
    assert list(zip(frame["first_layer"], frame["last_layer"], strict=True)) == [(0, 1), (0, 2), (1, 3), (2, 4), (3, 4)]
    assert "windows of 3 layers (half-width 1), layers counted from 0" in table.caption()
    rome = mmf.causal_trace(graph, prompt, corrupt, ["last"], ("mlp",), window=2, controls=0, **LOOSE).to_frame()
    assert list(zip(rome["first_layer"], rome["last_layer"], strict=True)) == [(0, 0), (0, 1), (1, 2), (2, 3), (3, 4)]


def test_the_constraint_and_each_position():
    graph = GRAPHS["llama"]("sdpa")
    prompt, corrupt = pair(graph, "text")
    words = [prompt.spans.tokens[position] for position in prompt.spans.text("the circle")]
    frame = mmf.causal_trace(graph, prompt, corrupt, each_position=True, **LOOSE).to_frame()
    assert [f"constraint {i}: {word}" for i, word in enumerate(words)] == list(dict.fromkeys(frame["span"]))[:2]
    assert set(frame["positions"]) == {1}
    whole = mmf.causal_trace(graph, prompt, corrupt, **LOOSE).to_frame()
    controls = [span for span in dict.fromkeys(whole["span"]) if span.startswith("random")]
    assert "random, as many as constraint" in controls
    sizes = whole.groupby("span")["positions"].first()
    assert sizes["random, as many as constraint"] == sizes["constraint"] == 2


# Corruptions.


def test_corruptions_keep_the_length():
    graph = GRAPHS["llama"]("sdpa")
    prompt = graph.prompt(picture(0), QUESTION)
    repeated = mmf.corruption.repeat_token(graph, prompt, "the circle", "ring")
    assert [repeated.prompt.spans.tokens[p] for p in prompt.spans.text("the circle")] == ["ring", "ring"]
    assert repeated.how == "repeated token 'ring' for 'the circle'"
    phrase = mmf.corruption.replace_phrase(graph, prompt, "the circle", "the square")
    assert phrase.prompt.question.endswith("what color is the square ?") or "the square" in phrase.prompt.text
    assert len(phrase.prompt) == len(prompt)
    blank = mmf.corruption.blank_image(graph, prompt)
    assert blank.prompt.inputs["input_ids"].equal(prompt.inputs["input_ids"])
    assert blank.prompt.inputs["pixel_values"].std() < prompt.inputs["pixel_values"].std()
    masked = mmf.corruption.masked_box(graph, prompt, [(0, 0, 16, 16)])
    different = (masked.prompt.inputs["pixel_values"] != prompt.inputs["pixel_values"]).any(1)[0]
    assert different[:16, :16].all()
    assert not different[16:].any()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda g, p: mmf.corruption.replace_phrase(g, p, "the circle", "red"), "instead of 76.*as many tokens"),
        (lambda g, p: mmf.corruption.replace_phrase(g, p, "the house", "red"), "does not stand in the question"),
        (lambda g, p: mmf.corruption.repeat_token(g, p, "the house", "red"), "does not occur in the prompt"),
        (lambda g, p: mmf.corruption.repeat_token(g, p, "the circle", "umbrella"), "does not know 'umbrella'"),
    ],
)
def test_bad_corruptions(make, text):
    graph = GRAPHS["llama"]("sdpa")
    with pytest.raises(mmf.MMFlowError, match=text):
        make(graph, graph.prompt(picture(0), QUESTION))


def test_another_shape_of_picture_is_refused():
    graph = GRAPHS["llava_next"]("sdpa")
    prompt = graph.prompt(picture(0, 96, 64), QUESTION)
    with pytest.raises(mmf.PromptError, match="resize it to 96x64 first"):
        mmf.corruption.other_image(graph, prompt, picture(1, 64, 96))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"sites": ("query",)}, "site must be one of attn, mlp, resid, or a TransformerLens name"),
        ({"window": 0}, "at least 1 layer"),
        ({"engine": "fast"}, "engine must be one of rows, forward"),
        ({"corrupt": []}, r"1 prompt\(s\) and 0 corruption\(s\)"),
        ({"spans": ["photo"]}, "'photo' is not known"),
    ],
)
def test_bad_arguments(given, text):
    graph = GRAPHS["llama"]("sdpa")
    prompt, corrupt = pair(graph)
    with pytest.raises(mmf.MMFlowError, match=text):
        mmf.causal_trace(graph, prompt, **{"corrupt": corrupt, **LOOSE, **given})


def test_lengths_that_differ_are_refused():
    graph = GRAPHS["llama"]("sdpa")
    prompt = graph.prompt(picture(0), QUESTION)
    longer = mmf.corruption.Corruption(graph.prompt(picture(1), "is the circle red or blue ?"), "another question")
    with pytest.raises(mmf.MMFlowError, match="prompt 0 has 76 positions, its corrupt run 77"):
        mmf.causal_trace(graph, prompt, longer, **LOOSE)


# nano: meaning, filters, files.


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def facts(nano):
    samples = mmf.nano.samples(12, "fact-flag")
    prompts = [nano.prompt(s.image, s.question, s.answer, key=s.key, kind=s.kind) for s in samples]
    corrupt = [
        mmf.corruption.other_image(nano, prompt, samples[(i + 5) % 12].image) for i, prompt in enumerate(prompts)
    ]
    return prompts, corrupt


def test_on_nano_the_fact_moves_from_the_image_to_the_last_position(nano, facts):
    result = mmf.causal_trace(nano, *facts, sites=("resid", "mlp"), **QUIET)
    table = result.map()["resid"]
    assert table.loc["image", 0] > 0.9  # all of the flag is still at the image's positions
    assert table.loc["image", 9] < 0.1
    assert table.loc["last", 9] > 0.9
    assert table.loc["last", 0] < 0.1
    assert table.loc["random, as many as last"].max() < 0.1  # a random position brings nothing back
    assert result.header["n_counted"] == 12
    assert (result.to_frame()["clean_probability"] > 0.3).all()


def test_prompts_that_do_not_count_are_told(nano, facts):
    prompts, corrupt = facts
    wrong = [nano.prompt(prompts[0].images[0], prompts[0].question, "zorvia"), *prompts[1:3]]
    same = mmf.corruption.noisy_image(prompts[1], 1e-4)  # takes nothing away
    result = mmf.causal_trace(nano, wrong, [corrupt[0], same, corrupt[2]], **QUIET)
    assert result.header["left_out"] == {"answered otherwise": 1, "P_corrupt above 0.5 of P_clean": 1}
    assert "1 prompts, 2 left out" in result.caption()
    with pytest.raises(mmf.MMFlowError, match="none of 1 prompts counts .1: P_clean below 1.1."):
        mmf.causal_trace(nano, prompts[0], corrupt[0], min_clean=1.1, **QUIET)


def test_a_stopped_run_goes_on(nano, facts, tmp_path, monkeypatch):
    prompts, corrupt = (list(part[:3]) for part in facts)
    whole = mmf.causal_trace(nano, prompts, corrupt, ["last"], **QUIET).to_frame()
    mmf.causal_trace(nano, prompts, corrupt, ["last"], folder=tmp_path, **QUIET)
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines[:2]) + "\n")
    module = sys.modules["nnsight_mmflow.patterns.trace.causal_trace"]

    ran = []
    real = module.measure
    monkeypatch.setattr(module, "measure", lambda *given: ran.append(1) or real(*given))
    again = mmf.causal_trace(nano, prompts, corrupt, ["last"], folder=tmp_path, **QUIET)
    assert len(ran) == 1
    assert again.to_frame().equals(whole)
    assert mmf.results.CausalTraceResult.load(tmp_path).to_frame().equals(whole)
    assert json.loads((tmp_path / "causal_trace.json").read_text())["n_counted"] == 3


def test_pictures_state_what_they_show(nano, facts):
    result = mmf.causal_trace(nano, facts[0][:2], facts[1][:2], window=3, **QUIET)
    for quantity in ("effect", "normalised_effect", "restored_probability", "answer_restored"):
        figure = result.plot(quantity)
        told = " ".join(figure.get_suptitle().split())
        for part in (
            "half-width 1",
            "counted from 0",
            "another image",
            "P_clean 1.00",
            "P_corrupt",
            "2 prompts, 0 left out",
        ):
            assert part in told
    assert "normalised" in result.caption("normalised_effect")
    with pytest.raises(mmf.MMFlowError, match="quantity must be one of effect"):
        result.plot("score")
    assert "mlp, last: largest at layer" in str(result)


def test_the_trace_command_on_ones_own_picture(tmp_path, capsys):
    from nnsight_mmflow.command_line import main

    one, *_, other = mmf.nano.samples(50, "fact-flag")
    one.image.save(tmp_path / "a.png")
    other.image.save(tmp_path / "b.png")
    asked = ["trace", "--image", str(tmp_path / "a.png"), "--question", one.question, "--out", str(tmp_path / "out")]
    assert main([*asked, "--other-image", str(tmp_path / "b.png"), "--window", "3"]) == 0
    assert "half-width 1" in (tmp_path / "out" / "report.md").read_text()
    assert main([*asked, "--blank"]) == 2  # another window in the same folder
    assert "other settings" in capsys.readouterr().err
    for given, text in (
        ([], "say how the corrupt run is made"),
        (["--blank", "--other-image", "x.png"], "give one of"),
        (["--constraint", "this place"], "--constraint needs --phrase or --token"),
    ):
        assert main([*asked[:-1], str(tmp_path / "new"), *given]) == 2
        assert text in capsys.readouterr().err


def test_runs_with_the_same_answer_are_a_control_that_can_fail(nano, facts):
    prompts, corrupt = facts
    alike = mmf.nano.same_answers(nano, prompts)
    result = mmf.causal_trace(nano, prompts, corrupt, same_answer=alike, sites=("resid",), **QUIET)
    frame = result.to_frame()
    control = frame[frame["span"].str.startswith("same answer: ")]
    assert set(control["span"]) == {"same answer: image", "same answer: question", "same answer: last"}
    assert control["effect"].abs().max() < 0.02
    assert control["normalised_effect"].isna().all()
    assert control["corrupt_probability"].min() > 0.9
    assert frame[~frame["span"].str.contains(":")]["effect"].max() > 0.9
    assert "control, runs with the same answer (the same flag, painted anew): the largest effect of a cell" in str(
        result
    )
    assert "same answer: image" in result.map("effect")["resid"].index
    assert "same answer: image" not in result.map("normalised_effect")["resid"].index
    # it is not counted as a prompt, and the rest is as without it
    alone = mmf.causal_trace(nano, prompts, corrupt, sites=("resid",), **QUIET)
    assert result.header["n_counted"] == alone.header["n_counted"]
    assert result.caption() == alone.caption()
    with_it = frame[~frame["span"].str.startswith("same answer: ")].reset_index(drop=True)
    assert (with_it["effect"] - alone.to_frame()["effect"]).abs().max() < 1e-6
    # planted: a "control" whose answer is another
    one, other = prompts[:1], corrupt[:1]
    wrong = mmf.causal_trace(nano, one, other, same_answer=other, sites=("resid",), **QUIET).to_frame()
    assert wrong[wrong["span"].str.startswith("same answer: ")]["effect"].max() > 0.9


def test_a_control_that_cannot_fail_is_refused(nano, facts):
    prompts, corrupt = facts
    same = mmf.corruption.other_image(nano, prompts[0], prompts[0].images[0])
    with pytest.raises(mmf.NoEffectError, match="as a control it cannot"):
        mmf.causal_trace(nano, prompts[0], corrupt[0], same_answer=same, **QUIET)
