"""Pruning: against keys closed by hand in whole eager forwards; caches, batches, controls, errors."""

from dataclasses import replace

import pytest
import torch
from kit.families import EAGER_ONLY, FAMILIES, family
from kit.tiny import picture, tiny_graph

import nnsight_mmflow as mmf
from nnsight_mmflow.inside.names import cache_of

QUESTION = "what color is the circle ?"
METHODS = {
    "himap": lambda graph: mmf.HiMAP(k1=first(graph), k2=graph.n_layers - 1),
    "himap_rows": lambda graph: mmf.HiMAP(k1=first(graph), k2=graph.n_layers - 1, deep="row"),
    "fastv": lambda graph: mmf.FastV(k=graph.n_layers - 2),
    "fastv_mean": lambda graph: mmf.FastV(k=graph.n_layers - 2, rank="mean"),
    "pyramid": lambda graph: mmf.PyramidDrop(layers=(first(graph), graph.n_layers - 1), keep=(0.5, 0.25)),
    "sparse": lambda graph: mmf.prune.SparseVLM(
        layers=(first(graph), graph.n_layers - 1), keep=(0.6, 0.3), recycle=False
    ),
    "keep": lambda graph: mmf.prune.Keep(at="corner", from_layer=first(graph)),
    "random": lambda graph: mmf.Random(k=graph.n_layers - 2),
    "grid": lambda graph: mmf.prune.Grid(k=graph.n_layers - 2, r=0.7),
    "before": lambda graph: mmf.Random(k=graph.enters_after),
    "all": lambda graph: mmf.DropAll(from_layer=graph.n_layers - 2),
}


def first(graph):
    return max(1, graph.enters_after)


def graphs(name, attention="sdpa"):
    """The graph, and its twin that runs eager attention."""
    return family(name, "eager" if name in EAGER_ONLY else attention), family(name, "eager")


def asked(graph, seed=0, question=QUESTION):
    prompt = graph.prompt(picture(seed, 96, 64), question)
    return replace(
        prompt, spans=prompt.spans.having(corner=prompt.spans["image"].part(list(prompt.spans["image"])[:3], "corner"))
    )


def with_closed(eager, prompt, closed, inputs=None, read=False):
    """A whole eager forward; `closed[layer]` are keys that no later position reads in that layer. Maps if `read`."""
    hooks = []

    def hook_of(keys):
        def hook(module, given, named):
            mask = named["attention_mask"].clone()
            lowest = torch.finfo(mask.dtype).min
            mask[..., keys] = lowest
            mask[..., keys, keys] = 0  # what is dropped reads itself, so that its softmax has a key; nothing reads it
            return given, {**named, "attention_mask": mask}

        return hook

    for layer, keys in closed.items():
        if keys:
            module = eager.layers[layer]._module
            hooks.append(module.register_forward_pre_hook(hook_of(sorted(keys)), with_kwargs=True))
    with torch.no_grad():
        out = eager.adapter.model(**(inputs or prompt.inputs), use_cache=False, output_attentions=read)
    for hook in hooks:
        hook.remove()
    return out


PLAIN = {}


def unchanged(eager, prompt):
    """The logits with all keys open, run once for the prompt that `asked` makes of each graph."""
    if eager not in PLAIN:
        PLAIN[eager] = with_closed(eager, prompt, {}).logits
    return PLAIN[eager]


def reference(eager, prompt, pattern, inputs=None):
    """(output, kept image positions after each stage): ranks come from the eager maps themselves."""
    image = list(prompt.spans["image"])
    after = [position for position in prompt.spans["all"] if position > image[-1]]
    stages = pattern.plan(eager, prompt.spans)
    left, closed, kept = image, {}, []
    for stage in stages:
        maps = with_closed(eager, prompt, closed, inputs, read=True).attentions
        read = stage.layer if stage.reads == "next" else stage.layer - 1
        weights = maps[read][0].float().mean(0)
        name = getattr(stage.rank, "__name__", "")
        if name == "from_instruction":
            scores = weights[after][:, left].sum(0)
        elif name == "from_image":
            scores = weights[left][:, left].sum(0)
        elif name == "to_image":
            scores = weights[left][:, left].sum(1)
        elif name == "from_last":
            scores = weights[after[-1], left]
        elif name == "from_raters":
            scores = weights[raters(eager, prompt)][:, left].mean(0)
        elif name == "from_all":
            present = [p for p in prompt.spans["all"] if p in left or p not in image]
            scores = weights[present][:, left].mean(0)
        else:  # the controls read nothing
            from nnsight_mmflow.inside.pruning import Seen

            numbers = [image.index(position) for position in left]
            of_all = prompt.spans["image"].places()
            places = [of_all[number] for number in numbers]
            seen = (left, after, numbers, image, places, 0, weights, weights, [], None, None, None, 1.0, None)
            scores = stage.rank(Seen(*seen))
        count = int((scores > 0).sum()) if stage.exact else stage.count(len(left))
        best = scores.topk(count).indices.tolist()
        left = sorted(left[i] for i in best)
        gone = set(image) - set(left)
        for layer in range(stage.layer, eager.n_layers):
            closed[layer] = gone
        kept.append(left)
    return with_closed(eager, prompt, closed, inputs), kept, closed


