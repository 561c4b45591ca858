"""Attention contributions: against eager's own weights, head by head; sums give the output; what they are used for."""

import numpy as np
import pytest
import torch
from kit.families import EAGER_ONLY, FAMILIES, family
from kit.tiny import picture, tiny_graph
from PIL import Image

import nnsight_mmflow as mmf

QUESTION = "what color is the circle ?"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_sums_are_the_attentions_output(name):
    """read_prompt checks every layer; here: the error that it found, and that its check can fail."""
    graph = family(name, "eager" if name in EAGER_ONLY else "sdpa")
    prompt = graph.prompt(picture(0, 96, 64), QUESTION)
    for source, target in (("image", "last"), ("image", "question"), ("question", "last")):
        result = mmf.contributions(graph, prompt, source, target, progress=False)
        assert result.header["largest_error"] < 1e-5
        assert result.to_frame()["share"].between(0, 1).all()


def test_an_attention_that_is_not_known_is_refused(monkeypatch):
    from nnsight_mmflow.inside import heads

    real = heads.rotated
    monkeypatch.setattr(heads, "rotated", lambda states, cosine, sine: real(states, cosine, -sine))
    graph = tiny_graph("llama")
    with pytest.raises(mmf.MMFlowError, match=r"layer 0: the contributions of all positions sum up to something"):
        mmf.contributions(graph, graph.prompt(picture(0), QUESTION), progress=False)


@pytest.mark.parametrize("text", ["llama", "phi"])
def test_norms_and_projections_equal_those_of_eagers_weights(text):
    """The slow, obvious way: a plain eager forward gives weights and values, one head and one token after another."""
    graph, model = tiny_graph(text, attention="eager"), tiny_graph(text, attention="eager").adapter.model
    prompt = graph.prompt(picture(0), QUESTION)
    frame = mmf.contributions(graph, prompt, "image", "last", heads=True, progress=False).to_frame()
    values = {}
    decoder = model.get_decoder()
    handles = [
        layer.self_attn.v_proj.register_forward_hook(lambda _m, _g, out, i=i: values.update({i: out[0]}))
        for i, layer in enumerate(decoder.layers)
    ]
    with torch.no_grad():
        out = model(**prompt.inputs, output_attentions=True)
    for handle in handles:
        handle.remove()
    direction = model.lm_head.weight[out.logits[0, -1].argmax()].detach()
    direction = direction / direction.norm()
    for layer in (0, 3):
        attention = decoder.layers[layer].self_attn
        weight = getattr(attention, "o_proj", None) or attention.dense
        width = graph.head_width
        per_group = graph.n_heads // (values[layer].shape[-1] // width)
        for index in (0, 17, 63):
            position = list(prompt.spans["image"])[index]
            each = []
            for head in range(graph.n_heads):
                group = head // per_group
                value = values[layer][position, group * width : (group + 1) * width]
                share = weight.weight[:, head * width : (head + 1) * width].detach() @ value
                each.append(out.attentions[layer][0, head, -1, position] * share)
            summed = torch.stack(each).sum(0)
            there = frame[(frame["layer"] == layer) & (frame["index"] == index)].set_index("head")
            assert abs(there.loc[-1, "norm"] - float(summed.norm())) < 1e-5
            assert abs(there.loc[-1, "projection"] - float(summed @ direction)) < 1e-5
            for head in range(graph.n_heads):
                assert abs(there.loc[head, "norm"] - float(each[head].norm())) < 1e-5
                assert abs(there.loc[head, "weight"] - float(out.attentions[layer][0, head, -1, position])) < 1e-6


def test_the_norm_of_the_sum_is_at_most_the_sum_of_the_norms():
    graph = tiny_graph("llama")
    frame = mmf.contributions(graph, graph.prompt(picture(0), QUESTION), progress=False).to_frame()
    assert (frame["norm"] <= frame["sum_of_head_norms"] + 1e-6).all()
    assert frame["norm"].max() > 1e-3


def test_shares_of_everything_are_one():
    graph = tiny_graph("llama")
    frame = mmf.contributions(graph, graph.prompt(picture(0), QUESTION), "all", "last", progress=False).to_frame()
    assert (frame.groupby("layer")["share"].sum() - 1).abs().max() < 1e-5


def test_what_cannot_be_read_is_refused():
    graph = tiny_graph("llama")
    prompt = graph.prompt(picture(0), QUESTION)
    with pytest.raises(mmf.NoEffectError, match="source and target swapped"):
        mmf.contributions(graph, prompt, "last", "image", progress=False)
    with pytest.raises(mmf.MMFlowError, match="at least one prompt"):
        mmf.contributions(graph, [], progress=False)


@pytest.fixture(scope="module")
def facts():
    nano = mmf.load("nano")
    prompts = mmf.nano.prompts(nano, 6, "fact-flag")
    return nano, prompts, mmf.contributions(nano, prompts, progress=False)


def test_top_tokens_and_what_knocking_them_out_does(facts):
    nano, prompts, result = facts
    top = result.top(8)
    assert (top.groupby("prompt").size() == 8).all()
    table = result.knock_out(nano, prompts, 8)
    assert len(table) == 6
    # the carriers matter more than as many others
    assert table["top_probability"].mean() < table["random_probability"].mean()
    assert (table["base_probability"] > 0.9).all()
    assert 0 <= result.overlap(8) <= 1
    close = result.concentration(8)
    assert list(close["layer"]) == list(range(10))
    assert (close["density"] > 1).all()
    assert close["top_share"].between(8 / 64, 1).all()
    with pytest.raises(mmf.MMFlowError, match="k=65"):
        result.top(65)
    with pytest.raises(mmf.MMFlowError, match="not the prompts that the result is of"):
        result.knock_out(nano, prompts[:2], 8)


