"""The cost model to its printed digits, and the report: what it counts is what the model does."""

import numpy as np
import pytest
import torch
from kit.tiny import picture, tiny_graph

import nnsight_mmflow as mmf
from nnsight_mmflow.patterns.prune.report import equal_budget
from nnsight_mmflow.runs.costs import DecoderSize, cache_bytes, paper_flops, real_flops, tokens_per_layer

QUIET = {"progress": False, "report": str}
SEVEN, THIRTEEN = DecoderSize(32, 4096, 11008, 4096), DecoderSize(40, 5120, 13824, 5120)


class Depth:
    """As much of a graph as schedules look at."""

    def __init__(self, size):
        self.n_layers = size.n_layers


def tokens(pattern, size, image=576):
    return tokens_per_layer(pattern.stages(Depth(size), image), image, size.n_layers)


# Spec himap, 4.1 and 8.2, to their printed digits.


@pytest.mark.parametrize(("size", "total", "real"), [(SEVEN, 2.986, 9.95), (THIRTEEN, 5.813, 19.4)])
def test_totals(size, total, real):
    assert round(paper_flops([576] * size.n_layers, size) / 1e12, 3) == total
    assert float(f"{real_flops([746] * size.n_layers, size) / 1e12:.3g}") == real


@pytest.mark.parametrize(
    ("size", "pattern", "ratio"),
    [
        (SEVEN, mmf.FastV(), 52.44),
        (SEVEN, mmf.FastV(k=3), 54.03),
        (SEVEN, mmf.FastV(r=0.75), 29.18),
        (SEVEN, mmf.HiMAP(), 24.62),
        (SEVEN, mmf.HiMAP(k2=15), 32.74),
        (SEVEN, mmf.PyramidDrop(layers=(8, 16, 24)), 46.48),
        (THIRTEEN, mmf.FastV(), 51.94),
        (THIRTEEN, mmf.FastV(k=3), 53.21),
        (THIRTEEN, mmf.FastV(r=0.75), 28.33),
        (THIRTEEN, mmf.HiMAP(), 22.21),
        (THIRTEEN, mmf.HiMAP(k2=15), 28.71),
        (THIRTEEN, mmf.PyramidDrop(layers=(8, 16, 24)), 39.69),
    ],
)
def test_ratios_of_image_tokens(size, pattern, ratio):
    found = paper_flops(tokens(pattern, size), size) / paper_flops([576] * size.n_layers, size)
    assert round(100 * found, 2) == ratio


@pytest.mark.parametrize(
    ("size", "pattern", "ratio", "cache"),
    [
        (SEVEN, mmf.FastV(), 63.0, 0.638),
        (SEVEN, mmf.HiMAP(), 41.3, 0.421),
        (SEVEN, mmf.HiMAP(k2=15), 47.6, 0.484),
        (THIRTEEN, mmf.FastV(), 62.6, 0.633),
        (THIRTEEN, mmf.HiMAP(), 39.5, 0.402),
        (THIRTEEN, mmf.HiMAP(k2=15), 44.6, 0.452),
    ],
)
def test_ratios_with_text_and_of_the_cache(size, pattern, ratio, cache):
    with_text, whole = [n + 170 for n in tokens(pattern, size)], [746] * size.n_layers
    assert round(100 * paper_flops(with_text, size) / paper_flops(whole, size), 1) == ratio
    assert round(cache_bytes(with_text, size) / cache_bytes(whole, size), 3) == cache


def test_cache_lengths_of_himap_on_a_prompt_of_746():
    lengths = [n + 170 for n in tokens(mmf.HiMAP(), SEVEN)]
    assert lengths == [746] * 2 + [458] * 6 + [242] * 24
    assert round(cache_bytes([746] * 32, SEVEN) / 2**20) == 373  # MB, in half precision (spec, 4.1)
    assert round(cache_bytes(lengths, SEVEN) / 2**20) == 157


def test_controls_of_equal_budget():
    graph = tiny_graph("llama", n_layers=5)
    prompt = graph.prompt(picture(0), "what color is the circle ?")
    method = mmf.HiMAP(k1=1, k2=3)
    for control in equal_budget(graph, method, prompt).values():
        assert abs(control.budget(graph, 64) - method.budget(graph, 64)) < 1
        assert control.k == 1


# The report.


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


def test_the_report_counts_what_the_model_writes(nano, tmp_path):
    prompts, methods = (
        mmf.nano.prompts(nano, 12),
        {"three": mmf.DropAll(from_layer=3), "nine": mmf.DropAll(from_layer=9)},
    )
    told = []
    run = {"folder": tmp_path, "timed": 1, "progress": False, "report": told.append}
    result = mmf.prune_report(nano, prompts, methods, **run)
    frame = result.to_frame()
    assert len(frame) == 12 * 7
    assert told[0].startswith("prune report: 91 generation(s) to run; 7 methods, 12 prompts")
    for name, pattern in methods.items():
        part = frame[frame["method"] == name].reset_index(drop=True)
        for number, prompt in enumerate(prompts):
            with torch.no_grad(), nano.trace(prompt, pattern):
                token = nano.unembed.output[0, -1].argmax().save()
            assert part["written"][number].split()[0] == nano.processor.tokenizer.decode([int(token)])
            assert part["right"][number] == (part["written"][number] == prompt.answer)
        assert (part["image_tokens"] == 64 * (3 if name == "three" else 9) / 10).all()
    scores = result.scores().set_index("method")
    assert scores["right"]["unpruned"] == frame[frame["method"] == "unpruned"]["right"].mean()
    assert scores["agrees"]["unpruned"] == 1
    assert scores["right"]["three"] < 0.7
    assert scores["right"]["nine"] == scores["right"]["unpruned"]
    assert (scores["low"] <= scores["right"]).all()
    assert (scores["difference_low"] <= scores["difference_high"]).all()
    assert (scores["first_token_ms"] > 0).all()
    assert np.allclose(scores["tokens_share"], scores["image_tokens"] / 64)
    again = mmf.prune_report(nano, prompts, methods, **run)
    assert again.to_frame().equals(frame)
    assert "0 generation(s) to run, 91 done already" in told[1]
    assert mmf.results.PruneReport.load(tmp_path).to_frame().equals(frame)
    assert len(result.plot()._repr_png_()) > 10_000
    assert "unpruned: " in result.summary()


def test_reports_that_cannot_be_made(nano):
    prompts = mmf.nano.prompts(nano, 2)
    with pytest.raises(mmf.MMFlowError, match="at least one method"):
        mmf.prune_report(nano, prompts, [], **QUIET)
    with pytest.raises(mmf.MMFlowError, match="prune_report: 1 of 1 prompts have no answer"):
        mmf.prune_report(
            nano, [nano.prompt(prompts[0].images[0], "what color is the circle ?")], [mmf.FastV()], **QUIET
        )
    with pytest.raises(mmf.NoEffectError, match="keeps all 64"):
        mmf.prune_report(nano, prompts, [mmf.FastV(r=0.0)], timed=0, controls=0, **QUIET)
