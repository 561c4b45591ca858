"""Attention contributions: against eager's own weights, head by head; sums give the output; what they are used for."""

import pytest
import torch
from families import EAGER_ONLY, FAMILIES, family
from tiny import picture, tiny_graph

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
    from nnsight_mmflow import _attention

    real = _attention.turned
    monkeypatch.setattr(_attention, "turned", lambda query, cosine, sine: real(query, cosine, -sine))
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
    again = mmf.ContributionsResult.load(result.save(tmp_path))
    assert again.to_frame().equals(result.to_frame())
