"""Patch against hand-written hooks: every site, eager and sdpa, single and in padded batches; and what it refuses."""

import nnsight
import pytest
import torch
from kit.families import family
from kit.sites import with_hooks
from kit.tiny import picture, tiny_graph, tiny_model, tiny_processor

import nnsight_mmflow as mmf

QUESTION, OTHER = "what color is the circle ?", "is the circle red or blue ?"
GRAPHS = {
    "llama": lambda attention: tiny_graph("llama", attention=attention),
    "phi": lambda attention: tiny_graph("phi", "siglip", attention=attention),
    "gemma3": lambda attention: family("gemma3", attention),
    "qwen3_vl": lambda attention: family("qwen3_vl", attention),
}
LAYERS = [1, 2]


def hooked(graph, prompt, site, layers, positions, values, heads=None):
    """A plain forward with torch hooks that write the values (layers, positions, width) at one row's positions."""

    def write(number, tensor):
        tensor = tensor.clone()
        columns = range(tensor.shape[-1])
        if heads is not None:
            columns = [head * graph.head_width + i for head in heads for i in range(graph.head_width)]
        for position, value in zip(positions, values[number], strict=True):
            tensor[0, position, list(columns)] = value[list(columns)]
        return tensor

    return with_hooks(graph, prompt, site, layers, heads, write)


def grabbed(graph, prompt, site, layers, positions, heads=None):
    """The clean values that a hook sees there: (layers, positions, width)."""
    values = []

    def look(_number, tensor):
        values.append(tensor[0, positions].clone())
        return tensor

    with_hooks(graph, prompt, site, layers, heads, look)
    return values


def patched(graph, prompt, *patches):
    with torch.no_grad(), graph.trace(prompt, *patches, use_cache=False):
        logits = graph.model.output.logits[:, -1].save()
    return logits


SITES = [("resid", None), ("attn", None), ("attn", (1, 3)), ("mlp", None), ("embed", None)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("site", "heads"), SITES)
@pytest.mark.parametrize("name", GRAPHS)
def test_values_of_another_run_equal_hooks(name, site, heads, attention):
    graph = GRAPHS[name](attention)
    prompt, other = (graph.prompt(picture(seed), QUESTION) for seed in (0, 1))
    layers = None if site == "embed" else LAYERS
    for at in ("image", "question | last"):
        if site == "embed" and at != "image":
            continue  # the same words have the same embeddings
        positions = list(prompt.spans[at])
        values = grabbed(graph, other, site, layers or [0], positions, heads)
        gold = hooked(graph, prompt, site, layers or [0], positions, values, heads)
        patch = mmf.Patch(at=at, site=site, layers=layers, heads=heads, value=mmf.values.from_run(other))
        found = patched(graph, prompt, patch)[0]
        assert (found - gold).abs().max() < 1e-5
        clean = patched(graph, prompt)[0]
        assert (gold - clean).abs().max() > 1e-3
        given = mmf.Patch(at=at, site=site, layers=layers, heads=heads, value=torch.stack(values)[:, None])
        assert torch.equal(patched(graph, prompt, given)[0], found)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("site", ["resid", "attn", "mlp", "embed"])
def test_a_padded_batch_equals_its_rows(site, attention):
    graph = GRAPHS["llama"](attention)
    prompts = [graph.prompt(picture(0), QUESTION), graph.prompt(picture(1), OTHER)]
    others = [graph.prompt(picture(2), QUESTION), graph.prompt(picture(3), OTHER)]
    layers = None if site == "embed" else LAYERS
    whole = mmf.Patch(at="image", site=site, layers=layers, value=mmf.values.from_run(graph.batch(others)))
    together = patched(graph, graph.batch(prompts), whole)
    alone = [
        patched(graph, prompt, mmf.Patch(at="image", site=site, layers=layers, value=mmf.values.from_run(other)))[0]
        for prompt, other in zip(prompts, others, strict=True)
    ]
    assert (together - torch.stack(alone)).abs().max() < 1e-5


