"""Change, Add, Scale and patterns of one's own against hand-written hooks; what they refuse, and planted no-ops.

Generations are in tests/model/test_forms.py, servers in tests/remote/cases.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import nnsight
import numpy as np
import pytest
import torch
from kit.families import family
from kit.sites import with_hooks
from kit.tiny import picture, tiny_graph

import nnsight_mmflow as mmf
from nnsight_mmflow.inside.own_functions import layer_argument

QUESTION, OTHER = "what color is the circle ?", "is the circle red or blue ?"
GRAPHS = {
    "llama": lambda attention: tiny_graph("llama", attention=attention),
    "phi": lambda attention: tiny_graph("phi", "siglip", attention=attention),
    "gemma3": lambda attention: family("gemma3", attention),
    "qwen3_vl": lambda attention: family("qwen3_vl", attention),
}
LAYERS = [1, 2]
SITES = [("resid", None), ("attn", None), ("attn", (3, 1)), ("mlp", None), ("embed", None)]


@pytest.fixture(scope="module")
def graph():
    return tiny_graph()


@pytest.fixture(scope="module")
def prompt(graph):
    return graph.prompt(picture(0), QUESTION)


def twisted(values, layer):
    """Positions hang on one another, and layers differ."""
    return values.flip(-1) - 0.5 * values.mean(0) + 0.01 * layer


@dataclass(frozen=True, kw_only=True)
class Own(mmf.Pattern):
    """A pattern of one's own."""

    at: str
    layers: int | Iterable[int] | None = None
    site: str = "resid"
    heads: tuple[int, ...] | None = None

    def change(self, values, layer):
        return twisted(values, layer)


def logits_of(graph, prompt, *patterns):
    with torch.no_grad(), graph.trace(prompt, *patterns, use_cache=False):
        logits = graph.model.output.logits[:, -1].save()
    return logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", GRAPHS)
def test_every_site_equals_hooks(name, attention):
    graph = GRAPHS[name](attention)
    prompt = graph.prompt(picture(0), QUESTION)
    clean = logits_of(graph, prompt)[0]
    for site, heads in SITES:
        layers = None if site == "embed" else LAYERS
        for at in ("image", "question | last"):
            positions = list(prompt.spans[at])

            def change(number, whole, layers=layers, heads=heads, positions=positions):
                whole, width = whole.clone(), graph.head_width
                columns = [head * width + i for head in heads or () for i in range(width)] or slice(None)
                part = whole[0, positions]
                part[:, columns] = twisted(part[:, columns], (layers or [0])[number])
                whole[0, positions] = part
                return whole

            gold = with_hooks(graph, prompt, site, layers or [0], heads, change)
            given = {"at": at, "site": site, "layers": layers, "heads": heads}
            found = logits_of(graph, prompt, mmf.Change(**given, value=twisted))[0]
            assert (found - gold).abs().max() < 1e-5, (site, heads, at)
            assert torch.equal(logits_of(graph, prompt, Own(**given))[0], found)
            assert (gold - clean).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_padded_batch_equals_its_rows(attention):
    graph = GRAPHS["llama"](attention)
    prompts = [graph.prompt(picture(0), QUESTION), graph.prompt(picture(1), OTHER)]
    for site, heads in SITES:
        layers = None if site == "embed" else LAYERS
        pattern = mmf.Change(at="question | last", site=site, layers=layers, heads=heads, value=twisted)
        together = logits_of(graph, graph.batch(prompts), pattern)
        alone = torch.cat([logits_of(graph, prompt, pattern) for prompt in prompts])
        assert (together - alone).abs().max() < 1e-5, (site, heads)


def test_add_and_scale_are_short_for_change(graph, prompt):
    vector, other = torch.randn(2, graph.d_model, generator=torch.Generator().manual_seed(0))
    at = {"at": "image | last", "layers": (1, 2)}
    width = 2 * graph.head_width
    by_layer = {1: vector, 2: other}
    heads = {"site": "attn", "heads": (2, 0)}
    for short, value in (
        (mmf.Add(**at, vector=vector, scale=-2.0), lambda values: values - 2.0 * vector),
        (mmf.Add(**at, vector=vector.double().numpy()), lambda values: values + vector),
        (mmf.Add(**at, vector=by_layer), lambda values, layer: values + by_layer[layer]),
        (mmf.Add(**at, vector=torch.stack([vector, other])), lambda values, layer: values + by_layer[layer]),
        (mmf.Add(at="image | last", layers=[2, 1], vector=[other.tolist(), vector.tolist()]), None),
        (mmf.Scale(**at, factor=0.25), lambda values: values * 0.25),
    ):
        value = value or (lambda values, layer: values + by_layer[layer])
        wanted = logits_of(graph, prompt, mmf.Change(**at, value=value))
        assert torch.equal(logits_of(graph, prompt, short), wanted), short
    for short, value in (
        (mmf.Add(**at, **heads, vector=vector[:width]), lambda values: values + vector[:width]),
        (mmf.Scale(**at, **heads, factor=0.0), torch.zeros_like),
    ):
        assert torch.equal(
            logits_of(graph, prompt, short), logits_of(graph, prompt, mmf.Change(**at, **heads, value=value))
        )


