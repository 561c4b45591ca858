"""Saliency against a probe on eager's own weights; zeroed weights against zeroed weights; disruptions."""

import math
from dataclasses import replace

import nnsight
import numpy as np
import pytest
import torch
from kit.families import EAGER_ONLY, FAMILIES, family
from kit.tiny import picture, tiny_graph
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

import nnsight_mmflow as mmf
from nnsight_mmflow.patterns.saliency import flows_of, grouped

QUESTION = "what color is the circle ?"
QUIET = {"progress": False, "report": str}


def graph_of(name):
    return family(name, "eager" if name in EAGER_ONLY else "sdpa")


def asked(graph, answer="red", seed=0):
    return graph.prompt(picture(seed, 96, 64), QUESTION, answer)


class Probe:
    """An eager attention whose probabilities are multiplied by ones that have a gradient, or by a mask of zeros."""

    def __init__(self, graph, zeros=None):
        self.graph, self.zeros, self.ones, self.weights = graph, zeros or {}, [], []

    def __call__(self, module, query, key, value, attention_mask, scaling, dropout=0.0, softcap=None, **kwargs):
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        scores = query @ key.transpose(2, 3) * scaling
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if attention_mask is not None:
            scores = scores + attention_mask[..., : key.shape[-2]]
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        one = torch.ones_like(weights).requires_grad_(True)
        if len(self.ones) in self.zeros:
            target, source = self.zeros[len(self.ones)]
            with torch.no_grad():
                one[0, :, torch.tensor(target)[:, None], torch.tensor(source)[None]] = 0
        self.ones.append(one)
        self.weights.append(weights.detach())
        return (weights * one @ value).transpose(1, 2).contiguous(), weights

    def run(self, prompt):
        AttentionInterface.register("probe", self)
        AttentionMaskInterface.register("probe", eager_mask)
        config = self.graph.text_config
        before = config._attn_implementation
        config._attn_implementation = "probe"
        try:
            return self.graph.adapter.model(**prompt.inputs, use_cache=False).logits[0]
        finally:
            config._attn_implementation = before


def maps_by_probe(graph, prompt, token, released):
    probe = Probe(graph)
    loss = -probe.run(prompt)[-1].float().log_softmax(-1)[token]
    gradients = torch.autograd.grad(loss, probe.ones)
    if released:
        return [(w * g).abs().mean(1)[0] for w, g in zip(probe.weights, gradients, strict=True)]
    return [gradient.sum(1)[0].abs() for gradient in gradients]


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_flows_equal_those_of_a_probe(name, released):
    graph = graph_of(name)
    prompt = asked(graph)
    _, found = flows_of(graph, prompt, 5, released, 3)
    maps = maps_by_probe(graph, prompt, 5, released)
    spans = [list(prompt.spans[span]) for span in ("prefix", "image", "question | suffix")]
    largest = max(float(one.blocks.max()) for one in found)
    assert largest > 1e-4
    for one, flow in zip(found, maps, strict=True):
        for i, target in enumerate(spans):
            assert (one.received[i] - flow[target].sum(0)).abs().max() < 1e-5 * max(1, largest)
            for j, source in enumerate(spans):
                assert abs(float(one.blocks[i, j]) - float(flow[target][:, source].sum())) < 1e-5 * max(1, largest)


def test_the_equations_in_both_modes():
    graph = tiny_graph("llama", n_layers=3)
    prompt = asked(graph)
    token = graph.processor.tokenizer.convert_tokens_to_ids("red")
    spans = [list(prompt.spans[span]) for span in ("prefix", "image", "question | suffix")]
    sizes = [len(span) for span in spans]
    for mode in ("paper", "released"):
        table = mmf.saliency(graph, prompt, mode, progress=False).to_frame()
        maps = maps_by_probe(graph, prompt, token, mode == "released")
        for layer, flow in enumerate(maps):
            row, flow = table.iloc[layer], flow.double()
            for name, span in zip(("S_sys", "S_img", "S_ins"), spans, strict=True):
                total = flow[span].sum() if mode == "released" else flow[:, span].sum()
                assert abs(row[name] - float(total) / len(span)) < 1e-6
            image, text = spans[1], spans[2]
            divisor = 1 if mode == "released" else sizes[1]
            assert abs(row["S_vv"] - float(flow[image][:, image].sum()) / divisor) < 1e-6
            assert abs(row["S_vt"] - float(flow[text][:, image].sum()) / divisor) < 1e-6
            # as equation 6 is printed (rows of the image, columns of the instruction) it is nothing, by causality
            assert float(flow[image][:, text].sum()) == 0
            assert float(flow.triu(1).abs().max()) == 0
        # in the last layer only the last position's row has a gradient
        assert float(maps[-1][:-1].abs().max()) == 0
        last = table.iloc[-1]
        assert (last["S_sys"] == last["S_img"] == 0) == (mode == "released")
        assert last["S_ins"] > 0


