"""The flow experiment: both engines, the metric, what is left out, saving and resuming in process."""

import json
import math
import re

import pytest
import torch
from kit.tiny import TEXTS, TOWERS, picture, tiny_graph, tiny_model, tiny_processor

import nnsight_mmflow as mmf
from nnsight_mmflow.patterns.flow.edges import default_edges, named_spans

QUIET = {"progress": False, "report": lambda text: None}
QUESTION = "is the circle red or blue ?"


def prompts_of(graph, **kwargs):
    boxes = ((8, 8, 24, 24),)
    return [
        graph.prompt(picture(i), question, "red", options=("red", "blue"), boxes=boxes, key=f"q{i}", **kwargs)
        for i, question in enumerate((QUESTION, "is the big circle red or blue ?".replace("big ", "")))
    ]


def table_of(graph, **kwargs):
    return mmf.flow(graph, prompts_of(graph), only_correct=False, **QUIET, **kwargs).to_frame()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("text", TEXTS)
def test_engines_agree_for_every_default_edge(text, tower, attention):
    graph = tiny_graph(text, tower, attention=attention, n_layers=4)
    rows, forward = (table_of(graph, window=(1, 3), engine=engine) for engine in ("rows", "forward"))
    assert set(rows["edge"]) == set(default_edges(prompts_of(graph)))
    assert (rows["change_percent"].abs() > 1).any(), "some knockout must matter, or agreement means nothing"
    for column in ("probability", "log_probability_change"):
        # float32 sums in another order: the bound
        assert (rows[column] - forward[column]).abs().max() <= 1e-5
    assert (rows["answer_changed"] == forward["answer_changed"]).all()


def test_metric_is_change_of_the_first_generated_token(graph):
    prompt = graph.prompt(picture(0), QUESTION, "red")
    edge, layer = "image->last", 2
    result = mmf.flow(graph, prompt, [edge], window=1, only_correct=False, **QUIET).to_frame().set_index("layer")
    model = graph.adapter.model
    with torch.no_grad():
        base = model(**prompt.inputs).logits[0, -1].double().softmax(-1)
        generated = model.generate(**prompt.inputs, max_new_tokens=1, do_sample=False)[0, -1]
        with graph.trace(prompt, mmf.Knockout(source="image", target="last", layers=layer)):
            new = graph.unembed.output.save()
    new = new[0, -1].double().softmax(-1)
    p1, p2 = float(base[generated]), float(new[generated])
    assert result.loc[layer, "base_probability"] == pytest.approx(p1, rel=1e-5)
    assert result.loc[layer, "change_percent"] == pytest.approx((p2 - p1) / p1 * 100, abs=1e-3)
    assert result.loc[layer, "log_probability_change"] == pytest.approx(math.log(p2 / p1), abs=1e-5)
    assert bool(result.loc[layer, "answer_changed"]) == (int(new.argmax()) != int(generated))


def test_image_to_question_in_the_last_layer_is_exactly_zero(graph):
    table = table_of(graph, edges=["image->question"], window=1)
    last = table[table["layer"] == graph.n_layers - 1]
    # spec item 4; the rows go through another kernel shape than the clean run, so float noise is allowed
    assert last["log_probability_change"].abs().max() <= 1e-5
    assert table[table["layer"] == 0]["log_probability_change"].abs().max() > 1e-3


def test_window_sizes_in_one_call_equal_those_one_by_one(graph):
    together = table_of(graph, edges=["image->last"], window=(1, 3, 9))
    for size in (1, 3, 9):
        alone = table_of(graph, edges=["image->last"], window=size)
        part = together[together["window"] == size].reset_index(drop=True)
        assert (part["probability"] - alone["probability"]).abs().max() <= 1e-6  # chunks differ: float noise


def test_any_two_spans(graph):
    edges = ["image - object->text('circle')", "prefix | image->suffix", "~question - last - prefix->last"]
    rows, forward = (table_of(graph, edges=edges, window=3, engine=engine) for engine in ("rows", "forward"))
    assert set(rows["edge"]) == set(edges)
    assert (rows["probability"] - forward["probability"]).abs().max() <= 1e-5


