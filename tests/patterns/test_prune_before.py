"""Methods that prune before the language model, that merge tokens, that count positions anew, or that wait and see."""

from dataclasses import replace

import pytest
import torch
from kit.tiny import picture, tiny_graph

import nnsight_mmflow as mmf
from nnsight_mmflow.inside.names import cache_of

QUESTION = "what color is the circle ?"
LONGER = "is the circle red or blue or green ?"
GENERATE = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


def asked(graph, seed=0, question=QUESTION):
    return graph.prompt(picture(seed, 96, 64), question)


def last_logits(graph, prompt, *patterns):
    with torch.no_grad(), graph.trace(prompt, *patterns, use_cache=False):
        logits = graph.model.output.logits[:, -1].save()
    return logits


def close(found, wanted, relative=2e-5):
    return (found - wanted).abs().max() < relative * max(1.0, float(wanted.abs().max()))


def tower_by_hand(graph, prompt):
    """(features, mean attention map, keys by head) of the tower's last layer but one, from its own eager maps."""
    model = graph.adapter.model
    tower, seen = model.base_model.vision_tower, []
    last = tower.encoder.layers[-2]
    hook = last.self_attn.k_proj.register_forward_hook(lambda module, given, output: seen.append(output[0]))
    with torch.no_grad():
        out = tower(prompt.inputs["pixel_values"], output_attentions=True, output_hidden_states=True)
    hook.remove()
    heads = last.self_attn.num_heads
    return out.hidden_states[-2][0], out.attentions[-2][0], seen[0].unflatten(-1, (heads, -1))


def zipped_by_hand(graph, prompt, dominant, contextual):
    """(tokens as they enter the language model, the tower's patches they stand for): one loop per thing."""
    features, attention, keys = tower_by_hand(graph, prompt)
    from_class = attention.sum(0)[0, 1:]  # patches alone
    best = sorted(sorted(range(64), key=lambda patch: -float(from_class[patch]))[: dominant - 1])
    rest = [patch for patch in range(64) if patch not in best]
    step = max(1, len(rest) // contextual)
    targets = [rest[i * step] for i in range(contextual)]
    metric = keys.mean(1)
    members = {target: [] for target in targets}
    for patch in rest:
        if patch not in targets:
            like = [torch.cosine_similarity(metric[1 + patch], metric[1 + target], dim=0) for target in targets]
            members[targets[int(torch.stack(like).argmax())]].append(patch)
    merged = []
    for target in targets:
        own = [features[1 + patch] for patch in members[target]]
        merged.append(features[1 + target] + (torch.stack(own).mean(0) if own else 0))
    tokens = torch.stack([features[0], *(features[1 + patch] for patch in best), *merged])
    with torch.no_grad():
        return graph.adapter.model.base_model.multi_modal_projector(tokens), best, targets


def entering(eager, prompt, tokens):
    """The prompt's embeddings with these tokens instead of the image: what a model that never saw the rest gets."""
    image = list(prompt.spans["image"])
    words = eager.adapter.model.get_input_embeddings()(prompt.inputs["input_ids"])[0]
    return torch.cat([words[: image[0]], tokens, words[image[-1] + 1 :]])[None]


def answer_of(eager, embeddings):
    model = eager.adapter.model
    with torch.no_grad():
        hidden = model.base_model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        return model.lm_head(hidden[:, -1])


# VisionZip and FasterVLM: the language model run by hand on what is left, at contiguous positions.


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_vision_zip_equals_a_model_that_is_handed_its_tokens(attention):
    graph, eager = tiny_graph("llama", attention=attention), tiny_graph("llama", attention="eager")
    prompt = asked(graph)
    tokens, _, _ = zipped_by_hand(eager, prompt, 12, 4)
    wanted = answer_of(eager, entering(eager, prompt, tokens))
    assert (wanted - last_logits(graph, prompt)).abs().max() > 1e-3
    for mode in ("drop", "mask"):
        assert close(last_logits(graph, prompt, mmf.prune.VisionZip(dominant=12, contextual=4, mode=mode)), wanted)


def test_vision_zip_at_original_positions():
    """Each token where its patch stood; by hand: the model's own position numbers."""
    graph, eager = tiny_graph("llama"), tiny_graph("llama", attention="eager")
    prompt = asked(graph)
    tokens, best, targets = zipped_by_hand(eager, prompt, 12, 4)
    first = next(patch for patch in range(64) if patch not in best and patch not in targets)
    place = [first, *best, *targets]
    order = sorted(range(16), key=lambda i: place[i])
    embeddings = entering(eager, prompt, tokens[order])
    start = prompt.spans["image"].positions[0]
    numbers = [*range(start), *(start + place[i] for i in order), *range(start + 64, len(prompt))]
    model = eager.adapter.model
    with torch.no_grad():
        mask = torch.ones(1, len(numbers), dtype=torch.long)  # without it the gaps are taken for packed sequences
        hidden = model.base_model.language_model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=torch.tensor([numbers]), use_cache=False
        ).last_hidden_state
        wanted = model.lm_head(hidden[:, -1])
    pattern = mmf.prune.VisionZip(dominant=12, contextual=4, positions="original")
    assert close(last_logits(graph, prompt, pattern), wanted)
    assert (last_logits(graph, prompt, replace(pattern, positions="renumbered")) - wanted).abs().max() > 1e-4


