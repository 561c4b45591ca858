"""Two patterns at once, in both orders: exact against plain transformers with both hooks, or refused in words."""

from itertools import permutations

import pytest
import torch
from kit import plain_forms as plain
from kit.forms import FORMS, PATTERNS, SAME, VISIBLE, Case, distance, knockout, made, ours, reference
from kit.gold import twin
from kit.tiny import tiny_graph

import nnsight_mmflow as mmf
from nnsight_mmflow import MMFlowError, NoEffectError
from nnsight_mmflow.model import together as _together


def skipped(case, part):
    """Layer 1 without its attention or its MLP; the reference writes zeros."""
    names = {"attn": lambda one: one.self_attn, "mlp": lambda one: one.mlp}

    def zeros(_row, whole):
        return list(range(whole.shape[1])), torch.zeros_like(whole[0])

    hook = plain.written(lambda model: [names[part](plain.layers_of(model)[1])], zeros)
    return mmf.Skip(layers=1, part=part), hook


# What each pattern acts on: of `test_forms`, in layers 1 and 2 (Skip: 2 and 3; pruning: from 2 on).
MADE = {
    **PATTERNS,
    "skip layer 1": lambda case: (mmf.Skip(layers=1), plain.passed((1,))),
    "skip attn": lambda case: skipped(case, "attn"),
    "skip mlp": lambda case: skipped(case, "mlp"),
    "knockout last": lambda case: knockout(case, "image", "last", "all"),
}

# Pairs that meet in a layer; (patterns, form) are run in both orders against both hooks.
EXACT = [
    ("knockout", "zeroed", "greedy"),
    ("knockout, heads", "zeroed", "beams"),
    ("patch heads", "zeroed", "greedy"),
    ("prune mask", "zeroed", "greedy"),
    ("prune mask", "knockout, all", "beams"),
    ("prune mask", "skip", "greedy"),
    ("prune mask", "skip attn", "greedy"),
    ("knockout, all", "skip", "greedy"),
    ("knockout, heads", "skip layer 1", "greedy"),
    ("knockout, decode", "skip layer 1", "beams"),
    ("knockout last", "skip attn", "greedy"),
    ("patch resid", "zeroed", "greedy"),
    ("skip mlp", "zeroed", "greedy"),
    ("patch heads", "skip mlp", "greedy"),
    ("bias, all", "knockout last", "greedy"),
    ("bias, all", "bias, heads, decode", "beams"),
    ("bias, all", "zeroed", "greedy"),
    ("bias, all", "prune mask", "beams"),
    ("own", "knockout, all", "beams"),
    ("change heads, all", "zeroed", "greedy"),
    ("change", "prune mask", "greedy"),
]


@pytest.fixture(scope="module")
def graph():
    return tiny_graph()


def difference(graph, names, form, prompt, reorder=None):
    case = Case(graph, prompt, names)
    case.factor = form.get("num_beams", 1)
    patterns, hooks = zip(*(MADE[name](case) for name in names), strict=True)
    found, wanted = ours(graph, prompt, patterns, **form), reference(twin(), prompt, hooks, **form)
    for hook in hooks:  # both must be seen, or nothing is shown
        alone = reference(twin(), prompt, [one for one in hooks if one is not hook], **form)
        assert distance(alone, wanted)[0] > VISIBLE
    return distance(found, wanted)


@pytest.mark.parametrize(("one", "other", "form"), EXACT)
def test_both_orders_are_what_plain_transformers_does(graph, one, other, form):
    prompt = made(graph, form == "beams")
    for names in ((one, other), (other, one)):
        off, same = difference(graph, names, FORMS[form], prompt)
        assert same, f"{names}: other tokens were written"
        assert off <= SAME, f"{names}: off by {off:.2g}"