@pytest.mark.parametrize("name", GRAPHS)
def test_everything_from_the_clean_run_restores_it_bit_for_bit(name):
    graph = GRAPHS[name]("sdpa")
    clean, corrupt = (graph.prompt(picture(seed), QUESTION) for seed in (0, 1))
    wanted = patched(graph, clean)
    assert not torch.equal(patched(graph, corrupt), wanted)
    for site, layers in (("embed", None), ("resid", graph.n_layers - 1)):
        if site == "embed" and name == "qwen3_vl":
            continue  # the features that enter between its layers are not part of the embedding
        found = patched(graph, corrupt, mmf.Patch(at="all", site=site, layers=layers, value=mmf.values.from_run(clean)))
        assert torch.equal(found, wanted), site


def test_a_run_patched_from_itself_is_refused():
    graph = GRAPHS["llama"]("sdpa")
    prompt = graph.prompt(picture(0), QUESTION)
    for site, layers in (("resid", [0, 4]), ("attn", [2]), ("mlp", range(3)), ("embed", None)):
        with pytest.raises(mmf.NoEffectError, match="what it writes stands there already"):
            patched(graph, prompt, mmf.Patch(at="image", site=site, layers=layers, value=mmf.values.from_run(prompt)))


def test_text_that_an_image_has_not_reached_is_refused():
    """Another picture leaves every position before the image as it was: patching there does nothing, and says so."""
    graph = GRAPHS["llama"]("sdpa")
    prompt, other = (graph.prompt(picture(seed), QUESTION) for seed in (0, 1))
    with pytest.raises(mmf.NoEffectError):
        patched(graph, prompt, mmf.Patch(at="text('USER')", layers=3, value=mmf.values.from_run(other)))


def test_zeros_mean_and_noise():
    graph = GRAPHS["llama"]("sdpa")
    prompt = graph.prompt(picture(0), QUESTION)
    others = [graph.prompt(picture(seed), QUESTION) for seed in (1, 2)]
    positions = list(prompt.spans["image"])
    zero = hooked(graph, prompt, "mlp", [2], positions, [torch.zeros(64, 64)])
    found = patched(graph, prompt, mmf.Patch(at="image", site="mlp", layers=2, value=mmf.values.zeros()))[0]
    assert (found - zero).abs().max() < 1e-5
    both = torch.cat([grabbed(graph, other, "resid", [2], positions)[0] for other in others]).mean(0)
    mean = hooked(graph, prompt, "resid", [2], positions, [both.expand(64, -1)])
    found = patched(graph, prompt, mmf.Patch(at="image", layers=2, value=mmf.values.mean_of(others)))[0]
    assert (found - mean).abs().max() < 1e-5
    loud = mmf.Patch(at="image", site="embed", value=mmf.values.noise(3.0, seed=5))
    one, again = patched(graph, prompt, loud), patched(graph, prompt, loud)
    assert torch.equal(one, again)
    other_seed = mmf.Patch(at="image", site="embed", value=mmf.values.noise(3.0, seed=6))
    assert not torch.equal(one, patched(graph, prompt, other_seed))
    with pytest.raises(mmf.NoEffectError):
        patched(graph, prompt, mmf.Patch(at="image", site="embed", value=mmf.values.noise(0.0)))


def test_two_patches_and_a_knockout_side_by_side():
    graph = GRAPHS["llama"]("sdpa")
    prompt, other = (graph.prompt(picture(seed), QUESTION) for seed in (0, 1))
    one = mmf.Patch(at="image", site="embed", value=mmf.values.from_run(other))
    two = mmf.Patch(at="last", site="mlp", layers=3, value=mmf.values.zeros())
    cut = mmf.Knockout(source="image", target="last", layers=range(2))
    with torch.no_grad(), graph.trace(other, two, cut, use_cache=False):
        wanted = graph.model.output.logits[:, -1].save()
    assert (patched(graph, prompt, one, two, cut) - wanted).abs().max() < 1e-5


