"""The TransformerLens side: shared weights, bound runs, names, spans instead of positions, and refused no-ops."""

import socket
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kit.families import family
from kit.tiny import picture, tiny_graph, tiny_model, tiny_processor
from PIL import Image

import nnsight_mmflow as mmf
from nnsight_mmflow.bridge.bridge import twin
from nnsight_mmflow.bridge.known import graph_of

QUESTION, LONGER = "what color is the circle ?", "is the circle red or blue or green ?"


@pytest.fixture(scope="module")
def both():
    graph = tiny_graph("llama")
    return SimpleNamespace(
        graph=graph,
        bridge=graph.to_transformer_lens(),
        prompt=graph.prompt(picture(0), QUESTION),
        other=graph.prompt(picture(1), QUESTION),
    )


def traced(graph, prompt, *patterns):
    with torch.no_grad(), graph.trace(prompt, *patterns, use_cache=False):
        logits = graph.model.output.logits.save()
    return logits


def _enter(context):
    if hasattr(context, "__enter__"):
        with context:
            pass


# One set of weights.


def test_every_parameter_is_shared_and_nothing_is_fetched_or_installed(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"nothing may be fetched or installed: {args}")

    monkeypatch.setattr(subprocess, "check_call", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    graph = mmf.adapt(tiny_model("llama"), tiny_processor())
    before = {name: getattr(graph.processor.tokenizer, name) for name in ("padding_side", "init_kwargs", "pad_token")}
    bridge = graph.to_transformer_lens()
    ours, theirs = ({id(tensor) for tensor in model.parameters()} for model in (graph.adapter.model, bridge))
    assert ours == theirs
    assert bridge.processor is graph.processor
    ids = graph.processor.tokenizer(QUESTION).input_ids
    assert bridge.tokenizer(QUESTION).input_ids == ids
    assert {name: getattr(graph.processor.tokenizer, name) for name in before} == before
    assert graph.backend == "sdpa"  # TransformerLens runs eager, on a configuration of its own
    own = {tensor.untyped_storage().data_ptr(): tensor for tensor in bridge.parameters()}
    more = [one for one in bridge.buffers() if one.untyped_storage().data_ptr() not in own]
    shared = {tensor.untyped_storage().data_ptr() for tensor in graph.adapter.model.buffers()}
    added = sum(one.nbytes for one in more if one.untyped_storage().data_ptr() not in shared)
    assert added < 0.02 * sum(tensor.nbytes for tensor in graph.adapter.model.parameters())


def test_weights_written_on_one_side_are_the_others():
    graph = mmf.adapt(tiny_model("llama"), tiny_processor())
    bridge, prompt = graph.to_transformer_lens(), graph.prompt(picture(0), QUESTION)
    before = graph.bound(bridge, prompt)().detach()
    with torch.no_grad():
        graph.mlp_out(2)._module.weight.mul_(3)
    after = graph.bound(bridge, prompt)().detach()
    assert (after - before).abs().max() > 0.1
    assert (after - traced(graph, prompt)).abs().max() < 1e-4


def test_a_bridge_that_is_there_gets_spans_and_patterns():
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model = tiny_model("llama")
    mirror = twin(model)
    bridge = build_bridge_from_module(mirror, type(mirror).__name__, hf_config=mirror.config)
    with pytest.raises(mmf.ModelError, match="has no graph"):
        graph_of(bridge)
    graph = mmf.adapt(bridge, tiny_processor())
    assert {id(one) for one in graph.adapter.model.parameters()} == {id(one) for one in model.parameters()}
    prompt = graph.prompt(picture(0), QUESTION)
    blocked = mmf.Knockout(source="image", target="last", layers=range(3))
    with torch.no_grad(), graph.hooks(bridge, prompt, blocked) as bound:
        found = bound()
    assert (found - traced(graph, prompt, blocked)).abs().max() < 1e-4
    assert (found - traced(graph, prompt)).abs().max() > 1e-3
    other = tiny_graph("llama")
    for use in (other.bound, other.hooks):
        with pytest.raises(mmf.ModelError, match="belongs to another graph"):
            _enter(use(bridge, other.prompt(picture(0), QUESTION)))
    bridge.enable_compatibility_mode(no_processing=True)
    with pytest.raises(mmf.ModelError, match="compatibility mode"):
        mmf.adapt(bridge, tiny_processor())
    with pytest.raises(mmf.ModelError, match="or a TransformerLens bridge, not int"):
        mmf.adapt(3, tiny_processor())


@pytest.mark.parametrize("name", ["qwen2_vl", "paligemma", "internvl", "smolvlm", "llava_pixtral", "llava_phi_siglip"])
def test_what_transformer_lens_cannot_take_is_told(name):
    with pytest.raises(mmf.ModelError, match=r"TransformerLens cannot take .*The nnsight side has every pattern"):
        family(name, "sdpa").to_transformer_lens()


def test_two_libraries_in_one_process(both):
    """Traces before, during and after are bit-equal, and nothing outlives a context, also when it ends in an error."""
    graph, prompt = both.graph, both.prompt
    before = traced(graph, prompt)
    blocked = mmf.Knockout(source="image", target="last", layers=range(3))
    plain = graph.bound(both.bridge, prompt)()
    hooks = [len(one._forward_pre_hooks) for one in both.bridge.modules()]  # TransformerLens' own, from its first run
    with torch.no_grad(), graph.hooks(both.bridge, prompt, blocked, mmf.Skip(layers=4)) as bound:
        bound()
        assert torch.equal(traced(graph, prompt), before)
    assert torch.equal(traced(graph, prompt), before)
    assert torch.equal(graph.bound(both.bridge, prompt)(), plain)
    with pytest.raises(RuntimeError, match="stop"), graph.hooks(both.bridge, prompt, blocked) as bound:
        raise RuntimeError("stop")
    assert torch.equal(graph.bound(both.bridge, prompt)(), plain)
    assert [len(one._forward_pre_hooks) for one in both.bridge.modules()] == hooks
    fresh = mmf.adapt(tiny_model("llama"), tiny_processor())
    alone = traced(fresh, fresh.prompt(picture(0), QUESTION))
    fresh.to_transformer_lens()
    assert torch.equal(traced(fresh, fresh.prompt(picture(0), QUESTION)), alone)


# TransformerLens' own tools, with the image.


def test_generic_activation_patch_and_its_span_axis(both):
    """Each cell equals the nnsight side's Patch from the clean run."""
    graph, bridge = both.graph, both.bridge
    clean, corrupt = graph.bound(bridge, both.prompt), graph.bound(bridge, both.other)
    with torch.no_grad():
        _, cache = clean.run_with_cache()
    table = mmf.bridge.patch_by_span(corrupt, cache, lambda logits: logits[0, -1, 7])
    assert list(table.columns) == ["prefix", "image", "question", "suffix", "last"]
    assert abs(table.attrs["corrupt"] - float(traced(graph, both.other)[0, -1, 7])) < 1e-4
    for layer in (1, 3):
        for span in table.columns:
            patch = mmf.Patch(at=span, layers=[layer - 1], value=mmf.values.from_run(both.prompt))
            try:
                wanted = float(traced(graph, both.other, patch)[0, -1, 7])
            except mmf.NoEffectError:  # what lies before the image is the same in both runs
                wanted = table.attrs["corrupt"]
            assert abs(table.loc[layer, span] - wanted) < 1e-4
    assert abs(table.loc[0, "image"] - float(traced(graph, both.prompt)[0, -1, 7])) < 1e-4
    assert abs(table.loc[0, "question"] - table.attrs["corrupt"]) < 1e-6


def test_attribution_with_two_pictures_is_patching_to_first_order(both):
    graph, bridge = both.graph, both.bridge
    pixels = np.asarray(picture(0)).astype(int)
    near = graph.prompt(Image.fromarray(np.clip(pixels + 1, 0, 255).astype(np.uint8)), QUESTION)
    clean, corrupt = graph.bound(bridge, near), graph.bound(bridge, both.prompt)

    def metric(logits):
        return logits[0, -1, 7]

    estimate = mmf.bridge.attribution_by_span(clean, corrupt, metric)
    with torch.no_grad():
        _, cache = clean.run_with_cache()
    measured = mmf.bridge.patch_by_span(corrupt, cache, metric)
    effect = measured - measured.attrs["corrupt"]
    largest = float(effect.abs().to_numpy().max())
    assert largest > 1e-3
    assert float((estimate - effect).abs().to_numpy().max()) < 0.15 * largest
    with pytest.raises(mmf.NoEffectError, match="the same picture and the same words"):
        mmf.bridge.attribution_by_span(corrupt, corrupt, metric)
    with pytest.raises(mmf.MMFlowError, match="no gradient"):
        mmf.bridge.attribution_by_span(clean, corrupt, lambda logits: logits.argmax().float())
    with pytest.raises(mmf.NoEffectError, match="holds what the corrupt run computes"):
        mmf.bridge.patch_by_span(clean, cache, metric, layers=[1])
    with pytest.raises(mmf.MMFlowError, match="they must be equal"):
        mmf.bridge.attribution_by_span(graph.bound(bridge, graph.prompt(picture(0), LONGER)), corrupt, metric)


def test_logit_lens_and_parts_of_the_residual_stream(both):
    """The last entry is the model's answer; the parts sum to the whole at image tokens too, by the merged embedding."""
    from transformer_lens.tools.analysis.logit_lens import logit_lens

    graph, bound = both.graph, both.graph.bound(both.bridge, both.prompt)
    with torch.no_grad():
        read = logit_lens(bound, bound.tokens, positions=-1)
        logits, cache = bound.run_with_cache()
        _, theirs = both.bridge.run_with_cache(bound.tokens, **bound.image)
    assert (read.values[-1].flatten() - logits[0, -1]).abs().max() < 1e-4
    whole, image = cache["resid_post", 4], list(both.prompt.spans["image"])
    for one, wrong in ((cache, False), (theirs, True)):
        parts, labels = one.decompose_resid(layer=5, return_labels=True)
        assert "embed" in labels
        gap = (parts.sum(0) - whole)[0].abs()
        assert (float(gap[image].max()) > 0.1) == wrong
        assert float(gap[[p for p in range(len(both.prompt)) if p not in image]].max()) < 1e-4
    assert graph.n_layers == 5


def test_direct_logit_attribution_sums_to_the_logit():
    from transformer_lens.tools.analysis.direct_logit_attribution import direct_logit_attribution

    graph = mmf.adapt(tiny_model("llama"), tiny_processor())
    bridge = graph.to_transformer_lens()
    bridge.enable_compatibility_mode()
    bound = graph.bound(bridge, graph.prompt(picture(0), QUESTION))
    with torch.no_grad():
        logits, cache = bound.run_with_cache()
        found = direct_logit_attribution(bridge, bound.tokens, answer_tokens=torch.tensor([7]), cache=cache)
    assert abs(float(found.attribution.sum()) - float(logits[0, -1, 7] - bridge.unembed.b_U[7])) < 1e-3


def test_tokens_that_do_not_fit_the_image_are_refused(both):
    bound = both.graph.bound(both.bridge, both.prompt)
    with pytest.raises(mmf.PromptError, match="str came where token ids are needed"):
        bound(QUESTION)
    with pytest.raises(mmf.PromptError, match="image tokens by row"):
        bound(bound.tokens[:, 5:])
    with pytest.raises(mmf.MMFlowError, match="shows the image in the first step alone"):
        bound.generate(max_new_tokens=2, use_past_kv_cache=False)
    batch = both.graph.batch([both.prompt, both.graph.prompt(picture(1), LONGER)])
    with pytest.raises(mmf.PromptError, match="padding would be read as text"):
        both.graph.bound(both.bridge, batch)(attention_mask=None)


def test_a_residual_stream_goes_on_from_a_layer(both):
    bound = both.graph.bound(both.bridge, both.prompt)
    with torch.no_grad():
        logits, cache = bound.run_with_cache()
        again = bound(cache["blocks.2.hook_in"], start_at_layer=2)
    assert (again - logits).abs().max() < 1e-4


# Names.


def test_transformer_lens_names_are_taken_for_sites(both):
    graph, prompt = both.graph, both.prompt
    for name, layers, ours in (
        ("blocks.1.hook_out", None, {"site": "resid", "layers": [1]}),
        ("hook_resid_post", [1], {"site": "resid", "layers": [1]}),
        ("blocks.2.hook_in", None, {"site": "resid", "layers": [1]}),
        ("hook_resid_pre", [2, 3], {"site": "resid", "layers": [1, 2]}),
        ("blocks.0.hook_in", None, {"site": "embed"}),
        ("blocks.3.hook_attn_out", None, {"site": "attn", "layers": [3]}),
        ("hook_mlp_out", range(2), {"site": "mlp", "layers": [0, 1]}),
    ):
        theirs = mmf.Patch(at="image", site=name, layers=layers, value=mmf.values.zeros())
        assert theirs == mmf.Patch(at="image", value=mmf.values.zeros(), **ours)
    head = mmf.Patch(at="image", site="blocks.1.attn.hook_z", heads=[2], value=mmf.values.zeros())
    same = mmf.Patch(at="image", site="attn", layers=[1], heads=[2], value=mmf.values.zeros())
    assert torch.equal(traced(graph, prompt, head), traced(graph, prompt, same))
    for name, layers, told in (
        ("blocks.1.hook_out", [1], "names its layer"),
        ("blocks.1.attn.hook_pattern", None, "closed and not written"),
        ("hook_embed", None, "without the image"),
        ("hook_resid_pre", [0, 1], "apart from the other layers"),
        ("hook_q", [1], "or a TransformerLens name"),
        ("attn.hook_z", [1], "give heads"),
    ):
        with pytest.raises(mmf.MMFlowError, match=told):
            mmf.Patch(at="image", site=name, layers=layers, value=mmf.values.zeros())
    corrupt = mmf.corruption.Corruption(both.other, "image")
    with pytest.raises(mmf.MMFlowError, match="causal_trace restores every layer"):
        mmf.causal_trace(graph, [prompt], [corrupt], sites=("blocks.1.hook_out",))


# Spans instead of positions.


@pytest.mark.parametrize("batched", [False, True])
def test_a_cache_by_span_holds_means_and_sums(both, batched):
    graph = both.graph
    prompts = [both.prompt, graph.prompt(picture(1), LONGER)] if batched else [both.prompt]
    asked = graph.batch(prompts) if batched else both.prompt
    bound = graph.bound(both.bridge, asked)
    with torch.no_grad():
        logits, cache = bound.run_with_cache()
        again, reduced = bound.run_with_span_cache()
    found = mmf.bridge.cache_by_span(cache, asked)
    assert torch.equal(logits, again)
    assert found.spans == reduced.spans == ("prefix", "image", "question", "suffix", "last")
    assert set(reduced) == set(found)
    for row, spans in enumerate(asked.rows()):
        for i, span in enumerate(found.spans):
            at = list(spans[span])
            wanted = cache["blocks.2.hook_out"][row, at].mean(0)
            assert (found["blocks.2.hook_out"][row, i] - wanted).abs().max() < 1e-4
            for j, read in enumerate(found.spans):
                weights = cache["pattern", 2][row][:, at][:, :, list(spans[read])]
                assert (found["pattern", 2][row, :, i, j] - weights.sum(-1).mean(-1)).abs().max() < 1e-5
        parts = found["pattern", 2][row, :, :, :4].sum(-1)
        assert (parts - 1).abs().max() < 1e-4  # the four parts are all there is to read
    for name in found:
        assert (found[name] - reduced[name]).abs().max() <= 1e-5 * max(1, float(found[name].abs().max()))
    assert not any(name.startswith("vision") for name in found)
    assert found["blocks.1.attn.hook_z"].shape[1:] == (5, 4, 16)


def test_a_span_cache_of_chosen_hooks_and_spans(both):
    bound = both.graph.bound(both.bridge, both.prompt)
    with torch.no_grad():
        _, one = bound.run_with_span_cache("blocks.2.attn.hook_pattern", ["image", "text('circle')"])
        _, some = bound.run_with_span_cache(lambda name: name.endswith("hook_mlp_out"))
    assert list(one) == ["blocks.2.attn.hook_pattern"]
    assert one["pattern", 2].shape == (1, 4, 2, 2)
    assert len(some) == 5
    with pytest.raises(KeyError, match="not among the 1"):
        one["blocks.2.hook_out"]
    with pytest.raises(mmf.MMFlowError, match="no hook point 'blocks.2.hook_outt'; near it are blocks.2.hook_out"):
        bound.run_with_span_cache(["blocks.2.hook_outt"])
    with pytest.raises(mmf.NoEffectError, match="has positions to reduce"):
        bound.run_with_span_cache(lambda name: name.startswith("vision"))
    with pytest.raises(mmf.NoEffectError, match="holds no position of row 0"):
        bound.run_with_span_cache("blocks.2.hook_out", ["image - image"])
    _, cache = bound.run_with_cache(names_filter="blocks.2.hook_out")
    with pytest.raises(mmf.MMFlowError, match="another prompt"):
        mmf.bridge.cache_by_span(cache, both.graph.prompt(picture(0), LONGER))


# Silent no-ops of TransformerLens 4.3.


def zeroed(tensor, hook):
    return torch.zeros_like(tensor)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("vision_encoder.hook_patch_embed", "never fires"),
        ("vision_projector.hook_projected", "never fires"),
        ("vision_encoder.encoder_layers.0.attn.hook_pattern", "leaves this attention to Hugging Face"),
        ("vision_encoder.encoder_layers.1.attn.hook_attn_scores", "leaves this attention to Hugging Face"),
        ("vision_encoder.hook_out", "takes the output of the tower's layer 1"),
        ("vision_encoder.hook_vision_out", "takes the output of the tower's layer 1"),
        ("vision_encoder.encoder_layers.2.hook_mlp_out", "not what comes behind it"),
        ("vision_encoder.encoder_layers.1.hook_resid_post", "returning another has none"),
    ],
)
def test_hooks_that_would_do_nothing_are_refused(both, name, told):
    bound = both.graph.bound(both.bridge, both.prompt)
    with torch.no_grad(), pytest.raises(mmf.NoEffectError, match=told):
        bound.run_with_hooks(fwd_hooks=[(name, zeroed)])