def test_the_model_is_left_as_it_was():
    graph = tiny_graph("llama", n_layers=3)
    for parameter in graph.adapter.model.parameters():
        parameter.requires_grad_(False)
    mmf.saliency(graph, asked(graph), progress=False)
    assert all(parameter.grad is None for parameter in graph.adapter.model.parameters())
    for parameter in graph.adapter.model.parameters():
        parameter.requires_grad_(True)
    mmf.saliency(graph, asked(graph), progress=False)
    assert all(parameter.grad is None for parameter in graph.adapter.model.parameters())


def test_curves_pictures_and_errors(tmp_path):
    graph = tiny_graph("llama", n_layers=3)
    prompts = [replace(asked(graph, seed=seed), key=f"seed {seed}") for seed in (0, 1)]
    result = mmf.saliency(graph, prompts, progress=False)
    curves = result.curves()
    assert curves.to_numpy().min() == 0
    assert curves.to_numpy().max() == 1
    raw = result.curves(normalise=False)
    spread = raw.to_numpy().max() - raw.to_numpy().min()
    assert np.allclose(curves * spread + raw.to_numpy().min(), raw)
    assert len(result.tokens()) == 2 * 3 * 64
    per_image = result.tokens().groupby(["prompt", "layer"])["saliency"].sum().to_numpy()
    assert np.allclose(per_image, result.to_frame()["S_img"] * 64, rtol=1e-4)
    assert len(result.plot()._repr_png_()) > 10_000
    assert len(result.on_image(prompts[0])._repr_png_()) > 3_000
    with pytest.raises(mmf.MMFlowError, match="none of this key"):
        result.on_image(asked(graph, seed=1))
    assert "paper mode: 2 prompts" in result.summary()
    result.save(tmp_path)
    again = mmf.results.SaliencyResult.load(tmp_path)
    assert np.allclose(again.to_frame()["S_img"], result.to_frame()["S_img"])
    with pytest.raises(mmf.MMFlowError, match="mode must be one of paper, released"):
        mmf.saliency(graph, prompts, "code", progress=False)
    with pytest.raises(mmf.MMFlowError, match="saliency: 1 of 1 prompts have no answer"):
        mmf.saliency(graph, graph.prompt(picture(0), QUESTION), progress=False)
    with pytest.raises(mmf.NoEffectError, match="prompt 0 has no image"):
        mmf.saliency(graph, graph.prompt(None, QUESTION, "red"), progress=False)


def test_groups_of_an_empty_system_prompt_divide_by_nothing():
    from nnsight_mmflow.inside.saliency import Flows

    blocks = torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 4.0, 6.0]])
    found = grouped(Flows(blocks, blocks), [0, 2, 3], released=False)
    assert found == {"S_sys": 0.0, "S_img": 3.0, "S_ins": 2.0, "S_vv": 1.0, "S_vt": 2.0}


# ZeroWeights.


@pytest.mark.parametrize("name", FAMILIES)
def test_zeroed_weights_equal_zeroed_weights(name):
    graph = graph_of(name)
    prompt = asked(graph)
    source, target = list(prompt.spans["image"]), list(prompt.spans["question | suffix"])
    with torch.no_grad():
        wanted = Probe(graph, {layer: (target, source) for layer in (1, 2)}).run(prompt)[-1]
        plain = Probe(graph).run(prompt)[-1]
    with (
        torch.no_grad(),
        graph.trace(prompt, mmf.ZeroWeights(source="image", target="question | suffix", layers=[1, 2])),
    ):
        found = graph.model.output.logits[0, -1].save()
    assert (found - wanted).abs().max() < 2e-5 * max(1, float(wanted.abs().max()))
    assert (found - plain).abs().max() > 1e-4
    # another thing than closing them before the softmax, which scales the others up
    with (
        torch.no_grad(),
        graph.trace(prompt, mmf.Knockout(source="image", target="question | suffix", layers=[1, 2])),
    ):
        closed = graph.model.output.logits[0, -1].save()
    assert (found - closed).abs().max() > 1e-4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_zeroed_in_a_padded_batch(attention):
    graph = tiny_graph(attention=attention)
    prompts = [asked(graph), graph.prompt(picture(1), "is the circle red or blue ?")]
    pattern = mmf.ZeroWeights(source="image", target="last", layers=range(4))
    with torch.no_grad(), graph.trace(graph.batch(prompts), pattern):
        together = graph.model.output.logits[:, -1].save()
    for row, prompt in enumerate(prompts):
        with torch.no_grad(), graph.trace(prompt, pattern):
            alone = graph.model.output.logits[0, -1].save()
        assert (together[row] - alone).abs().max() < 1e-4


def test_zeroing_nothing_is_refused():
    graph = tiny_graph()
    prompt = asked(graph)
    with pytest.raises(mmf.NoEffectError, match="source and target swapped"):
        graph.trace(prompt, mmf.ZeroWeights(source="last", target="image", layers=[0]))
    silent = tiny_graph(seed=9)
    with torch.no_grad():
        silent.attention(1)._module.v_proj.weight.zero_()
    with (
        pytest.raises(mmf.NoEffectError, match="zero already"),
        silent.trace(asked(silent), mmf.ZeroWeights(source="image", target="last", layers=[1])),
    ):
        silent.unembed.output.save()