def close(found, wanted, relative=2e-5):
    """To float tolerance: relative to the largest logit, since some of these models' weights are blown up."""
    return (found - wanted).abs().max() < relative * max(1.0, float(wanted.abs().max()))


def raters(eager, prompt):
    """Text positions from the image on whose embedding is more like the image's than average, by hand."""
    seen = []
    hook = eager.layers[0]._module.register_forward_pre_hook(lambda module, given: seen.append(given[0][0]))
    with torch.no_grad():
        eager.adapter.model(**prompt.inputs)
    hook.remove()
    image = list(prompt.spans["image"])
    text = [position for position in prompt.spans["all"] if position > image[0] and position not in image]
    like = torch.stack([(seen[0][p] @ seen[0][text].T).softmax(-1) for p in image]).mean(0)
    return [position for position, value in zip(text, like.tolist(), strict=True) if value >= float(like.mean())]


def pruned(graph, prompt, pattern):
    with torch.no_grad(), graph.trace(prompt, pattern, use_cache=False):
        logits = graph.model.output.logits.save()
    return logits


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_dropping_and_masking_equal_the_reference(name, method):
    if name.startswith("gemma3") and method == "himap_rows":
        pytest.skip("its image tokens read each other alone, so that all of them pay the image the same attention")
    graph, eager = graphs(name)
    prompt, pattern = asked(graph), METHODS[method](graph)
    out, kept, _ = reference(eager, prompt, pattern)
    image = set(prompt.spans["image"])
    left = [p for p in prompt.spans["all"] if p not in image or p in kept[-1]]
    dropped = pruned(graph, prompt, pattern)
    assert dropped.shape[1] == len(left)
    assert close(dropped[0], out.logits[0, left])
    masked = pruned(graph, prompt, replace(pattern, mode="mask"))
    assert masked.shape[1] == len(prompt)
    assert close(masked[0, left], out.logits[0, left])
    plain = unchanged(eager, prompt)
    assert (dropped[0, -1] - plain[0, -1]).abs().max() > 1e-4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mode", ["drop", "mask"])
@pytest.mark.parametrize("method", ["himap", "fastv", "pyramid", "random", "all"])
def test_a_padded_batch_equals_its_prompts_alone(method, mode, attention):
    for name in ("llava", "llava_next", "qwen2_5_vl"):
        graph, _ = graphs(name, attention)
        prompts = [asked(graph), asked(graph, 1, "is the circle red or blue or green ?")]
        pattern = replace(METHODS[method](graph), mode=mode)
        with torch.no_grad(), graph.trace(graph.batch(prompts), pattern, use_cache=False):
            together = graph.model.output.logits[:, -1].save()
        for row, prompt in enumerate(prompts):
            assert close(together[row], pruned(graph, prompt, pattern)[0, -1])


def test_rows_that_keep_different_numbers_of_tokens():
    """Pictures of different sizes: one row keeps more tokens, the other fills up with positions that nothing reads."""
    graph, _ = graphs("qwen2_vl")
    prompts = [graph.prompt(picture(0, 96, 64), QUESTION), graph.prompt(picture(1, 64, 32), "is the circle red ?")]
    assert len(prompts[0].spans["image"]) != len(prompts[1].spans["image"])
    mine = mmf.prune.Prune(own=[mmf.prune.Stage(layer=1, keep=0.5, rank=received)])
    for method, mode in ((method, mode) for method in (mine, mmf.HiMAP(k1=1, k2=2)) for mode in ("drop", "mask")):
        pattern = replace(method, mode=mode)
        with torch.no_grad(), graph.trace(graph.batch(prompts), pattern, use_cache=False):
            together = graph.model.output.logits[:, -1].save()
        for row, prompt in enumerate(prompts):
            assert close(together[row], pruned(graph, prompt, pattern)[0, -1])