def test_a_hook_that_the_run_does_not_reach_is_refused(both):
    bound = both.graph.bound(both.bridge, both.prompt)
    with torch.no_grad(), pytest.raises(mmf.NoEffectError, match=r"blocks.3.hook_out never fired in this run"):
        bound.run_with_hooks(fwd_hooks=[("blocks.3.hook_out", zeroed)], stop_at_layer=2)


def test_hooks_by_a_filter_are_watched_too(both):
    """Planted: a filter that no hook point passes, and one for weights that have been used already."""
    bound = both.graph.bound(both.bridge, both.prompt)
    with torch.no_grad():
        with pytest.raises(mmf.NoEffectError, match="never fired in this run"):
            bound.run_with_hooks(fwd_hooks=[(lambda name: name.endswith("hook_nothing"), zeroed)])
        with pytest.raises(mmf.NoEffectError, match="leaves this attention to Hugging Face"):
            bound.run_with_hooks(
                fwd_hooks=[(lambda name: name.startswith("vision") and name.endswith("pattern"), zeroed)]
            )
        found = bound.run_with_hooks(fwd_hooks=[(lambda name: name == "blocks.2.attn.hook_pattern", zeroed)])
        assert (found - bound()).abs().max() > 1e-2


def test_hooks_that_work_are_left_alone(both):
    """In place at the tower's layer, before it, at the projector; and reading is right everywhere."""
    bound, seen = both.graph.bound(both.bridge, both.prompt), []

    def in_place(tensor, hook):
        tensor.zero_()

    def read(tensor, hook):
        seen.append(tensor.shape)

    with torch.no_grad():
        plain = bound()
        for name, hook in (
            ("vision_encoder.encoder_layers.1.hook_resid_post", in_place),
            ("vision_encoder.encoder_layers.0.hook_resid_post", zeroed),
            ("vision_projector.hook_in", zeroed),
            ("blocks.2.attn.hook_pattern", zeroed),
        ):
            assert (bound.run_with_hooks(fwd_hooks=[(name, hook)]) - plain).abs().max() > 1e-2, name
        everywhere = [name for name in both.bridge.hook_dict if name.endswith(("hook_out", "hook_pattern"))]
        everywhere.remove("rotary_emb.hook_out")  # fires as hook_cos and hook_sin
        bound.run_with_hooks(fwd_hooks=[(name, read) for name in everywhere])
    assert len(seen) >= len(everywhere) > 50


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_attention_that_is_left_to_hugging_face(name):
    graph = family(name, "sdpa")
    bridge, prompt = graph.to_transformer_lens(), graph.prompt(picture(0, 96, 64), QUESTION)
    blocked = mmf.Knockout(source="image", target="last", layers=[1])
    with pytest.raises(mmf.ModelError, match="Use `with graph.hooks"):
        blocked.hooks(bridge, prompt.spans)
    with torch.no_grad(), pytest.raises(mmf.NoEffectError, match="leaves this attention to Hugging Face"):
        graph.bound(bridge, prompt).run_with_hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", zeroed)])