# Disruption.


@pytest.mark.parametrize("stage", ["pre", "post"])
@pytest.mark.parametrize("scope", ["layer", "from_layer"])
def test_disruptions_equal_their_patterns(scope, stage, tmp_path):
    graph = tiny_graph("llama", n_layers=4)
    prompts = [asked(graph, seed=seed) for seed in (0, 1)]
    ways = ("img2txt", "img2img")
    result = mmf.disruption(graph, prompts, ways, scope=scope, stage=stage, folder=tmp_path, **QUIET)
    frame = result.to_frame()
    assert len(frame) == 2 * 2 * 4
    kind = mmf.Knockout if stage == "pre" else mmf.ZeroWeights
    six = {0, 1 / 9, 1 / 4, 3 / 7, 2 / 3, 1}
    for row in frame.itertuples():
        prompt = prompts[int(row.prompt)]
        layers = [row.layer] if scope == "layer" else range(row.layer, 4)
        target = "image" if row.way == "img2img" else "question | suffix"
        with torch.no_grad(), graph.trace(prompt, kind(source="image", target=target, layers=layers)):
            after = graph.model.output.logits[0, -1].save()
        with torch.no_grad():
            before = graph.adapter.model(**prompt.inputs).logits[0, -1]
        top, now = (set(one.topk(5).indices.tolist()) for one in (before, after))
        assert row.score_consistency == len(top & now) / len(top | now)
        assert any(math.isclose(row.score_consistency, value) for value in six)
        assert row.label_kept == (int(before.argmax()) == int(after.argmax()))
        assert abs(row.probability - float(after.softmax(-1)[before.argmax()])) < 1e-5
    again = mmf.disruption(graph, prompts, ways, scope=scope, stage=stage, folder=tmp_path, **QUIET)
    assert again.to_frame().equals(frame)
    means = frame.groupby(["way", "layer"])["score_consistency"].mean()
    for row in result.dominance().itertuples():
        lost = [1 - means[way, row.layer] for way in ("img2img", "img2txt")]
        if all(lost):
            assert abs(row.D - math.log(lost[0] / lost[1])) < 1e-9
    assert len(result.plot()._repr_png_()) > 10_000
    assert "lowest score consistency" in result.summary()


def test_the_control_draws_as_many_queries():
    from nnsight_mmflow.patterns.disruption import _edge

    graph = tiny_graph("llama")
    prompt = asked(graph)
    source, drawn = _edge(prompt, "img2rnd", 3)
    assert source == "image"
    assert len(drawn) == len(prompt.spans["question | suffix"])
    assert list(drawn) != list(_edge(prompt, "img2rnd", 4)[1])
    assert min(drawn) > prompt.spans["image"].positions[0]
    result = mmf.disruption(graph, [prompt], ["img2rnd"], layers=[0], **QUIET)
    with pytest.raises(mmf.MMFlowError, match="img2img, img2txt was not run"):
        result.dominance()
    for wrong in ({"ways": ["txt2img"]}, {"scope": "all"}, {"stage": "mid"}):
        with pytest.raises(mmf.MMFlowError):
            mmf.disruption(graph, [prompt], **wrong, **QUIET)


def test_cut_weights_are_exactly_zero_in_their_layer_and_nowhere_else():
    """Spec himap, checklist 8 and 9, on the weights that eager attention itself returns."""
    graph = tiny_graph("llama", n_layers=4, attention="eager")
    prompt = asked(graph)
    source, target = list(prompt.spans["image"]), list(prompt.spans["question | suffix"])
    for layers in ([1], range(1, 4)):
        with (
            torch.no_grad(),
            graph.trace(
                prompt, mmf.Knockout(source="image", target="question | suffix", layers=layers), use_cache=False
            ),
        ):
            maps = nnsight.save([graph.attention(layer).output[1][0] for layer in range(4)])
        for layer, weights in enumerate(maps):
            block = weights[:, target][:, :, source]
            assert bool((block == 0).all()) == (layer in layers)
            assert bool((block > 0).any()) == (layer not in layers)
            assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)  # what is left makes up for it
            assert weights.isfinite().all()
    # after the softmax nothing makes up for it: the target's result is smaller by what the image gave
    out, value = graph.attention_out(1), graph.attention(1)
    with torch.no_grad(), graph.trace(prompt, use_cache=False):
        plain = out.inputs[0][0][0].save()
        whole = value.output[1][0].save()
    with (
        torch.no_grad(),
        graph.trace(prompt, mmf.ZeroWeights(source="image", target="question | suffix", layers=[1]), use_cache=False),
    ):
        zeroed = out.inputs[0][0][0].save()
    assert float(whole[:, target][:, :, source].sum(-1).min()) > 0.01
    untouched = [position for position in range(len(prompt)) if position not in target]
    assert torch.equal(zeroed[untouched], plain[untouched])
    assert (zeroed[target] - plain[target]).abs().max() > 1e-3