def test_in_a_trace_of_ones_own_and_in_generation():
    graph = GRAPHS["llama"]("sdpa")
    prompt, other = (graph.prompt(picture(seed), QUESTION) for seed in (0, 1))
    patch = mmf.Patch(at="image", layers=1, value=mmf.values.from_run(other))
    wanted = patched(graph, prompt, patch)
    ready = patch.prepared(graph, prompt.rows())
    with torch.no_grad(), graph.trace(prompt, use_cache=False):
        changed = nnsight.save(ready.apply(graph, prompt.spans))
        logits = graph.model.output.logits[:, -1].save()
    assert torch.equal(logits, wanted)
    assert changed == 64 * 64
    with pytest.raises(mmf.MMFlowError, match="cannot be run inside a trace"), graph.trace(prompt):
        patch.apply(graph, prompt.spans)
    with torch.no_grad(), graph.generate(prompt, patch, max_new_tokens=1, do_sample=False) as tracer:
        ids = tracer.result.save()
    assert int(ids[0, -1]) == int(wanted.argmax())


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"site": "query", "layers": 0}, "site must be one of resid, attn, mlp, embed"),
        ({"site": "embed", "layers": 0}, "leave layers out"),
        ({"site": "mlp"}, "needs layers, such as layers=range"),
        ({"site": "mlp", "layers": 0, "heads": (0,)}, "heads belong to site='attn'"),
        ({"site": "attn", "layers": 0, "heads": (4,)}, "there are 4 heads"),
        ({"layers": 9}, "layers \\[9\\] do not exist"),
        ({"layers": 0, "at": "image & question"}, "holds no position"),
        ({"layers": 0, "value": torch.zeros(3, 5)}, "must broadcast to \\(layers, rows, positions, width\\)"),
        ({"layers": 0, "value": torch.zeros(5)}, "the value has width 5, the site 64"),
        ({"layers": 0, "value": "zeros"}, "none of what Patch takes"),
    ],
)
def test_bad_patches(given, text):
    graph = GRAPHS["llama"]("sdpa")
    prompt = graph.prompt(picture(0), QUESTION)
    with pytest.raises(mmf.MMFlowError, match=text):
        patched(graph, prompt, mmf.Patch(**{"at": "image", "value": mmf.values.zeros(), **given}))


def test_lengths_that_differ_are_explained():
    graph = GRAPHS["llama"]("sdpa")
    prompt, longer = graph.prompt(picture(0), QUESTION), graph.prompt(picture(1), OTHER)
    with pytest.raises(mmf.MMFlowError, match="'question' has 6 positions, but 'question' .* has 7"):
        patched(graph, prompt, mmf.Patch(at="question", layers=1, value=mmf.values.from_run(longer)))
    with pytest.raises(mmf.MMFlowError, match=r"from_run has 1 row\(s\), the run that is patched 2"):
        patched(
            graph, graph.batch([prompt, longer]), mmf.Patch(at="image", layers=1, value=mmf.values.from_run(longer))
        )
    with pytest.raises(mmf.MMFlowError, match=r"from_run\(prompt, at=...\)"):
        patched(graph, prompt, mmf.Patch(at=prompt.spans["image"], layers=1, value=mmf.values.from_run(longer)))
    aligned = mmf.Patch(at=prompt.spans["image"], layers=1, value=mmf.values.from_run(longer, at="image"))
    assert not torch.equal(patched(graph, prompt, aligned), patched(graph, prompt))


def test_the_half_precision_of_the_model_is_kept():
    graph = mmf.adapt(tiny_model("llama").half(), tiny_processor())
    prompt, other = (graph.prompt(picture(seed), QUESTION) for seed in (0, 1))
    clean = patched(graph, other)
    assert torch.equal(
        patched(graph, prompt, mmf.Patch(at="all", site="embed", value=mmf.values.from_run(other))), clean
    )


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers_are_refused(wrong):
    graph = tiny_graph()
    prompt = graph.prompt(picture(0), "what color is the circle ?")
    value = torch.zeros(graph.d_model)
    value[3] = wrong
    with pytest.raises(mmf.MMFlowError, match="holds 64 of 4096 numbers that are NaN or"):
        graph.trace(prompt, mmf.Patch(at="image", layers=[1], value=value))
    with pytest.raises(mmf.MMFlowError, match=r"tensor of torch.int64 with 1 dimensions"):
        graph.trace(prompt, mmf.Patch(at="image", layers=[1], value=torch.zeros(graph.d_model, dtype=torch.long)))