def test_half_precision_is_rounded_once():
    """A vector of float32 on bfloat16 activations: what is written is the sum, rounded; a hook does the same."""
    graph = tiny_graph()
    half = mmf.adapt(graph.adapter.model.__class__(graph.adapter.model.config).to(torch.bfloat16), graph.processor)
    half.adapter.model.load_state_dict(graph.adapter.model.state_dict())
    prompt = half.prompt(picture(0), QUESTION)
    vector = torch.randn(half.d_model, generator=torch.Generator().manual_seed(0))
    positions = list(prompt.spans["image"])

    def change(_number, whole):
        whole = whole.clone()
        whole[0, positions] = (whole[0, positions].float() + vector).to(torch.bfloat16)
        return whole

    gold = with_hooks(half, prompt, "resid", LAYERS, None, change)
    for pattern in (
        mmf.Add(at="image", layers=LAYERS, vector=vector),
        mmf.Change(at="image", layers=LAYERS, value=lambda values: values.float() + vector),
    ):
        assert torch.equal(logits_of(half, prompt, pattern)[0], gold)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (lambda values: values[0], r"gave a tensor of shape \(\d+,\); expected shape \(64, \d+\)"),
        (lambda values: values[:, :-1], r"gave a tensor of shape"),
        (lambda values: None, "gave None: it must return the values"),
        (lambda values: values.numpy(), r"\(ndarray\)"),
        (lambda values: values.long(), r"numbers of type torch\.int64"),
        (lambda values: values.to(torch.complex64), r"numbers of type torch\.complex64"),
        (lambda values: values.to("meta"), "on meta, but the values are on cpu"),
        (lambda values: values / 0, r"that are NaN or infinite \(as torch\.float32\)"),
        (lambda values: values.double() * 1e300, r"that are NaN or infinite \(as torch\.float32\)"),
        (lambda values: values @ torch.ones(3, 3), "failed, given a tensor of shape .*RuntimeError: mat1 and mat2"),
        (lambda values, layer: values if layer < 2 else values * np.nan, "at layer 2, row 0,"),
    ],
)
def test_what_a_function_gives_is_looked_at(graph, prompt, value, text):
    for pattern in (mmf.Change(at="image", layers=(1, 2), value=value),):
        with pytest.raises(mmf.MMFlowError, match=text) as told:
            logits_of(graph, prompt, pattern)
        assert "its function, at layer" in str(told.value)


def test_the_row_is_named(graph):
    prompts = [graph.prompt(picture(number), QUESTION) for number in range(3)]
    first = prompts[2].spans["image"]

    def breaks(values):
        seen.append(values)
        return values * (float("nan") if len(seen) == 3 else 2)

    seen = []
    with pytest.raises(mmf.MMFlowError, match="at layer 1, row 2,"):
        logits_of(graph, graph.batch(prompts), mmf.Change(at="image", layers=1, value=breaks))
    assert seen[0].shape == (len(first), graph.d_model)


def in_place(values):
    values *= 2
    return values


def test_a_function_may_change_its_values_in_place(graph, prompt):
    changed = mmf.Change(at="image", layers=1, value=in_place)
    assert torch.equal(
        logits_of(graph, prompt, changed), logits_of(graph, prompt, mmf.Scale(at="image", layers=1, factor=2))
    )


class Module(torch.nn.Module):
    def forward(self, values, layer):
        return values * layer


@pytest.mark.parametrize(
    ("value", "how"),
    [
        (lambda values: values, ""),
        (lambda values, layer: values, "second"),
        (lambda values, number: values, "second"),
        (lambda values, strength=2.0: values, ""),
        (lambda values, layer=None: values, "second"),
        (lambda values, *, layer: values, "named"),
        (lambda values, *more: values, ""),
        (lambda *values: values[0], ""),
        (lambda values, **more: values, ""),
        (partial(lambda scale, values: values, 2.0), ""),
        (torch.relu, ""),
        (torch.nn.functional.relu, ""),
        (torch.nn.ReLU(), ""),
        (Module(), "second"),
        (np.tanh, ""),
    ],
)
def test_whether_a_function_takes_the_layer_is_told_by_its_signature(value, how):
    assert layer_argument("value", value) == how


