"""What is followed beside the first token: whole answers, options, functions, captions.

Held against plain transformers: the answer's tokens behind the prompt, a mask made by hand for each window (gold.py).
Tolerance: 2e-5 nats a token, as float32 sums in another order differ by; a wrong edge shows from 1e-2.
"""

import dataclasses
import json

import pytest
import torch
from kit.families import family
from kit.gold import Cut, gold_generate, gold_logits, places, twin
from kit.tiny import picture, tiny_graph

import nnsight_mmflow as mmf

QUIET = {"progress": False, "report": lambda text: None}
LOOSE = {"only_correct": False, **QUIET}
QUESTION = "is the circle red or blue ?"
ANSWER = "red circle blue"
SAME = 5e-5


@pytest.fixture(scope="module")
def tiny():
    return tiny_graph("llama", "clip", n_layers=4)


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def prompt(tiny):
    return tiny.prompt(picture(0), QUESTION, ANSWER, options=("red", "blue"), key="q")


def ids_of(graph, prompt, answer):
    """The answer's ids, from the tokenizer alone."""
    before, joined = (graph.processor.tokenizer(text)["input_ids"] for text in (prompt.text, f"{prompt.text} {answer}"))
    return joined[len(before) :]


def forced(prompt, ids):
    inputs = dict(prompt.inputs)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids], dtype=torch.long)], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


def gold_tokens(graph, prompt, answer, cuts=()):
    """The log-probability of each of the answer's tokens, from one plain forward."""
    ids = ids_of(graph, prompt, answer)
    logits = gold_logits(twin(n_layers=4), forced(prompt, ids[:-1]), cuts)[0, len(prompt) - 1 :]
    return logits.double().log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]


def of_edges(prompt, length):
    """(sources, targets) of each edge by hand: `last` goes on over the answer's tokens, sources do not."""
    at = places(tiny_graph("llama", "clip", n_layers=4).processor, prompt.inputs)
    answer = tuple(range(len(prompt), len(prompt) + length - 1))
    return {
        "image->last": (at["image"], at["last"] + answer),
        "image->question": (at["image"], at["question"]),
        "last->last": (at["last"], at["last"] + answer),
        "image->answer": (at["image"], answer),
        "answer->answer": (answer, answer),
        "answer->last": (answer, at["last"] + answer),
        "image->~image": (at["image"], tuple(sorted(set(at["all"]) - set(at["image"]))) + answer),
    }