def test_only_correct_prompts_count_and_the_rest_is_reported(graph):
    prompts = prompts_of(graph)
    answer = mmf.flow(graph, prompts[0], ["image->last"], only_correct=False, **QUIET).to_frame()["prediction"][0]
    good = graph.prompt(picture(0), QUESTION, answer.upper(), key="good")
    bad = graph.prompt(picture(0), QUESTION, "nonsense", key="bad")
    result = mmf.flow(graph, [good, bad], ["image->last"], **QUIET)
    assert set(result.to_frame()["prompt"]) == {"good"}
    assert result.header["left_out"] == {"answered otherwise": 1}
    assert "1 of 2 prompts counted; 1 left out (answered otherwise)" in result.summary()
    with pytest.raises(mmf.MMFlowError, match="none of 1 prompts was answered correctly"):
        mmf.flow(graph, bad, ["image->last"], **QUIET)


def test_prediction_is_what_generate_gives(graph):
    prompt = graph.prompt(picture(3), QUESTION, "red")
    ids = graph.adapter.model.generate(**prompt.inputs, max_new_tokens=16, do_sample=False)[0, len(prompt) :]
    said = graph.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert set(mmf.flow(graph, prompt, ["image->last"], only_correct=False, **QUIET).to_frame()["prediction"]) == {said}


def test_default_edges_follow_what_is_given(graph):
    plain = graph.prompt(picture(0), QUESTION, "red")
    assert default_edges([plain]) == ("image->last", "question->last", "last->last", "image->question")
    assert len(default_edges(prompts_of(graph))) == 9


def test_object_and_other_patches_partition_the_image(graph):
    spans, missing = named_spans(prompts_of(graph)[0])
    assert not missing
    assert spans["object"] | spans["other"] == spans["image"]
    assert not len(spans["object"] & spans["other"])
    assert len(spans["object"]) == 4
    options = spans["true_option"] | spans["false_option"] | spans["question_without_options"]
    assert options == spans["question"]


def test_lost_options_are_counted_not_silent(graph):
    good = prompts_of(graph)[0]
    odd = graph.prompt(picture(1), QUESTION, "red", options=("green", "blue"), key="odd")
    result = mmf.flow(graph, [good, odd], only_correct=False, **QUIET)
    assert result.header["left_out"] == {"no edges with options: not found in the prompt": 1}
    assert "true_option->last" not in set(result.to_frame().query("prompt == 'odd'")["edge"])
    with pytest.raises(mmf.MMFlowError, match="'green' does not occur in the prompt"):
        mmf.flow(graph, odd, ["true_option->last"], only_correct=False, **QUIET)


@pytest.mark.parametrize(
    ("edges", "error", "text"),
    [
        (["question->image"], mmf.NoEffectError, "would change nothing"),
        (["image-question"], mmf.MMFlowError, 'an edge is "source->target"'),
        (["picture->last"], mmf.SpanError, "'picture' is not known. There are: prefix, image, question"),
        (["all->last"], mmf.MMFlowError, "nothing to read"),
        (["object->last"], mmf.MMFlowError, "has no boxes: graph.prompt(..., boxes="),
    ],
)
def test_wrong_edges_are_refused_before_any_forward(graph, edges, error, text):
    with pytest.raises(error, match=re.escape(text)):
        mmf.flow(graph, graph.prompt(picture(0), QUESTION, "red"), edges, **QUIET)


def test_other_wrong_arguments(graph):
    prompt = graph.prompt(picture(0), QUESTION)
    with pytest.raises(mmf.MMFlowError, match="1 of 1 prompts have no answer"):
        mmf.flow(graph, prompt, **QUIET)
    with pytest.raises(mmf.MMFlowError, match="at least one prompt"):
        mmf.flow(graph, [], **QUIET)
    with pytest.raises(mmf.MMFlowError, match="window=\\(0,\\)"):
        mmf.flow(graph, prompt, window=0, only_correct=False, **QUIET)
    with pytest.raises(mmf.MMFlowError, match="engine must be one of rows, forward"):
        mmf.flow(graph, prompt, engine="fast", only_correct=False, **QUIET)


