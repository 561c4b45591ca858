"""Attribution patching: the gradient is the right one, and what is measured is a real patch."""

import pytest
import torch
from kit.families import EAGER_ONLY, FAMILIES, family
from kit.tiny import picture, tiny_graph

import nnsight_mmflow as mmf

QUESTION = "what color is the circle ?"


def pair(graph, seed=0):
    prompt = graph.prompt(picture(seed, 96, 64), QUESTION)
    return prompt, mmf.corruption.other_image(graph, prompt, picture(seed + 1, 96, 64))


def by_hand(graph, prompt, corruption, spans):
    """Estimates by hooks on the output projections of the model, and exact effects by overwriting their inputs."""
    model, width = graph.adapter.model, graph.head_width
    outs = [graph.attention_out(layer)._module for layer in range(graph.n_layers)]
    seen = []

    def keep(module, given):
        given[0].retain_grad() if given[0].requires_grad else None
        seen.append(given[0])

    hooks = [out.register_forward_pre_hook(keep) for out in outs]
    with torch.no_grad():
        token = int(model(**prompt.inputs).logits[0, -1].argmax())
    clean = seen[:]
    seen.clear()
    log = model(**corruption.prompt.inputs).logits[0, -1].float().log_softmax(-1)[token]
    log.backward()
    model.zero_grad()
    for hook in hooks:
        hook.remove()
    low, estimates = float(log.detach()), {}
    for layer, (was, now) in enumerate(zip(clean, seen, strict=True)):
        gain = ((was - now.detach()) * now.grad)[0].unflatten(-1, (graph.n_heads, width)).sum(-1)
        for span in spans:
            for head in range(graph.n_heads):
                estimates[span, layer, head] = float(gain[list(prompt.spans[span]), head].sum())

    def exact(span, layer, head):
        def write(module, given):
            changed = given[0].clone()
            columns = slice(head * width, (head + 1) * width)
            changed[0, list(prompt.spans[span]), columns] = clean[layer][0, list(prompt.spans[span]), columns]
            return (changed,)

        hook = outs[layer].register_forward_pre_hook(write)
        with torch.no_grad():
            after = model(**corruption.prompt.inputs).logits[0, -1].float().log_softmax(-1)[token]
        hook.remove()
        return float(after) - low

    return estimates, exact


@pytest.mark.parametrize("name", FAMILIES)
def test_estimates_equal_gradients_by_hand(name):
    graph = family(name, "eager" if name in EAGER_ONLY else "sdpa")
    prompt, corruption = pair(graph)
    spans = ["image", "last"]
    found = mmf.attribution_patching(graph, prompt, corruption, spans, exact=6, progress=False).to_frame()
    estimates, exact = by_hand(graph, prompt, corruption, spans)
    assert len(found) == 2 * graph.n_layers * graph.n_heads
    assert found["estimate"].abs().max() > 1e-4
    assert found["exact"].notna().sum() == 6
    for row in found.itertuples():
        assert abs(row.estimate - estimates[row.span, row.layer, row.head]) < 1e-4
        if row.exact == row.exact:
            assert abs(row.exact - exact(row.span, row.layer, row.head)) < 1e-5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_weights_without_gradients_and_what_is_printed(attention):
    graph = tiny_graph("llama", attention=attention, seed=6)
    for parameter in graph.adapter.model.parameters():
        parameter.requires_grad_(False)
    pairs = [pair(graph, seed) for seed in (0, 2)]
    result = mmf.attribution_patching(graph, *map(list, zip(*pairs, strict=True)), exact=16, progress=False)
    assert -1 <= result.correlation <= 1
    assert f"correlation with exact patching {result.correlation:.2f} (of 32 cells)" in result.summary()
    assert len(result.plot()._repr_png_()) > 10_000
    told = result.plot().get_suptitle().replace("\n", " ")
    for stated in (
        "log-probability",
        "counted from 0",
        "another image",
        "P_clean",
        "P_corrupt",
        "2 prompts, 0 left out",
    ):
        assert stated in told
    top = result.top(3)["estimate"].abs()
    assert list(top) == sorted(top, reverse=True)
    bare = mmf.attribution_patching(graph, *pairs[0], exact=0, progress=False)
    assert "unchecked" in bare.summary()
    assert len(bare.plot()._repr_png_()) > 5_000


def test_runs_that_do_not_fit():
    graph = tiny_graph()
    prompt, corruption = pair(graph)
    with pytest.raises(mmf.MMFlowError, match="one for each is needed"):
        mmf.attribution_patching(graph, [prompt, prompt], corruption, progress=False)
    same = mmf.corruption.other_image(graph, prompt, picture(0, 96, 64))
    with pytest.raises(mmf.NoEffectError, match="are the same"):
        mmf.attribution_patching(graph, prompt, same, progress=False)


def test_on_nano_estimates_go_with_what_is_measured():
    graph = mmf.load("nano")
    result = mmf.attribution_patching(graph, *mmf.nano.trace_pairs(graph, 4, "flag"), progress=False)
    assert result.correlation > 0.5


def test_cells_that_change_nothing_are_told_apart():
    """Planted in the middle of a session: a patch that writes what stands there already."""
    from nnsight_mmflow.runs.each import next_or_none, next_under

    graph = tiny_graph("llama")
    prompt = graph.prompt(picture(0), "what color is the circle ?")
    itself = mmf.Patch(at="image", layers=[1], value=mmf.values.from_run(prompt))
    silenced = mmf.Patch(at="image", layers=[1], value=mmf.values.zeros())
    choices = [(silenced,), (itself,), (), (silenced,)]
    found = next_or_none(graph, prompt, choices, token=7, top=3)
    assert found[1] is None
    assert found[0] == found[3]
    with torch.no_grad():
        plain = graph.adapter.model(**prompt.inputs).logits[0, -1].double().log_softmax(-1)
    assert abs(found[2].log - float(plain[7])) < 1e-5
    assert found[2].top == plain.topk(3).indices.tolist()
    assert abs(found[0].log - found[2].log) > 1e-3
    with pytest.raises(mmf.NoEffectError, match="stands there already"):
        next_under(graph, prompt, choices)