def test_figures_summary_and_files(facts, tmp_path):
    _, prompts, result = facts
    assert len(result.plot()._repr_png_()) > 10_000
    assert len(result.on_image(prompts[0], 5)._repr_png_()) > 10_000
    assert "largest share of all contributions at layer" in str(result)
    again = mmf.results.ContributionsResult.load(result.save(tmp_path))
    assert again.to_frame().equals(result.to_frame())


# Controls.


def test_shuffled_image_tokens_are_really_shuffled():
    """Reference: the merged embedding permuted by a hook, and contributions of the shuffled run read afresh."""
    from nnsight_mmflow.patterns.contributions.run import read_prompt

    graph = tiny_graph("llama", n_layers=3)
    prompts = [graph.prompt(picture(seed), QUESTION) for seed in (0, 1)]
    result = mmf.contributions(graph, prompts, progress=False)
    control = result.position_control(graph, prompts, seed=5)
    assert len(control) == 2 * 3
    image = list(prompts[1].spans["image"])
    order = np.random.default_rng([5, 1]).permutation(len(image))

    def shuffle(module, given, named):
        hidden = given[0].clone()
        hidden[:, image] = given[0][:, [image[i] for i in order]]
        return (hidden, *given[1:]), named

    hook = graph.layers[0]._module.register_forward_pre_hook(shuffle, with_kwargs=True)
    _, found = read_prompt(graph, prompts[1], image, [len(prompts[1]) - 1])
    hook.remove()
    table = result.to_frame()
    for layer, one in enumerate(found):
        before = table[(table["prompt"] == "1") & (table["layer"] == layer)].sort_values("index")["norm"].to_numpy()
        row = control[(control["prompt"] == "1") & (control["layer"] == layer)].iloc[0]
        after = one.norm[0].numpy()
        assert abs(row["position_correlation"] - np.corrcoef(before, after)[0, 1]) < 1e-4
        assert abs(row["content_correlation"] - np.corrcoef(before[order], after)[0, 1]) < 1e-4


def test_the_shuffle_control_refuses_what_it_cannot_shuffle():
    graph = tiny_graph("llama")
    prompts = [graph.prompt(picture(0), QUESTION)]
    with pytest.raises(mmf.MMFlowError, match="the control shuffles image tokens, but 'question' holds"):
        mmf.contributions(graph, prompts, "question", progress=False).position_control(graph, prompts)
    with pytest.raises(mmf.MMFlowError, match="not the prompts that the result is of"):
        mmf.contributions(graph, prompts, progress=False).position_control(graph, [])
    qwen = family("qwen3_vl")
    asked = [qwen.prompt(picture(0, 96, 64), QUESTION)]
    with pytest.raises(mmf.ModelError, match="again in its first"):
        mmf.contributions(qwen, asked, progress=False).position_control(qwen, asked)


def test_right_and_wrong_answers_are_compared(facts):
    nano, *_ = facts
    random = np.random.default_rng(0)
    prompts = []
    for number, sample in enumerate(mmf.nano.samples(40, "fact-flag")):
        pixels = np.asarray(sample.image).astype(float)
        if number % 2:  # what a flag shows is drowned in noise, so that many answers are wrong
            pixels = pixels + random.normal(0, 400, pixels.shape)
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        prompts.append(nano.prompt(image, sample.question, sample.answer, key=sample.key))
    result = mmf.contributions(nano, prompts, "text('this place')", "last", progress=False)
    table = result.correctness()
    assert list(table["score"]) == ["contribution", "confidence"]
    assert (table["n_correct"] + table["n_incorrect"] == 40).all()
    assert (table["low"] <= table["auroc"]).all()
    assert (table["auroc"] <= table["high"]).all()
    assert table["n_incorrect"].iloc[0] >= 5
    # the score is the mean over layers of the norm summed over the source
    frame = result.to_frame()
    by_hand = frame.groupby(["prompt", "layer"])["norm"].sum().groupby("prompt").mean()
    right = frame.groupby("prompt")["correct"].first().astype(bool)
    pairs = [(a > b) + 0.5 * (a == b) for a in by_hand[right] for b in by_hand[~right]]
    assert abs(table["auroc"].iloc[0] - np.mean(pairs)) < 1e-9
    assert abs(table["mean_correct"].iloc[0] - by_hand[right].mean()) < 1e-9
    assert len(result.plot_correctness()._repr_png_()) > 10_000
    with pytest.raises(mmf.MMFlowError, match=r"layers \[10\] do not exist"):
        result.correctness([10])


def test_comparisons_that_cannot_be_made(facts):
    nano, prompts, result = facts
    with pytest.raises(mmf.MMFlowError, match="6 of 6 prompts are answered rightly"):
        result.correctness()
    bare = nano.prompt(prompts[0].images[0], prompts[0].question)
    with pytest.raises(mmf.MMFlowError, match="some prompts have no answer"):
        mmf.contributions(nano, bare, progress=False).correctness()
