"""What nano's image tokens are for, as found: the numbers of the model card, on fewer prompts."""

import pytest
import torch

import nnsight_mmflow as mmf

QUIET = {"progress": False, "report": str}


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def prompts(nano):
    return mmf.nano.prompts(nano, 30)


def probability(nano, prompt, *patterns):
    token = nano.processor.tokenizer.convert_tokens_to_ids(prompt.answer)
    with torch.no_grad(), nano.trace(prompt, *patterns, use_cache=False, logits_to_keep=1):
        found = nano.model.output.logits[0, -1].softmax(-1)[token].save()
    return float(found)


def test_image_tokens_are_read_until_layer_4(nano, prompts):
    """Dropped or cut off, from the same layer on: the same change, small behind layer 4 and large before it."""
    before = [probability(nano, one) for one in prompts]
    for layer, low, high in ((2, -1.0, -0.5), (4, -0.7, -0.25), (5, -0.15, 0.0), (7, -0.08, 0.0)):
        cut = mmf.Knockout(source="image", target="question | suffix", layers=range(layer, nano.n_layers))
        for pattern in (mmf.DropAll(from_layer=layer), cut):
            changes = [probability(nano, one, pattern) / was - 1 for one, was in zip(prompts, before, strict=True)]
            assert low <= sum(changes) / len(changes) <= high, (layer, pattern)


def test_but_no_layer_needs_to_work_on_them(nano, prompts):
    result = mmf.skip_flow(nano, prompts[:12], ["image", "all"], scope="from_layer", **QUIET)
    assert result.needless_from("image", 8) == 0
    assert result.needless_from("all", 8) >= 8


@pytest.mark.slow
def test_thinning_by_chance_or_by_a_grid_does_as_well_as_the_methods(nano):
    prompts = mmf.nano.prompts(nano, 60)
    methods = {
        "fastv": mmf.FastV(k=2, r=0.5),
        "himap": mmf.HiMAP(k1=2, r1=0.25, k2=5, r2=1 / 3),
        "pyramiddrop": mmf.PyramidDrop(layers=(2, 5), keep=(0.75, 0.5)),
    }
    scores = mmf.prune_report(nano, prompts, methods, timed=0, **QUIET).scores().set_index("method")
    half = scores["right"]
    assert half["unpruned"] == 1
    assert half["fastv"] < 0.95 * half["unpruned"]
    assert half["random from layer 2, 50.0% left"] > half["fastv"]
    assert half["grid from layer 2, 59.4% left"] > half["himap"]
    assert half["grid from layer 2, 59.4% left"] > half["pyramiddrop"]


@pytest.mark.slow
def test_the_towers_class_token_knows_where_the_shapes_are(nano):
    prompts = mmf.nano.prompts(nano, 60)
    methods = {"faster": mmf.prune.FasterVLM(r=0.875), "zip": mmf.prune.VisionZip(dominant=13, contextual=3)}
    scores = mmf.prune_report(nano, prompts, methods, timed=0, **QUIET).scores().set_index("method")["right"]
    assert scores["faster"] > 0.1 + max(
        scores["random from layer 0, 12.5% left"], scores["grid from layer 0, 12.5% left"]
    )
    assert scores["zip"] > 0.05 + max(
        scores["random from layer 0, 25.0% left"], scores["grid from layer 0, 25.0% left"]
    )