def received(seen):
    """A method of one's own is one function."""
    from nnsight_mmflow.inside.pruning import attention_to_image

    return attention_to_image(seen, seen.after).mean(0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "name", ["llava", "llava_phi_siglip", "llava_next", "qwen2_vl", "qwen3_vl", "internvl", "idefics3", "gemma3"]
)
def test_generation_equals_computing_every_token_anew(name, attention):
    graph, eager = graphs(name, attention)
    prompt = asked(graph)
    for method in ("himap", "pyramid", "all", "before"):
        pattern = METHODS[method](graph)
        _, _, closed = reference(eager, prompt, pattern)
        for mode in ("drop", "mask") if name != "gemma3" else ("mask",):  # dropping in a sliding window is refused
            with (
                torch.no_grad(),
                graph.generate(
                    prompt,
                    replace(pattern, mode=mode),
                    max_new_tokens=4,
                    min_new_tokens=4,
                    do_sample=False,
                    output_logits=True,
                    return_dict_in_generate=True,
                ) as tracer,
            ):
                made = tracer.result.save()
            ids = made.sequences[:, -4:] if made.sequences.shape[1] > 4 else made.sequences
            inputs = dict(prompt.inputs)
            for step in range(4):
                wanted = with_closed(eager, prompt, closed, inputs).logits[0, -1]
                assert close(made.logits[step][0], wanted)
                inputs["input_ids"] = torch.cat([inputs["input_ids"], ids[:, step : step + 1]], 1)
                for key, value in (("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 0)):
                    if key in inputs:
                        more = inputs[key].new_full((1, 1), value)
                        inputs[key] = torch.cat([inputs[key], more], 1)
            if mode == "drop":
                lengths = [layer.keys.shape[-2] for layer in cache_of(made).layers]
                count, text = len(prompt.spans["image"]), len(prompt) - len(prompt.spans["image"])
                planned = []
                stages = {stage.layer: stage for stage in pattern.stages(graph, count)}
                for layer in range(graph.n_layers):
                    count = stages[layer].count(count) if layer in stages else count
                    planned.append(count + text + 3)
                assert lengths == planned


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_generation_of_a_padded_batch(attention):
    graph, _ = graphs("llava", attention)
    prompts = [asked(graph), asked(graph, 1, "is the circle red or blue or green ?")]
    kwargs = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    for mode in ("drop", "mask"):
        pattern = replace(METHODS["himap"](graph), mode=mode)
        with torch.no_grad(), graph.generate(graph.batch(prompts), pattern, **kwargs) as tracer:
            together = tracer.result.save()
        for row, prompt in enumerate(prompts):
            with torch.no_grad(), graph.generate(prompt, pattern, **kwargs) as tracer:
                alone = tracer.result.save()
            assert torch.equal(together[row, -4:], alone[0, -4:])


# What the paper's numbers stand on.


def test_layers_before_the_first_stage_are_untouched_and_the_next_sees_fewer():
    graph = tiny_graph("llama", n_layers=5)
    prompt, seen = asked(graph), {}
    for name, patterns in (("plain", ()), ("pruned", (mmf.FastV(k=3),))):
        with torch.no_grad(), graph.trace(prompt, *patterns, use_cache=False):
            seen[name] = [graph.layers[layer].output.save() for layer in range(5)]
    for layer in range(5):
        plain, cut = (seen[name][layer] for name in ("plain", "pruned"))
        if layer < 3:
            assert torch.equal(plain, cut)
        else:
            assert cut.shape[1] == plain.shape[1] - 32


def test_keeping_all_is_bit_equal_and_nothing_stays_behind():
    from nnsight_mmflow.inside.layer_inputs import LayerInputs
    from nnsight_mmflow.inside.prune_layers import prune_prefill
    from nnsight_mmflow.inside.pruning import Stage, Way
    from nnsight_mmflow.patterns.prune.prune import row_of
    from nnsight_mmflow.patterns.prune.rankings import from_last

    graph = tiny_graph("llama")
    prompt = asked(graph)
    with torch.no_grad():
        plain = graph.adapter.model(**prompt.inputs).logits
    hooks = sum(len(module._forward_pre_hooks) for module in graph.adapter.model.modules())
    passage, row = LayerInputs(graph, 1, len(prompt)), row_of(prompt.spans)
    way = Way(True, False, True, 0.25, None)
    with torch.no_grad(), graph.trace(prompt, use_cache=False):
        prune_prefill(passage, passage.held_at(0), graph, [[Stage(2, 1.0, from_last)]], [row], way, [None])
        kept = graph.model.output.logits.save()
    assert torch.equal(kept, plain)
    pruned(graph, prompt, mmf.FastV(k=2))
    with torch.no_grad():
        assert torch.equal(graph.adapter.model(**prompt.inputs).logits, plain)
    assert sum(len(module._forward_pre_hooks) for module in graph.adapter.model.modules()) == hooks


@pytest.mark.parametrize("name", FAMILIES)
def test_recomputed_weights_are_eagers_own(name):
    """Read by a ranking function inside the trace, before the last layer, and from the model's own maps."""
    graph, eager = graphs(name)
    prompt, seen = asked(graph), []

    def spy(given):
        from nnsight_mmflow.inside.pruning import attention_to_image

        seen.append(attention_to_image(given, list(range(given.hidden.shape[0])), chunk=3))
        return torch.rand(len(given.image))

    for reads, layer in (("previous", graph.n_layers - 2), ("next", graph.n_layers - 1)):
        seen.clear()
        stage = mmf.prune.Stage(layer=graph.n_layers - 1, keep=0.5, rank=spy, reads=reads)
        pruned(graph, prompt, mmf.prune.Prune(own=[stage]))
        with torch.no_grad():
            maps = eager.adapter.model(**prompt.inputs, output_attentions=True).attentions[layer][0]
        wanted = maps.float().mean(0)[:, list(prompt.spans["image"])]
        assert (seen[0] - wanted).abs().max() < 2e-5


def test_counts_and_budgets_of_the_papers_settings():
    graph = tiny_graph("llama", n_layers=5)
    stages = mmf.HiMAP().stages(graph, 576)
    assert [(stage.layer, stage.count(576)) for stage in stages] == [(2, 288), (8, 72)]
    seven = type("Sizes", (), {"n_layers": 32})()
    for pattern, budget in (
        (mmf.HiMAP(), 144),
        (mmf.HiMAP(k2=15), 191.25),
        (mmf.FastV(), 306),
        (mmf.FastV(r=0.75), 171),
        (mmf.PyramidDrop(), 270),
    ):
        assert pattern.budget(seven, 576) == budget


def test_the_controls_keep_what_they_say():
    graph = tiny_graph("llama")
    prompt, kept = asked(graph), {}
    image = list(prompt.spans["image"])
    for name, pattern in (
        ("random", mmf.Random(k=2, seed=1)),
        ("other", mmf.Random(k=2, seed=2)),
        ("grid", mmf.prune.Grid(k=2, r=0.75)),
    ):
        with torch.no_grad(), graph.trace(prompt, pattern):
            cosine = graph.layers[3].inputs[1]["position_ids"].save()
        kept[name] = [position for position in cosine[0].tolist() if position in image]
    assert len(kept["random"]) == len(kept["other"]) == 32
    assert kept["random"] != kept["other"]
    steps = [b - a for a, b in zip(kept["grid"], kept["grid"][1:], strict=False)]
    assert len(kept["grid"]) == 16
    assert max(steps) - min(steps) <= 1


# Errors.


def test_what_cannot_be_pruned_is_refused():
    graph = tiny_graph("llama")
    prompt = asked(graph)
    for pattern, told in (
        (mmf.FastV(k=0), r"not before \[0\]"),
        (mmf.FastV(k=5), r"before layers 1 to 4, not before \[5\]"),
        (mmf.HiMAP(k1=3, k2=2), "they must rise"),
        (mmf.FastV(r=1.5), "share of tokens that leave, 0 to 1, not 1.5"),
        (mmf.FastV(r=-0.1), "0 to 1"),
        (mmf.FastV(rank="best"), '"last" or "mean"'),
        (mmf.HiMAP(deep="both"), '"column" or "row"'),
        (mmf.FastV(mode="hide"), "mode must be one of drop, mask"),
        (mmf.prune.Prune(), "has no stage"),
        (mmf.PyramidDrop(layers=(1,)), "1 layers"),
        (mmf.prune.Prune(own=[mmf.prune.Stage(layer=1, keep=-1, rank=received)]), "-1 tokens cannot stay"),
        (mmf.prune.Prune(own=[mmf.prune.Stage(layer=1, keep=1.5, rank=received)]), "not 1.5"),
    ):
        with pytest.raises(mmf.MMFlowError, match=told):
            graph.trace(prompt, pattern)
    qwen, _ = graphs("qwen3_vl")
    with pytest.raises(mmf.ModelError, match="again in its first"):
        qwen.trace(asked(qwen), mmf.FastV(k=1))


def test_pruning_nothing_is_refused():
    graph = tiny_graph("llama")
    with pytest.raises(mmf.NoEffectError, match="keeps all 64 image tokens"):
        graph.trace(asked(graph), mmf.FastV(k=2, r=0.0))
    with pytest.raises(mmf.NoEffectError, match="has no image"):
        graph.trace(graph.prompt(None, QUESTION), mmf.FastV(k=2))
    all_of_them = mmf.prune.Stage(layer=2, keep=0, rank=lambda seen: torch.ones(len(seen.image)), exact=True)
    with (
        pytest.raises(mmf.NoEffectError, match="its ranking keeps every image token"),
        graph.trace(asked(graph), mmf.prune.Prune(own=[all_of_them])),
    ):
        graph.unembed.output.save()


def test_other_patterns_beside_it():
    graph = tiny_graph("llama")
    prompt, fastv = asked(graph), mmf.FastV(k=3)
    early = mmf.Knockout(source="image", target="last", layers=range(2))
    late = mmf.Knockout(source="image", target="last", layers=range(4))
    both = pruned_with(graph, prompt, early, fastv)
    masked = pruned_with(graph, prompt, early, replace(fastv, mode="mask"))
    assert (both - masked).abs().max() < 1e-5
    assert (both - pruned_with(graph, prompt, fastv)).abs().max() > 1e-4
    for other in (late, mmf.Patch(at="image", site="mlp", layers=[3], value=mmf.values.zeros()), mmf.Random(k=4)):
        with pytest.raises(mmf.MMFlowError, match="mode='mask'"):
            graph.trace(prompt, fastv, other)
    # by masks they go together: the keys that either closes, by hand, on kept sets that the run itself tells
    kept = []

    def told(seen):
        from nnsight_mmflow.inside.pruning import attention_to_image

        ranks = attention_to_image(seen, seen.after[-1:]).sum(0)
        kept.append({seen.image[i] for i in ranks.topk(32).indices.tolist()})
        return ranks

    found = pruned_with(
        graph, prompt, late, mmf.prune.Prune(own=[mmf.prune.Stage(layer=3, keep=32, rank=told)], mode="mask")
    )
    assert (found - pruned_with(graph, prompt, late, replace(fastv, mode="mask"))).abs().max() < 1e-5
    image, eager = list(prompt.spans["image"]), tiny_graph("llama", attention="eager")
    hooks = []
    for layer in range(5):

        def close(module, given, named, layer=layer):
            mask = named["attention_mask"].clone()
            lowest = torch.finfo(mask.dtype).min
            if layer < 4:
                mask[..., len(prompt) - 1, image] = lowest
            if layer >= 3:
                gone = sorted(set(image) - kept[0])
                mask[..., gone] = lowest
                mask[..., gone, gone] = 0
            return given, {**named, "attention_mask": mask}

        hooks.append(eager.layers[layer]._module.register_forward_pre_hook(close, with_kwargs=True))
    with torch.no_grad():
        wanted = eager.adapter.model(**prompt.inputs, use_cache=False).logits[0, -1]
    for hook in hooks:
        hook.remove()
    assert (found - wanted).abs().max() < 2e-5 * max(1, float(wanted.abs().max()))


def pruned_with(graph, prompt, *patterns):
    with torch.no_grad(), graph.trace(prompt, *patterns, use_cache=False):
        logits = graph.model.output.logits[0, -1].save()
    return logits