@pytest.mark.parametrize(
    "value",
    [Module, lambda: 0, lambda a, b, c: a, lambda a, *, other: a, lambda a, b, *, layer: a],
)
def test_what_is_no_such_function_is_refused_when_the_pattern_is_made(value):
    with pytest.raises(mmf.MMFlowError, match="value is"):
        mmf.Change(at="image", layers=1, value=value)


VECTORS = [
    ({"vector": torch.ones(7)}, r"vector has 7 numbers \(layer 1\), but site='resid' of .* is \d+ wide"),
    ({"vector": torch.ones(3, 7)}, r"vector has shape \(3, 7\)"),
    ({"vector": torch.ones(2, 2, 7)}, r"vector has shape \(2, 2, 7\)"),
    ({"vector": {1: torch.ones(7)}}, r"vector has none for layer\(s\) \[2\]; it has some for \[1\]"),
    ({"vector": {1: torch.ones(1, 7), 2: torch.ones(7)}}, r"vector of layer 1 has shape \(1, 7\)"),
    ({"vector": torch.full((7,), float("nan"))}, "vector holds 7 of 7 numbers that are NaN"),
    ({"vector": "left"}, "vector is a tensor"),
    ({"vector": torch.ones(7, dtype=torch.bool)}, "vector is a tensor"),
    ({"vector": {}}, "holds none"),
    ({"vector": torch.ones(2, 7), "layers": (2, -1)}, "named once and from 0"),
    ({"vector": torch.ones(7), "site": "attn", "heads": (0, 1)}, r"but the 2 head\(s\) of .* is \d+ wide"),
    ({"vector": torch.ones(7), "scale": float("inf")}, "scale=inf"),
]


@pytest.mark.parametrize(("given", "text"), VECTORS)
def test_a_vector_that_does_not_fit_is_refused_before_any_forward(graph, prompt, given, text, monkeypatch):
    monkeypatch.setattr(graph.adapter.model, "forward", None)
    with pytest.raises(mmf.MMFlowError, match=text):
        graph.trace(prompt, mmf.Add(**{"at": "image", "layers": (1, 2), **given}))


