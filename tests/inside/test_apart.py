"""Patterns in generations whose blocks run apart from the model's process equal those that run inside it.

Tolerance: 1e-5 of the largest logit, as in test_generate.py: the pattern attends by itself, by other kernels.
"""

import functools

import pytest
import torch
from kit.apart import apart
from kit.families import EAGER_ONLY, FAMILIES, QUESTION, family
from kit.tiny import picture

import nnsight_mmflow as mmf
from nnsight_mmflow.model.forms import PLAIN

SAME, VISIBLE, STEPS = 1e-5, 1e-3, 4


def generated(graph, prompt, *patterns, n_tokens=STEPS):
    """(rows, steps, vocabulary): the logits of a greedy generation."""
    model = graph.edited(prompt, patterns, PLAIN)
    settings = {"max_new_tokens": n_tokens, "min_new_tokens": n_tokens, "do_sample": False}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad(), model.trace(fn=model.generate, **graph.checked(prompt), **settings) as tracer:
        logits = torch.stack(tracer.result.logits, 1).save()
    return logits


@functools.cache
def unchanged(graph, padded):
    """The logits without a pattern."""
    return generated(graph, batch_of(graph, padded))


def batch_of(graph, padded):
    one = graph.prompt(picture(0), QUESTION)
    return graph.batch([one, graph.prompt(picture(1), "do ring and circle have " + QUESTION)]) if padded else one


def by_norm(seen):
    return seen.hidden[seen.image].float().norm(dim=-1)


def patterns_of(graph):
    """By name; layers that every family may prune, and from which tokens leave behind what a family adds again."""
    first = graph.enters_after + 1
    own = {
        "knockout": mmf.Knockout(source="image", target="last", layers=range(1, 3)),
        "every step": mmf.Knockout(source="image", target="last", layers=[1], when="all"),
        "later steps": mmf.Knockout(source="question", target="last", layers=range(3), when="decode"),
        "one head": mmf.Knockout(source="image", target="question", layers=[2], heads=[1], when="prefill"),
        "bias": mmf.Bias(source="image", target="last", layers=range(1, 3), value=1.5, heads=[1], when="all"),
        "embed": mmf.Patch(at="image", site="embed", value=mmf.values.noise(0.5, seed=1)),
        "resid": mmf.Patch(at="image", layers=[1], value=mmf.values.zeros()),
        "skip": mmf.Skip(layers=[2]),
        "skip image": mmf.Skip(layers=[2], at="image"),
    }
    if first < graph.n_layers:
        for mode in ("drop", "mask"):
            stages = [mmf.prune.Stage(layer=first, keep=0.5, rank=by_norm, reads="")]
            own[f"prune, {mode}"] = mmf.prune.Prune(own=stages, mode=mode)
            own[f"fastv, {mode}"] = mmf.FastV(k=first, r=0.5, mode=mode)
    return own


NAMES = ("knockout", "every step", "later steps", "one head", "bias", "embed", "resid", "skip", "skip image")
NAMES += tuple(f"{name}, {mode}" for name in ("prune", "fastv") for mode in ("drop", "mask"))


# Those whose attention or sequence differs: the rest of FAMILIES cut their pictures in other ways.
KINDS = sorted(
    set(FAMILIES) - {name for name in FAMILIES if name.endswith(("_strips", "_shrunk", "_undivided", "_scan"))}
)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("later steps", "one head", "resid", "skip")])
@pytest.mark.parametrize("which", KINDS)
def test_every_family_in_a_padded_batch(which, name, request):
    check(family(which, "eager" if which in EAGER_ONLY else "sdpa"), name, True, request)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["llava", "gemma3", "qwen2_5_vl"])
def test_one_prompt(which, name, request):
    """Here layers are handed no mask at all, where the family masks nothing."""
    check(family(which), name, False, request)


@pytest.mark.parametrize("name", NAMES)
def test_eager(name, request):
    check(family("llava", "eager"), name, False, request)


def check(graph, name, padded, request):
    prompt, patterns = batch_of(graph, padded), patterns_of(graph)
    if name not in patterns:
        pytest.skip("image features are added in every layer of this tiny model")
    if graph.adapter.sliding_window() == 12 and name.endswith("drop"):  # refused in either way
        for one in (graph, apart(graph)):
            with pytest.raises(mmf.ModelError, match="its cache would forget"):
                one.edited(prompt, (patterns[name],), PLAIN)
        return
    wanted, plain = generated(graph, prompt, patterns[name]), unchanged(graph, padded)
    request.getfixturevalue("split")
    found = generated(apart(graph), prompt, patterns[name])
    assert (wanted - plain).abs().nan_to_num(0).max() > VISIBLE
    assert (found - wanted).abs().nan_to_num(0).max() <= SAME * plain.abs().nan_to_num(0, posinf=0, neginf=0).max()