def test_faster_vlm_keeps_what_the_class_token_attends_to():
    graph, eager = tiny_graph("llama"), tiny_graph("llama", attention="eager")
    prompt = asked(graph)
    _, attention, _ = tower_by_hand(eager, prompt)
    scores = attention.mean(0)[0, 1:]
    best = sorted(scores.topk(16).indices.tolist())
    kept = mmf.kept_tokens(graph, prompt, mmf.prune.FasterVLM(r=0.75)).layers
    assert kept == [best] * 5
    with torch.no_grad():
        features = eager.adapter.model.get_image_features(prompt.inputs["pixel_values"]).pooler_output[0]
    wanted = answer_of(eager, entering(eager, prompt, features[best]))
    assert close(last_logits(graph, prompt, mmf.prune.FasterVLM(r=0.75)), wanted)


def test_two_pictures_are_zipped_apart():
    graph = tiny_graph("llama")
    token = graph.processor.image_token
    text = f"{token} {token} what color is the circle ?"
    prompt = graph.prompt([picture(0), picture(1)], text, raw=True)
    kept = mmf.kept_tokens(graph, prompt, mmf.prune.VisionZip(dominant=12, contextual=4, positions="original")).layers[
        0
    ]
    alone = [
        mmf.kept_tokens(
            graph, graph.prompt(picture(seed), QUESTION), mmf.prune.VisionZip(dominant=12, contextual=4)
        ).layers[0]
        for seed in (0, 1)
    ]
    assert kept == [*alone[0], *(64 + number for number in alone[1])]