@pytest.mark.parametrize("engine", ["rows", "forward"])
def test_whole_answers_are_those_of_plain_forwards(tiny, prompt, engine):
    edges = of_edges(prompt, 3)
    asked = list(edges)
    windows = (1, 3) if engine == "rows" else (3,)
    result = mmf.flow(tiny, prompt, asked, windows, score="answer", engine=engine, row_budget=40, **LOOSE)
    base = gold_tokens(tiny, prompt, ANSWER)
    table, tokens = result.to_frame(), result.to_frame(tokens=True)
    assert len(base) == 3
    assert len(tokens) == 3 * len(table)
    assert table["clean"].unique() == pytest.approx([float(base.sum())], abs=SAME)
    changed = []
    for row in table.itertuples():
        first, end = max(0, row.layer - row.window // 2), min(4, row.layer + row.window // 2 + 1)
        sources, targets = edges[row.edge]
        wanted = gold_tokens(tiny, prompt, ANSWER, [Cut(tuple(range(first, end)), targets, sources)])
        assert row.score == pytest.approx(float(wanted.sum()), abs=SAME), row
        assert row.token_scores == pytest.approx(wanted.tolist(), abs=SAME)
        assert row.change == pytest.approx(float((wanted - base).sum()), abs=2 * SAME)
        changed.append(abs(row.change))
    assert max(changed) > 0.01
    one = tokens[(tokens["edge"] == "image->last") & (tokens["layer"] == 2) & (tokens["window"] == 3)]
    assert one["word"].tolist() == ["red", "circle", "blue"]
    assert one["change"].sum() == pytest.approx(
        float(
            table[(table["edge"] == "image->last") & (table["layer"] == 2) & (table["window"] == 3)]["change"].iloc[0]
        )
    )
    assert "the whole answer" in result.summary()
    assert "nats" in result.plot().axes[0].get_ylabel()


def test_a_closed_edge_stays_closed_as_in_a_generation(tiny, prompt):
    """Step by step without a cache, each new token a target, as `when="all"`: the same numbers as teacher forcing."""
    at, end = places(tiny.processor, prompt.inputs), len(prompt)

    def cuts(length):
        return [Cut((1, 2, 3), tuple(range(end - 1, length)), at["image"])]

    written, logits = gold_generate(twin(n_layers=4), forced(prompt, []), cuts, 4)
    answer = tiny.processor.tokenizer.decode(written[0])
    wanted = logits[0].double().log_softmax(-1).gather(1, written[0][:, None])[:, 0]
    asked = dataclasses.replace(prompt, answer=answer)
    assert ids_of(tiny, asked, answer) == written[0].tolist()
    found = mmf.flow(tiny, asked, ["image->last"], 3, score="answer", **LOOSE).to_frame().set_index("layer")
    assert found.loc[2, "token_scores"] == pytest.approx(wanted.tolist(), abs=SAME)


def test_first_is_what_it_was_and_a_single_token_answer_is_the_same(tiny, prompt):
    first = mmf.flow(tiny, prompt, ["image->last"], 1, **LOOSE)
    own = dataclasses.replace(prompt, answer=first.table["prediction"][0].split()[0])
    whole = mmf.flow(tiny, own, ["image->last"], 1, score="answer", **LOOSE)
    assert whole.table["change"].tolist() == pytest.approx(first.table["log_probability_change"].tolist(), abs=1e-9)
    assert "score" not in first.header
    assert whole.header["score"] == "answer"
    assert {"base_probability", "probability", "change_percent"} <= set(first.table)
    with pytest.raises(mmf.MMFlowError, match="not made of tokens"):
        first.by_token()
    with pytest.raises(mmf.NoEffectError, match="'answer' holds no position"):
        mmf.flow(tiny, own, ["answer->last"], 1, score="answer", **LOOSE)


@pytest.mark.parametrize("options", [("red", "blue"), ("red circle", "blue")])
def test_options_are_held_against_each_other(tiny, prompt, options):
    asked = dataclasses.replace(prompt, options=options, answer=None)
    without = dataclasses.replace(prompt, options=None, key="none")
    at = places(tiny.processor, prompt.inputs)
    result = mmf.flow(tiny, [asked, without], ["image->last"], 3, score="options", **LOOSE)
    end = len(prompt)
    for row in result.to_frame().itertuples():
        scores = []
        for option in options:
            length = len(option.split())
            targets = at["last"] + tuple(range(end, end + length - 1))
            layers = tuple(range(max(0, row.layer - 1), min(4, row.layer + 2)))
            clean, cut = (gold_tokens(tiny, asked, option, c) for c in ((), [Cut(layers, targets, at["image"])]))
            scores.append((float(clean.sum()), float(cut.sum())))
        assert row.clean == pytest.approx(scores[0][0] - scores[1][0], abs=SAME)
        assert row.score == pytest.approx(scores[0][1] - scores[1][1], abs=SAME)
        assert row.answer_changed == ((row.clean > 0) != (row.score > 0))
    assert result.header["left_out"]["no options"] == 1
    assert result.header["n_counted"] == 1
    with pytest.raises(mmf.MMFlowError, match="none of 1 prompts has options"):
        mmf.flow(tiny, without, score="options", **LOOSE)
    with pytest.raises(mmf.MMFlowError, match="percents of a probability"):
        result.diagram()


def spread(logits, prompt):
    assert logits.dtype == torch.float32
    assert prompt.question == QUESTION
    return logits.softmax(-1).max(-1).values.sum()


def test_a_function_gets_the_logits_where_the_answer_is_read(tiny, prompt):
    ids = ids_of(tiny, prompt, ANSWER)
    for asked, behind in ((prompt, ids[:-1]), (dataclasses.replace(prompt, answer=None), [])):
        result = mmf.flow(tiny, asked, ["image->question"], 1, score=spread, **LOOSE).to_frame()
        at = places(tiny.processor, prompt.inputs)
        for row in result.itertuples():
            cut = Cut((row.layer,), at["question"], at["image"])
            logits = gold_logits(twin(n_layers=4), forced(prompt, behind), [cut])[0, len(prompt) - 1 :]
            assert row.score == pytest.approx(float(spread(logits, prompt)), abs=SAME)
        assert "answer_changed" not in result
        assert (result["change"].abs() > 1e-5).any()
    wrong = {
        "failed: ZeroDivisionError": lambda logits, prompt: 1 / 0,
        "one number is expected": lambda logits, prompt: logits[0],
        "a finite number": lambda logits, prompt: float("nan"),
    }
    for told, function in wrong.items():
        with pytest.raises(mmf.MMFlowError, match=told):
            mmf.flow(tiny, prompt, ["image->last"], 1, score=function, **LOOSE)
    early = {
        "but it takes": lambda logits: 0.0,
        r"tensor of shape \(\d+,\): one number": lambda logits, prompt: logits[0],
    }
    with pytest.MonkeyPatch.context() as patch:  # before any forward
        patch.setattr(type(tiny.adapter.model), "forward", None)
        for told, function in early.items():
            for run in (mmf.flow, mmf.skip_flow):
                with pytest.raises(mmf.MMFlowError, match=told):
                    run(tiny, prompt, score=function, **LOOSE)
    for score in ("last", 3, None, str, ["answer"]):
        for run in (mmf.flow, mmf.skip_flow):
            with pytest.raises(mmf.MMFlowError, match="score is one of"):
                run(tiny, prompt, score=score, **LOOSE)


def test_a_caption_is_what_the_model_itself_writes(tiny, prompt):
    asked = dataclasses.replace(prompt, answer=None)
    written, logits = gold_generate(twin(n_layers=4), forced(prompt, []), lambda length: (), 5)
    wanted = logits[0].double().log_softmax(-1).gather(1, written[0][:, None])[:, 0]
    result = mmf.flow(tiny, asked, ["image->last", "answer->last"], 3, score="caption", max_new_tokens=5, **QUIET)
    table = result.to_frame()
    assert table["clean"].unique() == pytest.approx([float(wanted.mean())], abs=SAME)
    assert table["clean_token_scores"][0] == pytest.approx(wanted.tolist(), abs=SAME)
    slow = mmf.flow(tiny, asked, ["image->last"], 3, score="caption", max_new_tokens=5, engine="forward", **QUIET)
    assert slow.table["score"].tolist() == pytest.approx(table["score"][:4].tolist(), abs=SAME)
    assert table["change"].abs().max() > 0.01
    assert table["tokens"][0] != []
    assert len(result.plot_tokens("image->last").axes) == 2
    with pytest.raises(mmf.MMFlowError, match="edge='x'"):
        result.plot_tokens("x")
    names = [text.get_text() for text in result.plot_tokens().axes[0].get_yticklabels()]
    assert len(set(names)) == len(names) == len(table["tokens"][0])  # a word that comes again has its number
    column = result.plot_tokens(figsize=(3.3, 2.4), rows=[names[1]], labels=["second"], colors="PuOr").axes[0]
    assert [text.get_text() for text in column.get_yticklabels()] == ["second"]
    drawn = result.by_token().query("edge == 'image->last' and token == 1")["change"]
    assert column.images[0].get_array()[0].tolist() == pytest.approx(drawn.tolist())
    result.diagram(), result.explore()


def test_edges_of_an_answer_are_left_out_where_it_has_one_token(nano, tmp_path):
    """They are counted, and refused where no prompt has them; of captions only the run can tell."""
    short, other = mmf.nano.prompts(nano, 2)
    long = dataclasses.replace(other, answer=f"{other.answer} red")
    edges = ["image->answer", "image->last"]
    both = mmf.flow(nano, [short, long], edges, 1, score="answer", **LOOSE)
    assert both.table.groupby("edge")["prompt"].unique().map(list).to_dict() == {
        "image->answer": [other.key],
        "image->last": [short.key, other.key],
    }
    assert both.header["left_out"] == {"no edges with answer: it has one token": 1}
    alone = mmf.flow(nano, long, edges, 1, score="answer", **LOOSE)
    assert alone.table["score"].tolist() == pytest.approx(both.table["score"][nano.n_layers :].tolist(), abs=SAME)
    none = mmf.flow(nano, [short, long], edges[:1], 1, score="answer", **LOOSE)
    assert none.header["n_counted"] == 1
    for run in (mmf.flow, lambda *given, **more: mmf.flow(*given, **more, max_new_tokens=1)):
        score = "answer" if run is mmf.flow else "caption"
        with pytest.raises(mmf.NoEffectError, match="an answer of one token has nothing behind the prompt"):
            run(nano, [short, other], edges, 1, score=score, **LOOSE)
    with pytest.raises(mmf.NoEffectError, match="an answer of one token has nothing behind the prompt"):
        mmf.sweep(
            nano, short, lambda x: mmf.Knockout(source="image", target="answer", layers=x), [1], "answer", **LOOSE
        )

    caption = {"score": "caption", "folder": tmp_path, "controls": 1, **QUIET}
    said = mmf.flow(nano, [short, other], edges, 1, **caption)  # nano says a word, then ends
    assert set(said.table["edge"]) == {"image->last"}
    with pytest.MonkeyPatch.context() as patch:  # what is done is done
        patch.setattr(type(nano.adapter.model), "forward", None)
        assert mmf.flow(nano, [short, other], edges, 1, **caption).table.equals(said.table)
    with pytest.raises(mmf.MMFlowError, match="2: no edge: an answer of one token"):
        mmf.flow(nano, [short, other], edges[:1], 1, score="caption", **QUIET)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl", "gemma3", "idefics3"])
def test_families(name):
    graph = family(name)
    prompt = graph.prompt(picture(1), "what color is the circle ?", "red blue")
    run = {"score": "answer", **LOOSE}
    rows, slow = (
        mmf.sweep(graph, prompt, closed, [0, graph.n_layers - 1], engine=engine, **run).to_frame()
        for engine in ("rows", "forward")
    )
    assert rows["tokens"].map(len).tolist() == [2, 2]
    assert rows["score"].tolist() == pytest.approx(slow["score"].tolist(), abs=SAME)
    assert rows["change"].abs().max() > 1e-4


def closed(layer):
    return mmf.Knockout(source="image", target="last", layers=layer)


def test_a_family_that_reads_the_answer_as_question_is_refused_before_any_forward():
    graph = family("paligemma")
    prompt = graph.prompt(picture(0), "what color is the circle ?", "red blue")
    with pytest.raises(mmf.ModelError, match="would be read as part of the question"):
        mmf.flow(graph, prompt, ["image->last"], 1, score="answer", **LOOSE)
    with pytest.raises(mmf.ModelError, match="a caption .* would be read as part of the question"):
        mmf.flow(graph, prompt, ["image->last"], 1, score="caption", **QUIET)
    one = mmf.flow(graph, prompt, ["image->last"], 1, score="caption", max_new_tokens=1, **QUIET).to_frame()
    with torch.no_grad():
        logits = graph.adapter.model(**prompt.inputs).logits[0, -1]
    assert one["clean"][0] == pytest.approx(float(logits.log_softmax(-1).max()), abs=SAME)


def test_the_other_experiments(nano):
    """The whole answer in each: rows and forwards agree, or a hand-made trace does."""
    prompts, corrupt = mmf.nano.trace_pairs(nano, 1, "flag")
    long = dataclasses.replace(prompts[0], answer=f"{prompts[0].answer} red")
    loose = {"score": "answer", "min_clean": 0.0, "max_corrupt": float("inf"), **LOOSE}
    rows, slow = (
        mmf.causal_trace(nano, long, corrupt, ["last", "answer"], ["mlp"], engine=engine, window=3, **loose)
        for engine in ("rows", "forward")
    )
    for column in ("log_probability_change", "clean_probability"):
        assert rows.table[column].tolist() == pytest.approx(slow.table[column].tolist(), abs=SAME)
    assert rows.to_frame(tokens=True)["word"].tolist()[:2] == long.answer.split()
    assert "of the whole answer" in rows.caption()
    # one head and one span of the attribution's exact cells are a causal-trace cell by hand
    estimated = mmf.attribution_patching(nano, long, corrupt, ["last"], exact=4, score="answer", **QUIET)
    assert estimated.correlation > 0.8
    skipped = mmf.skip_flow(nano, long, ["image", "last"], score="answer", **LOOSE).to_frame()
    by_sweep = mmf.sweep(
        nano, long, lambda layer: mmf.Skip(layers=layer, at="last"), range(nano.n_layers), "answer", **LOOSE
    )
    found = skipped[skipped["span"] == "last"]["score"].tolist()
    assert found == pytest.approx(by_sweep.table["score"].tolist(), abs=1e-9)
    patches = mmf.knockout_by_patch(nano, long, size=4, layers=range(2, 5), score="answer", **QUIET)
    region = patches.table.iloc[3]
    at = nano_span(long, region["positions"])
    one = mmf.sweep(
        nano,
        long,
        lambda layers: mmf.Knockout(source=at, target="last", layers=layers),
        [range(2, 5)],
        "answer",
        engine="forward",
        **LOOSE,
    )
    assert region["score"] == pytest.approx(one.table["score"][0], abs=SAME)
    assert patches.plot() is not None
    assert "nats" in patches.summary()


def nano_span(prompt, positions):
    return prompt.spans["image"].part(list(positions), "patch")


def test_the_score_is_part_of_a_folders_identity(tiny, prompt, tmp_path):
    def run(score, **more):
        return mmf.flow(tiny, prompt, ["image->last"], 1, score=score, folder=tmp_path / "a", **LOOSE, **more)

    run("answer")
    kept = json.loads((tmp_path / "a" / "settings.json").read_text())
    assert kept["score"] == "answer"
    for other in ("first", "options", spread):
        with pytest.raises(mmf.DataError, match="score"):
            run(other)
    told = []
    mmf.flow(
        tiny,
        prompt,
        ["image->last"],
        1,
        score="answer",
        folder=tmp_path / "a",
        only_correct=False,
        progress=False,
        report=told.append,
    )
    assert "0 prompt(s) to run" in told[0]
    assert mmf.results.FlowResult.load(tmp_path / "a").to_frame(tokens=True)["word"].nunique() == 3
    mmf.flow(
        tiny, prompt, ["image->last"], 1, score=lambda logits, p: float(logits[0, 1]), folder=tmp_path / "b", **LOOSE
    )
    with pytest.raises(mmf.DataError, match="score"):
        mmf.flow(
            tiny,
            prompt,
            ["image->last"],
            1,
            score=lambda logits, p: float(logits[0, 2]),
            folder=tmp_path / "b",
            **LOOSE,
        )
    mmf.flow(tiny, prompt, ["image->last"], 1, folder=tmp_path / "c", **LOOSE)
    assert "score" not in json.loads((tmp_path / "c" / "settings.json").read_text())