def written(graph, prompt, pattern, **settings):
    """(steps, rows, vocabulary): the logits of a greedy generation."""
    told = {"output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    length = {"max_new_tokens": 4, "min_new_tokens": 4}
    with torch.no_grad(), graph.generate(prompt, pattern, **{**told, **length, **settings}) as tracer:
        logits = torch.stack(tracer.result.logits).save()
    return logits


def same(values):
    return values.clone()


def test_planted_what_changes_nothing_is_told(graph, prompt):
    zero, at = torch.zeros(graph.d_model), {"at": "image | last", "layers": (1, 2)}
    for pattern in (
        mmf.Change(**at, value=same),
        mmf.Change(**at, value=lambda values: values + 0),
        mmf.Change(**at, site="attn", heads=[1], value=same),
        mmf.Change(**at, value=lambda values: values.double() + 1e-12),  # rounded away
        mmf.Add(**at, vector=zero),
        mmf.Add(**at, vector=zero + 1, scale=0.0),
        mmf.Add(**at, vector=zero + 1e-12),
        mmf.Scale(**at, factor=1.0),
        mmf.Change(**at, value=mmf.values.through(torch.relu, torch.relu, same)),
    ):
        with pytest.raises(mmf.NoEffectError, match="would change nothing"):
            logits_of(graph, prompt, pattern)
        with pytest.raises(mmf.NoEffectError, match="would change nothing"):
            written(graph, prompt, pattern)
    for when in ("decode", "all"):
        with pytest.raises(mmf.NoEffectError, match="would change nothing"):
            written(graph, prompt, mmf.Change(**at, value=same, when=when))
    with pytest.raises(mmf.NoEffectError, match="before a step came"):
        written(graph, prompt, mmf.Scale(**at, factor=2.0, when="decode"), max_new_tokens=1, min_new_tokens=1)
    # One layer in which something changes is enough.
    logits_of(graph, prompt, mmf.Change(**at, value=lambda values, layer: values * layer))


REFUSED = [
    ({"site": "residual"}, "site must be one of"),
    ({"site": "embed"}, "leave layers out"),
    ({"layers": None}, "needs layers"),
    ({"layers": [99]}, r"layers \[99\] do not exist"),
    ({"at": "photo"}, "'photo' is no span"),
    ({"at": "image.box((0, 0, 1, 1)) & last"}, "no position|holds no token|is no span"),
    ({"heads": [1]}, "heads belong to site='attn'"),
    ({"site": "attn", "heads": [99]}, r"heads=.*99.*there are 4 heads"),
    ({"when": "later"}, "when must be one of"),
    ({"when": "decode"}, "needs graph.generate"),
]


@pytest.mark.parametrize(("given", "text"), REFUSED)
@pytest.mark.parametrize("kind", [mmf.Change, mmf.Scale, mmf.Patch], ids=lambda kind: kind.__name__)
def test_what_cannot_be_changed_is_refused_before_any_forward(graph, prompt, kind, given, text, monkeypatch):
    monkeypatch.setattr(graph.adapter.model, "forward", None)
    what = {mmf.Scale: {"factor": 2.0}, mmf.Patch: {"value": mmf.values.zeros()}}.get(kind, {"value": in_place})
    with pytest.raises(mmf.MMFlowError, match=text):
        graph.trace(prompt, kind(**{"at": "image", "layers": 1, **what, **given}))


def test_new_tokens_need_the_last_position(graph, prompt):
    for pattern in (
        mmf.Scale(at="image", layers=1, factor=2.0, when="all"),
        mmf.Patch(at="image", layers=1, value=mmf.values.zeros(), when="decode"),
    ):
        with pytest.raises(mmf.NoEffectError, match=r"the newest token stands for the prompt's last position, which"):
            graph.generate(prompt, pattern, max_new_tokens=3)


def test_a_span_in_parts_is_refused_unless_positions_stand_alone(graph, prompt):
    with pytest.raises(mmf.MMFlowError, match=r"hands the 64 positions of 'image' over \(row 0\) in \d+ parts"):
        written(graph, prompt, mmf.Change(at="image", layers=1, value=in_place), prefill_chunk_size=7)
    for pattern in (
        mmf.Scale(at="image", layers=1, factor=2.0),
        mmf.Change(at="last", layers=1, value=in_place),  # one position is in one part
    ):
        parts, whole = (written(graph, prompt, pattern, prefill_chunk_size=size) for size in (7, None))
        assert (parts - whole).abs().max() < 2e-5


def test_patch_in_decode_steps(graph, prompt):
    """What new tokens get is what is written at the last position: zeros, a mean, noise of one draw, values."""
    at, other = {"layers": 1, "when": "decode"}, graph.prompt(picture(5), QUESTION)
    with torch.no_grad(), graph.trace(other, use_cache=False):
        last = graph.layers[1].output[0, -1].save()
    found = [
        written(graph, prompt, pattern)
        for pattern in (
            mmf.Patch(at="last", **at, value=mmf.values.from_run(other)),
            mmf.Change(at="last", **at, value=lambda values: last.expand_as(values)),
            mmf.Patch(at="question | suffix", **at, value=mmf.values.from_run(other)),
            mmf.Patch(at="last", **at, value=mmf.values.zeros()),
            mmf.Scale(at="last", **at, factor=0.0),
        )
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[3], found[4])
    assert (found[0] - found[3]).abs().max() > 1e-3
    noise = mmf.Patch(at="last", layers=1, when="all", value=mmf.values.noise(2.0))
    kept, anew = (written(graph, prompt, noise, use_cache=cached) for cached in (True, False))
    assert (kept - anew).abs().max() < 2e-5


def test_names_of_transformer_lens_are_taken(graph, prompt):
    ours = mmf.Scale(at="image", site="mlp", layers=2, factor=0.5)
    theirs = mmf.Scale(at="image", site="blocks.2.hook_mlp_out", factor=0.5)
    assert torch.equal(logits_of(graph, prompt, ours), logits_of(graph, prompt, theirs))


def test_by_hand_in_a_trace_of_ones_own(graph, prompt):
    pattern = mmf.Scale(at="image", layers=2, factor=0.5)
    with torch.no_grad(), graph.trace(prompt, use_cache=False):
        count = nnsight.save(pattern.apply(graph, prompt.spans))
        logits = graph.model.output.logits[:, -1].save()
    assert torch.equal(logits, logits_of(graph, prompt, pattern))
    assert count == len(prompt.spans["image"]) * graph.d_model


def test_gradients_pass(graph, prompt):
    """What a function gives is part of the graph: the vector that is added can be trained."""
    vector = torch.full((graph.d_model,), 0.1, requires_grad=True)
    with graph.trace(prompt, mmf.Change(at="image", layers=1, value=lambda values: values + vector), use_cache=False):
        loss = graph.model.output.logits[0, -1].square().sum().save()
    loss.backward()
    assert vector.grad.abs().sum() > 0