METHODS = {
    "zip": mmf.prune.VisionZip(dominant=12, contextual=4),
    "zip_original": mmf.prune.VisionZip(dominant=12, contextual=4, positions="original"),
    "faster": mmf.prune.FasterVLM(),
    "recycling": mmf.prune.SparseVLM(layers=(1, 3), keep=(0.5, 0.25)),
    "recycling_renumbered": mmf.prune.SparseVLM(layers=(1, 3), keep=(0.5, 0.25), positions="renumbered"),
    "himap_renumbered": mmf.HiMAP(k1=1, k2=3, positions="renumbered"),
    "pyramid_renumbered": mmf.PyramidDrop(layers=(1, 3), keep=(0.5, 0.25), positions="renumbered"),
    "waiting": mmf.prune.VisiPruner(first_layer=0, fires_below=0.9999, keep_above=0.05, calm_above=0.99, calm_layers=2),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dropping_equals_masking_and_a_batch_its_prompts(method, attention):
    graph = tiny_graph("llama", attention=attention)
    prompts = [asked(graph), asked(graph, 1, LONGER)]
    pattern = METHODS[method]
    alone = [last_logits(graph, prompt, pattern)[0] for prompt in prompts]
    for mode in ("drop", "mask"):
        found = last_logits(graph, graph.batch(prompts), replace(pattern, mode=mode))
        for row, wanted in enumerate(alone):
            assert close(found[row], wanted)
    assert (alone[0] - last_logits(graph, prompts[0])[0]).abs().max() > 1e-4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_generation_equals_masks_and_batches(method, attention):
    """Steps too: what stays in the cache, and at which positions the steps stand."""
    graph = tiny_graph("llama", attention=attention)
    prompts, found = [asked(graph), asked(graph, 1, LONGER)], {}
    for mode in ("drop", "mask"):
        pattern = replace(METHODS[method], mode=mode)
        for name, what in (("one", prompts[0]), ("two", prompts[1]), ("batch", graph.batch(prompts))):
            with (
                torch.no_grad(),
                graph.generate(what, pattern, output_logits=True, return_dict_in_generate=True, **GENERATE) as tracer,
            ):
                made = tracer.result.save()
            found[mode, name] = torch.stack(made.logits)
    for row, name in enumerate(("one", "two")):
        for other in (found["mask", name][:, 0], found["drop", "batch"][:, row], found["mask", "batch"][:, row]):
            assert close(other, found["drop", name][:, 0])


def test_steps_of_vision_zip_equal_a_model_that_is_handed_its_tokens():
    """Four tokens, each computed anew on the shorter prompt: steps stand right behind what is left."""
    graph, eager = tiny_graph("llama"), tiny_graph("llama", attention="eager")
    prompt = asked(graph)
    tokens, _, _ = zipped_by_hand(eager, prompt, 12, 4)
    embeddings = entering(eager, prompt, tokens)
    with (
        torch.no_grad(),
        graph.generate(
            prompt,
            mmf.prune.VisionZip(dominant=12, contextual=4),
            output_logits=True,
            return_dict_in_generate=True,
            **GENERATE,
        ) as tracer,
    ):
        made = tracer.result.save()
    for logits in made.logits:
        assert close(logits, answer_of(eager, embeddings))
        word = eager.adapter.model.get_input_embeddings()(logits.argmax(-1))
        embeddings = torch.cat([embeddings, word[:, None]], 1)
    assert [layer.keys.shape[-2] for layer in cache_of(made).layers] == [len(prompt) - 48 + 3] * 5


# Positions counted anew between layers.


@pytest.mark.parametrize("mode", ["drop", "mask"])
def test_renumbered_positions_equal_rotary_tables_by_hand(mode):
    graph, eager = tiny_graph("llama"), tiny_graph("llama", attention="eager")
    prompt = asked(graph)
    kept = mmf.kept_tokens(graph, prompt, mmf.FastV(k=3)).layers[3]
    image = list(prompt.spans["image"])
    gone = [position for number, position in enumerate(image) if number not in kept]
    left = [position for position in range(len(prompt)) if position not in gone]
    numbers = torch.zeros(1, len(prompt), dtype=torch.long)
    numbers[0, left] = torch.arange(len(left))
    rotary = eager.adapter.model.base_model.language_model.rotary_emb
    hooks = []

    def change(module, given, named):
        mask = named["attention_mask"].clone()
        mask[..., gone] = torch.finfo(mask.dtype).min
        mask[..., gone, gone] = 0
        return given, {**named, "attention_mask": mask, "position_embeddings": rotary(given[0], numbers)}

    for layer in (3, 4):
        hooks.append(eager.layers[layer]._module.register_forward_pre_hook(change, with_kwargs=True))
    with torch.no_grad():
        wanted = eager.adapter.model(**prompt.inputs, use_cache=False).logits[:, -1]
    for hook in hooks:
        hook.remove()
    found = last_logits(graph, prompt, mmf.FastV(k=3, positions="renumbered", mode=mode))
    assert close(found, wanted)
    assert (found - last_logits(graph, prompt, mmf.FastV(k=3, mode=mode))).abs().max() > 1e-4


# SparseVLM's clusters.


def test_recycled_tokens_equal_clusters_by_hand():
    """Before layer 2: raters, scores, density peaks and means, each in plain loops on eager's maps."""
    graph, eager = tiny_graph("llama"), tiny_graph("llama", attention="eager")
    prompt, model = asked(graph), tiny_graph("llama", attention="eager").adapter.model
    image = list(prompt.spans["image"])
    with torch.no_grad():
        out = model(**prompt.inputs, output_attentions=True, output_hidden_states=True)
    entered, hidden = out.hidden_states[0][0], out.hidden_states[2][0]
    text = [position for position in range(image[0], len(prompt)) if position not in image]
    like = torch.stack([(entered[p] @ entered[text].T).softmax(-1) for p in image]).mean(0)
    raters = [position for position, value in zip(text, like.tolist(), strict=True) if value >= float(like.mean())]
    scores = out.attentions[1][0].mean(0)[raters][:, image].mean(0)
    order = sorted(range(64), key=lambda number: -float(scores[number]))
    kept, pool = sorted(order[:32]), order[32 : 32 + 10]  # 32 leave: int(9.6) + 1 of them are merged, into 10 // 10 + 1
    apart = [[float((hidden[image[a]] - hidden[image[b]]).norm()) / 8 for b in pool] for a in pool]  # width 64
    density = [float(torch.tensor([-(d**2) for d in sorted(row)[:2]]).mean().exp()) for row in apart]
    furthest = max(map(max, apart))
    score = []
    for a in range(10):
        higher = [apart[a][b] for b in range(10) if density[b] > density[a]]
        score.append(density[a] * min([furthest, *higher]))
    centres = sorted(range(10), key=lambda a: -score[a])[:2]
    cluster = [min((0, 1), key=lambda c: apart[a][centres[c]]) for a in range(10)]
    means = [torch.stack([hidden[image[pool[a]]] for a in range(10) if cluster[a] == c]).mean(0) for c in (0, 1)]
    survivors = sorted([*kept, *(pool[a] for a in centres)])
    with torch.no_grad(), graph.trace(prompt, mmf.prune.SparseVLM(layers=(2,), keep=(0.5,)), use_cache=False):
        entering_two = graph.layers[2].inputs[0][0].save()
    assert mmf.kept_tokens(graph, prompt, mmf.prune.SparseVLM(layers=(2,), keep=(0.5,))).layers[2] == survivors
    assert entering_two.shape[1] == len(prompt) - 30
    for c in (0, 1):
        place = image[0] + survivors.index(pool[centres[c]])
        assert (entering_two[0, place] - means[c]).abs().max() < 1e-4 * float(means[c].abs().max())
    for number in kept:
        place = image[0] + survivors.index(number)
        assert (entering_two[0, place] - hidden[image[number]]).abs().max() < 1e-4 * float(hidden.abs().max())
    assert eager.backend == "eager"


def test_the_papers_counts_with_clusters():
    seven = type("Sizes", (), {"n_layers": 32})()
    counts, present = [], 576
    for stage in mmf.prune.SparseVLM().stages(seven, 576):
        present = stage.count(present)
        counts.append((stage.layer, present))
    # 300 and int(276 x .3) + 1 = 83 in 9 clusters; 200 of 309, 33 of 109 in 4; 110 of 204, 29 of 94 in 3
    assert counts == [(3, 309), (7, 204), (16, 113)]
    assert mmf.prune.SparseVLM(recycle=False).stages(seven, 576)[0].count(576) == 300


# VisiPruner.


def test_it_fires_where_the_last_position_begins_to_use_the_image():
    """Its decisions from eager's own maps and values, computed one token at a time."""
    graph, eager = tiny_graph("llama"), tiny_graph("llama", attention="eager")
    prompt = asked(graph)
    image, pattern = list(prompt.spans["image"]), METHODS["waiting"]
    values, hooks = {}, []
    for layer in range(5):
        keep = lambda module, given, output, layer=layer: values.__setitem__(layer, output[0])  # noqa: E731
        hooks.append(eager.attention(layer)._module.v_proj.register_forward_hook(keep))
    with torch.no_grad():
        maps = eager.adapter.model(**prompt.inputs, output_attentions=True).attentions
    for hook in hooks:
        hook.remove()

    def decide(layer):
        value = values[layer].unflatten(-1, (2, 16)).repeat_interleave(2, 1)  # two key heads, four heads
        weights = maps[layer][0][:, -1]
        whole = torch.stack([weights[h] @ value[:, h] for h in range(4)]).flatten()
        parts = [torch.stack([weights[h, p] * value[p, h] for h in range(4)]).flatten() for p in image]
        return [float(torch.cosine_similarity(whole - part, whole, dim=0)) for part in parts], [
            float(part.norm()) for part in parts
        ]

    cosine, norm = decide(0)
    assert min(cosine) < pattern.fires_below
    wanted = [number for number in range(64) if norm[number] > pattern.keep_above]
    assert 0 < len(wanted) < 64
    kept = mmf.kept_tokens(graph, prompt, pattern).layers
    assert kept[0] == list(range(64))
    assert kept[1] == wanted
    calm = replace(pattern, calm_above=-1.0, calm_layers=2)  # every layer is calm: all leave behind the second
    assert mmf.kept_tokens(graph, prompt, calm).counts == [64, len(wanted), len(wanted), 0, 0]


def test_its_budget_is_measured_in_a_report():
    graph = mmf.load("nano")
    prompts = mmf.nano.prompts(graph, 3)
    method = mmf.prune.VisiPruner(first_layer=2, fires_below=0.9999, keep_above=0.0, calm_above=-1.0, calm_layers=2)
    result = mmf.prune_report(graph, prompts, {"it": method}, timed=0, progress=False, report=lambda text: None)
    assert [name.split()[0] for name in result.header["methods"]] == ["unpruned", "it", "random", "grid"]
    counts = result.scores().set_index("method")["image_tokens"]
    assert counts["it"] < 64
    assert abs(counts.iloc[2] - counts["it"]) < 3


# Errors.


def test_what_cannot_be_done_is_refused():
    graph, siglip = tiny_graph("llama"), tiny_graph("llama", "siglip")
    prompt = asked(graph)
    for pattern, told in (
        (mmf.FastV(positions="new"), "positions must be one of original, renumbered"),
        (mmf.prune.VisionZip(dominant=1), "two dominant tokens"),
        (mmf.prune.VisionZip(contextual=0), "one contextual token at least"),
        (mmf.prune.FasterVLM(r=2.0), "0 to 1, not 2.0"),
        (mmf.prune.VisiPruner(first_layer=4), "first_layer lies in 0 to 3, not 4"),
        (mmf.HiMAP(k1=0), "no attention to rank by"),
    ):
        with pytest.raises(mmf.MMFlowError, match=told):
            graph.trace(prompt, pattern)
    with pytest.raises(mmf.MMFlowError, match="depends on the prompt"):
        mmf.prune.VisiPruner().budget(graph, 64)
    assert mmf.prune.VisionZip(dominant=12, contextual=4).budget(graph, 64) == 16
    for pattern in (mmf.prune.VisionZip(dominant=12, contextual=4), mmf.prune.FasterVLM()):
        with pytest.raises(mmf.ModelError, match="class token of the vision tower"):
            siglip.trace(asked(siglip), pattern)
    from kit.families import family

    qwen = family("qwen2_5_vl", "sdpa")
    with pytest.raises(mmf.ModelError, match="three axes"):
        qwen.trace(asked(qwen), mmf.FastV(k=1, positions="renumbered"))


def test_methods_that_drop_nothing_are_refused():
    graph = tiny_graph("llama")
    prompt = asked(graph)
    with pytest.raises(mmf.NoEffectError, match="would leave 64 tokens of 1 picture"):
        graph.trace(prompt, mmf.prune.VisionZip(dominant=54, contextual=10))
    with pytest.raises(mmf.NoEffectError, match="keeps all 64"):
        graph.trace(prompt, mmf.prune.FasterVLM(r=0.0))
    with (
        pytest.raises(mmf.NoEffectError, match="keeps every image token"),
        graph.trace(prompt, mmf.prune.VisiPruner(first_layer=0, fires_below=-1.0)),
    ):
        graph.unembed.output.save()
    with pytest.raises(mmf.NoEffectError, match="keeps every image token"):
        mmf.kept_tokens(graph, prompt, mmf.prune.VisiPruner(first_layer=0, fires_below=-1.0))