def test_planted_the_order_in_which_they_came(graph, monkeypatch):
    """As if patterns acted in the order given: the weights that ZeroWeights takes away are those of a model without."""
    monkeypatch.setattr(_together, "side_by_side", lambda graph, patterns, rows: patterns)
    prompt = made(graph, False)
    for names in (("zeroed", "knockout"), ("zeroed", "prune mask"), ("patch heads", "zeroed")):
        assert difference(graph, names, FORMS["greedy"], prompt)[0] > 100 * SAME


def test_what_ranks_sees_the_edges_that_are_closed(graph):
    """Which tokens a method keeps does not hang on the order; both ways equal the ranking of the closed attention."""
    prompt, seen = made(graph, False), []
    closed = mmf.Knockout(source="image", target="last", layers=1)
    for patterns in permutations((closed, mmf.FastV(k=2, r=0.5, mode="mask"))):
        with torch.no_grad(), graph.trace(prompt, *patterns):
            seen.append(graph.unembed.output[:, -1].save())
    assert seen[0].equal(seen[1])


KNOCKOUT = {"source": "image", "target": "last"}
LAYER, ATTENTION = mmf.Skip(layers=1), mmf.Skip(layers=1, part="attn")
ZEROED = mmf.ZeroWeights(layers=(1, 2), **KNOCKOUT)
ZEROS = {"at": "image", "layers": 1, "value": mmf.values.zeros()}
REFUSED = [
    (LAYER, ZEROED, MMFlowError, r"leaves layer\(s\) \[1\] out"),
    (ATTENTION, ZEROED, MMFlowError, r"leaves the attn of layer\(s\) \[1\] out"),
    (LAYER, mmf.Patch(site="attn", **ZEROS), MMFlowError, r"leaves layer\(s\) \[1\] out"),
    (LAYER, mmf.Patch(site="blocks.1.hook_mlp_out", at="image", value=mmf.values.zeros()), MMFlowError, "leaves layer"),
    (ATTENTION, mmf.Patch(site="attn", heads=[1], **ZEROS), MMFlowError, "leaves the attn of"),
    (LAYER, mmf.Scale(site="attn", at="image", layers=1, factor=2.0), MMFlowError, r"leaves layer\(s\) \[1\] out"),
    (ATTENTION, mmf.Scale(site="attn", heads=[1], at="image", layers=1, factor=2.0), MMFlowError, "leaves the attn of"),
    (LAYER, mmf.Skip(layers=(0, 1), at="image"), MMFlowError, "leaves layer"),
    (LAYER, ATTENTION, MMFlowError, "leaves layer"),
    (LAYER, mmf.Skip(layers=(1, 2)), MMFlowError, "leaves layer"),
    (ATTENTION, mmf.Skip(layers=1, part="attn"), MMFlowError, "leaves the attn of"),
    (ATTENTION, mmf.FastV(k=2, r=0.5, mode="mask"), MMFlowError, r"the attn of layer\(s\) \[1\] out"),
    (LAYER, mmf.Knockout(layers=1, **KNOCKOUT), NoEffectError, "would change nothing: .* leaves all of its layers out"),
    (ZEROED, mmf.ZeroWeights(source="all", target="last", layers=2), MMFlowError, "taken away twice"),
    (mmf.FastV(k=2, r=0.5), mmf.FastV(k=3, r=0.5, mode="mask"), MMFlowError, "drops tokens before layer 2"),
    (mmf.Knockout(layers=1, heads=[1], **KNOCKOUT), mmf.FastV(k=2, r=0.5), MMFlowError, "one mask for all heads"),
]


def test_what_cannot_meet_is_refused_before_any_forward(graph, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a forward ran")

    monkeypatch.setattr(graph.adapter.model, "forward", never)
    prompt = made(graph, False)
    for one, other, kind, text in REFUSED:
        for patterns in ((one, other), (other, one)):
            with pytest.raises(kind, match=text):
                graph.trace(prompt, *patterns)
            with pytest.raises(kind, match=text):
                graph.generate(prompt, *patterns, max_new_tokens=2, use_cache=False)