def test_the_cost_is_told_before_the_run(graph):
    told = []
    mmf.flow(graph, prompts_of(graph), only_correct=False, progress=False, report=told.append)
    assert re.match(r"flow: 2 prompt\(s\) to run; at most \d+ rows, .* TFLOP by engine='rows'", told[0])


def test_finished_prompts_are_kept_and_not_repeated(graph, tmp_path, monkeypatch):
    prompts = prompts_of(graph)
    whole = mmf.flow(graph, prompts, window=3, only_correct=False, **QUIET).to_frame()
    mmf.flow(graph, prompts[:1], window=3, only_correct=False, folder=tmp_path, edges=default_edges(prompts), **QUIET)
    measured = []
    from nnsight_mmflow.patterns.flow import flow as module

    real = module.measure
    monkeypatch.setattr(module, "measure", lambda *given: measured.append(given[1].key) or real(*given))
    result = mmf.flow(
        graph, prompts, window=3, only_correct=False, folder=tmp_path, edges=default_edges(prompts), **QUIET
    )
    assert measured == ["q1"]
    assert result.to_frame().equals(whole)
    loaded = mmf.results.FlowResult.load(tmp_path)
    assert loaded.to_frame().equals(whole)
    assert loaded.header == json.loads(json.dumps(result.header))
    assert {"model", "versions", "seed", "plan"} <= set(loaded.header)


def test_a_failure_leaves_the_model_clean(graph, monkeypatch):
    prompt = graph.prompt(picture(0), QUESTION, "red")
    model = graph.adapter.model
    with torch.no_grad():
        before = model(**prompt.inputs).logits
    from nnsight_mmflow.inside import sweep

    def broken(*given):
        raise RuntimeError("planted")

    monkeypatch.setattr(sweep, "numbers_of", broken)
    with pytest.raises(RuntimeError, match="planted"):
        mmf.flow(graph, prompt, only_correct=False, **QUIET)
    with torch.no_grad():
        assert torch.equal(model(**prompt.inputs).logits, before)


def test_curves_are_means_of_ratios_with_a_bootstrap_band(graph):
    result = mmf.flow(graph, prompts_of(graph), ["image->last"], window=1, only_correct=False, **QUIET)
    mean, low, high = result.curves(1)["image->last"]
    by_hand = result.to_frame().groupby("layer")["change_percent"].mean()
    assert mean == pytest.approx(by_hand.to_numpy())
    assert (low <= mean + 1e-9).all()
    assert (mean <= high + 1e-9).all()
    assert "image-&gt;last" in result._repr_html_()


def test_loading_nothing_is_an_error(tmp_path):
    with pytest.raises(mmf.DataError, match=re.escape("flow.json is missing")):
        mmf.results.FlowResult.load(tmp_path)


def test_a_sliding_window_is_honoured():
    config = tiny_model("mistral").config
    config.text_config.sliding_window = 40  # shorter than the prompt: the question cannot see the image's start
    torch.manual_seed(0)
    model = type(tiny_model("mistral"))(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    graph = mmf.adapt(model, tiny_processor())
    prompt = graph.prompt(picture(0), QUESTION, "red")
    fast, slow = (
        mmf.flow(graph, prompt, window=(1, 3), only_correct=False, engine=engine, **QUIET).to_frame()
        for engine in ("rows", "forward")
    )
    assert (fast["log_probability_change"] - slow["log_probability_change"]).abs().max() < 1e-5
    assert slow["log_probability_change"].abs().max() > 1e-3
    # what lies further back than the window is closed already: blocking it changes nothing, and must say so
    far = "text('USER')"
    with (
        pytest.raises(mmf.NoEffectError),
        torch.no_grad(),
        graph.trace(prompt, mmf.Knockout(source=far, target="last", layers=0)),
    ):
        graph.unembed.output.save()
    for engine in ("rows", "forward"):
        with pytest.raises(mmf.NoEffectError, match="closed"):
            mmf.flow(graph, prompt, [f"{far}->last"], window=1, only_correct=False, engine=engine, **QUIET)