def looked_ahead(layer):
    return mmf.prune.Prune(own=[mmf.prune.Stage(layer=layer, keep=0.5, rank=by_key, reads="next")])


def by_key(seen):
    return seen.key[:, seen.image].float().norm(dim=-1).sum(0)


@pytest.mark.parametrize(
    "pattern",
    [
        mmf.HiMAP(k1=1, k2=3),
        mmf.FastV(k=2, r=0.5, positions="renumbered"),
        mmf.FastV(k=2, r=0.5, positions="renumbered", mode="mask"),
        mmf.prune.VisionZip(dominant=4, contextual=2),
        mmf.prune.SparseVLM(layers=(1, 3), keep=(0.5, 0.25)),
        mmf.prune.Prune(own=[mmf.prune.Stage(layer=0, keep=0.5, rank=by_norm, reads="")]),
        looked_ahead(2),
    ],
    ids=lambda pattern: type(pattern).__name__ + pattern.positions + pattern.mode,
)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_methods(pattern, padded, attention, request):
    graph = family("llava", attention)
    prompt = batch_of(graph, padded)
    wanted, plain = generated(graph, prompt, pattern), unchanged(graph, padded)
    request.getfixturevalue("split")
    found = generated(apart(graph), prompt, pattern)
    assert (wanted - plain).abs().nan_to_num(0).max() > VISIBLE
    assert (found - wanted).abs().nan_to_num(0).max() <= SAME * plain.abs().nan_to_num(0, posinf=0, neginf=0).max()


@pytest.mark.parametrize(
    "pattern", [mmf.PyramidDrop(), mmf.prune.SparseVLM()], ids=lambda pattern: type(pattern).__name__
)
def test_methods_whose_layers_follow_from_the_depth(pattern, request):
    graph = mmf.load("nano")
    prompt = mmf.nano.prompts(graph, 1)[0]
    wanted = generated(graph, prompt, pattern)
    request.getfixturevalue("split")
    found = generated(apart(graph), prompt, pattern)
    assert (found - wanted).abs().nan_to_num(0).max() <= SAME * wanted.abs().nan_to_num(0, posinf=0, neginf=0).max()


def test_the_other_way_would_be_wrong(split):
    """Planted: the same generation without knowing of the split."""
    graph = family("llava")
    prompt = batch_of(graph, False)
    pattern = mmf.FastV(k=2, r=0.5)
    right, wrong = generated(apart(graph), prompt, pattern), generated(graph, prompt, pattern)
    assert (right[:, 0] - wrong[:, 0]).abs().max() <= 1e-5
    assert (right[:, 1] - wrong[:, 1]).abs().nan_to_num(0).max() > VISIBLE


def test_what_changes_nothing_is_told(split):
    graph = apart(family("llava"))
    prompt = batch_of(graph, False)
    late = mmf.Knockout(source="last", target="last", layers=[2], when="decode")
    wide = mmf.Knockout(source="image", target="last", layers=[1])
    with pytest.raises(mmf.NoEffectError, match="before a step came"):
        generated(graph, prompt, late, n_tokens=1)
    with pytest.raises(mmf.NoEffectError, match="keeps every image token"):
        generated(
            graph,
            prompt,
            mmf.prune.Prune(own=[mmf.prune.Stage(layer=2, keep=0, rank=all_of_them, reads="", exact=True)]),
        )
    with pytest.raises(mmf.ModelError, match=r"both change the attention of layer\(s\) \[1\]"):
        graph.edited(prompt, (wide, mmf.Knockout(source="question", target="last", layers=[0, 1])), PLAIN)
    graph.edited(prompt, (wide, mmf.Knockout(source="question", target="last", layers=[0, 2])), PLAIN)
    stages = mmf.prune.SparseVLM(layers=(1, 3), keep=(0.5, 0.25), mode="mask")  # it closes keys between its stages too
    with pytest.raises(mmf.ModelError, match=r"both change the attention of layer\(s\) \[2\]"):
        graph.edited(prompt, (stages, mmf.Knockout(source="image", target="last", layers=[2])), PLAIN)


def all_of_them(seen):
    return torch.ones(len(seen.image))


def test_tokens_leave_behind_what_a_family_adds_again():
    graph = apart(family("qwen3_vl"))
    pattern = mmf.FastV(k=graph.enters_after, r=0.5)
    with pytest.raises(mmf.ModelError, match="adds image features again behind its first"):
        graph.edited(graph.prompt(picture(0), QUESTION), (pattern,), PLAIN)
