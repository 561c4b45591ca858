"""Skip against hooks on the layers; generations, batches, the sweep, errors."""

import pytest
import torch
from kit.families import EAGER_ONLY, FAMILIES, family
from kit.tiny import picture, tiny_graph

import nnsight_mmflow as mmf
from nnsight_mmflow.inside.names import cache_of

QUESTION = "what color is the circle ?"
QUIET = {"progress": False, "report": str}


def asked(graph, seed=0, question=QUESTION):
    return graph.prompt(picture(seed, 96, 64), question, "red")


def by_hand(graph, inputs, layers, part, positions=None):
    """A whole forward with hooks: the layer's output is its input, or its part's share is zero."""
    chosen, hooks = slice(None) if positions is None else positions, []

    def passes(module, given, output):
        changed = output.clone()
        changed[:, chosen] = given[0][:, chosen]
        return changed

    def adds_nothing(module, given, output):
        first = output[0] if isinstance(output, tuple) else output
        changed = first.clone()
        changed[:, chosen] = 0
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    for layer in layers:
        module = graph.layers[layer]._module if part == "layer" else graph.joining(part, layer)[0]._module
        hooks.append(module.register_forward_hook(passes if part == "layer" else adds_nothing))
    with torch.no_grad():
        logits = graph.adapter.model(**inputs, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize("at", [None, "image", "question"])
@pytest.mark.parametrize("part", ["layer", "attn", "mlp"])
@pytest.mark.parametrize("name", FAMILIES)
def test_skipping_equals_hooks(name, part, at):
    graph = family(name, "eager" if name in EAGER_ONLY else "sdpa")
    prompt, layers = asked(graph), (1, 2)
    wanted = by_hand(graph, prompt.inputs, layers, part, None if at is None else list(prompt.spans[at]))
    with torch.no_grad(), graph.trace(prompt, mmf.Skip(layers=layers, at=at, part=part), use_cache=False):
        found = graph.model.output.logits.save()
    assert torch.equal(found, wanted)
    with torch.no_grad():
        plain = graph.adapter.model(**prompt.inputs).logits
    assert (plain[0, -1] - found[0, -1]).abs().max() > 1e-5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("part", ["layer", "attn", "mlp"])
def test_in_generation_every_step_skips(part, attention):
    graph = tiny_graph(attention=attention)
    prompt = asked(graph)
    with (
        torch.no_grad(),
        graph.generate(
            prompt,
            mmf.Skip(layers=(1, 3), part=part),
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            suppress_tokens=[graph.image_token_id],
            output_logits=True,
            return_dict_in_generate=True,
        ) as tracer,
    ):
        made = tracer.result.save()
    inputs = dict(prompt.inputs)
    for step in range(4):
        wanted = by_hand(graph, inputs, (1, 3), part)[0, -1]
        assert (made.logits[step][0] - wanted).abs().max() < 2e-4
        inputs["input_ids"] = torch.cat([inputs["input_ids"], made.sequences[:, [len(prompt) + step]]], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    lengths = [layer.get_seq_length() for layer in cache_of(made).layers]
    assert lengths[0] == len(prompt) + 3
    assert (lengths[1] == 0) == (part != "mlp")


def test_a_padded_batch_equals_its_prompts_alone():
    graph = tiny_graph()
    prompts = [asked(graph), asked(graph, 1, "is the circle red or blue or green ?")]
    for pattern in (
        mmf.Skip(layers=[2], at="image"),
        mmf.Skip(layers=[2]),
        mmf.Skip(layers=[2], part="attn", at="last"),
    ):
        with torch.no_grad(), graph.trace(graph.batch(prompts), pattern):
            together = graph.model.output.logits[:, -1].save()
        for row, prompt in enumerate(prompts):
            with torch.no_grad(), graph.trace(prompt, pattern):
                alone = graph.model.output.logits[0, -1].save()
            assert (together[row] - alone).abs().max() < 1e-4


def test_a_layer_left_out_is_not_run():
    graph = tiny_graph()
    ran = []
    hook = graph.mlp(2)._module.register_forward_hook(lambda *call: ran.append(2))
    with torch.no_grad(), graph.trace(asked(graph), mmf.Skip(layers=[2])):
        graph.model.output.logits.save()
    hook.remove()
    assert not ran


def test_what_cannot_be_skipped_is_refused():
    graph = tiny_graph()
    prompt = asked(graph)
    with pytest.raises(mmf.MMFlowError, match="names no layer"):
        graph.trace(prompt, mmf.Skip(layers=[]))
    with pytest.raises(mmf.NoEffectError, match="holds no position"):
        graph.trace(prompt, mmf.Skip(layers=[1], at="image - image"))
    with pytest.raises(mmf.MMFlowError, match="part must be one of layer, attn, mlp"):
        graph.trace(prompt, mmf.Skip(layers=[1], part="head"))
    with pytest.raises(mmf.MMFlowError, match=r"layers \[7\] do not exist"):
        graph.trace(prompt, mmf.Skip(layers=[7]))
    with pytest.raises(mmf.ModelError, match="layer 0's cache, which stays empty"):
        graph.generate(prompt, mmf.Skip(layers=[0]))
    silent = tiny_graph(seed=8)
    with torch.no_grad():
        silent.mlp_out(1)._module.weight.zero_()
    with (
        pytest.raises(mmf.NoEffectError, match="add nothing there"),
        silent.trace(asked(silent), mmf.Skip(layers=[1], at="image", part="mlp")),
    ):
        silent.unembed.output.save()


@pytest.mark.parametrize("scope", ["window", "from_layer"])
def test_the_sweep_equals_hooks(scope, tmp_path):
    graph = tiny_graph(n_layers=4)
    prompts = [asked(graph, seed) for seed in (0, 1)]
    told = []
    run = {"window": 3, "scope": scope, "only_correct": False, "folder": tmp_path, "progress": False}
    result = mmf.skip_flow(graph, prompts, report=told.append, **run)
    frame = result.to_frame()
    assert len(frame) == 2 * 3 * 4
    assert told == ["skip flow: 2 prompt(s) to run; 13 forwards each."]
    for row in frame.itertuples():
        prompt = prompts[int(row.prompt)]
        layers = range(max(0, row.layer - 1), min(4, row.layer + 2)) if scope == "window" else range(row.layer, 4)
        positions = None if row.span == "all" else list(prompt.spans[row.span])
        after = by_hand(graph, prompt.inputs, layers, "layer", positions)[0, -1].softmax(-1)
        with torch.no_grad():
            token = graph.adapter.model(**prompt.inputs).logits[0, -1].argmax()
        assert abs(row.probability - float(after[token])) < 1e-5
    again = mmf.skip_flow(graph, prompts, report=told.append, **run)
    assert again.to_frame().equals(frame)
    assert "2 done already" in told[1]
    assert len(result.plot()._repr_png_()) > 10_000
    assert "lowest at layer" in result.summary()
    with pytest.raises(mmf.MMFlowError, match="span 'last' was not skipped"):
        result.needless_from("last")
    with pytest.raises(mmf.MMFlowError, match="scope is one of"):
        mmf.skip_flow(graph, prompts, scope="all", **QUIET)
    with pytest.raises(mmf.MMFlowError, match="only_correct=False"):
        mmf.skip_flow(graph, prompts, **QUIET)


def test_from_where_a_span_is_needless():
    import pandas as pd

    changes = {"image": [-90, -40, -2, -30, -1], "question": [-99, -99, -99, -99, -99]}
    rows = [
        {"prompt": "0", "span": span, "layer": layer, "change_percent": change}
        for span, values in changes.items()
        for layer, change in enumerate(values)
    ]
    result = mmf.results.SkipFlowResult(pd.DataFrame(rows), {})
    assert result.needless_from("image") == 4
    assert result.needless_from("image", 50) == 1
    assert result.needless_from("question") is None