def test_patterns_that_change_nothing_on_a_bridge(both):
    """Planted: no forward in the context; a value that stands there already; keys that are closed already."""
    graph, bridge, prompt = both.graph, both.bridge, both.prompt
    blocked = mmf.Knockout(source="image", target="last", layers=[2])
    with pytest.raises(mmf.NoEffectError, match="no forward reached its layers"), graph.hooks(bridge, prompt, blocked):
        pass
    with (
        torch.no_grad(),
        pytest.raises(mmf.NoEffectError, match="no forward reached its layers"),
        graph.hooks(bridge, prompt, blocked) as bound,
    ):
        bound(stop_at_layer=1)
    with torch.no_grad():
        _, cache = graph.bound(bridge, prompt).run_with_cache()
    itself = mmf.Patch(at="image", layers=[1], value=cache["resid_post", 1][:, list(prompt.spans["image"])][None])
    with (
        torch.no_grad(),
        pytest.raises(mmf.NoEffectError, match="what it writes or closes was so already"),
        graph.hooks(bridge, prompt, itself) as bound,
    ):
        bound()
    with (
        pytest.raises(mmf.NoEffectError, match="source and target swapped"),
        graph.hooks(bridge, prompt, mmf.Knockout(source="last", target="image", layers=[1])),
    ):
        pass
    for pattern, told in (
        (mmf.FastV(k=2), "Take mode='mask'"),
        (mmf.prune.SparseVLM(layers=(2,), keep=(0.5,), mode="mask"), "merges nothing"),
    ):
        with pytest.raises(mmf.MMFlowError, match=told), graph.hooks(bridge, prompt, pattern):
            pass
    with pytest.raises(mmf.MMFlowError, match="spans are not enough"):
        mmf.FastV(k=2, mode="mask").hooks(bridge, prompt.spans)
