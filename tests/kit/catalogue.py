"""Every pattern that the package has, and the experiments of kit/experiments.py: for smoke.py and real_ndif.

test_catalogue.py sees to it that a new one cannot be forgotten here.
"""

from functools import partial

import torch
from kit.experiments import ROWS, prompts_of

import nnsight_mmflow as mmf

UNTOLD = {"progress": False, "report": str}
LOOSE = {"only_correct": False, **UNTOLD}
BY_GRADIENTS = {row.function for row in ROWS if row.gradients}  # which do not reach a process apart from the model's


def prompts(graph):
    """Two, as the experiments' rows take them."""
    return prompts_of(graph)


def longest(seen):
    """A ranking of one's own."""
    return seen.hidden[seen.image].norm(dim=-1)


def centered(values, layer):
    """A change of one's own."""
    return values - values.mean(-1, keepdim=True) + layer


def patterns(other):
    """By name, for the first of the prompts; `other` is the second, whose activations are patched in."""
    edges = {"source": "image", "target": "question | last", "layers": (1, 2)}
    return {
        **{f"Knockout {when}": mmf.Knockout(**edges, when=when) for when in ("prefill", "decode", "all")},
        "Knockout of heads": mmf.Knockout(source="image", target="question", layers=[4], heads=[1]),
        "Bias": mmf.Bias(**edges, value=1.0, when="all"),
        "ZeroWeights": mmf.ZeroWeights(**edges),
        "Patch": mmf.Patch(at="image", layers=1, value=mmf.values.from_run(other)),
        "Patch by zeros": mmf.Patch(at="image", site="mlp", layers=[1, 2], value=mmf.values.zeros()),
        "Patch of embeddings": mmf.Patch(at="image", site="embed", value=mmf.values.noise(0.5, seed=1)),
        "Patch by a mean": mmf.Patch(at="image", layers=1, value=mmf.values.mean_of([other])),
        "Patch of new tokens": mmf.Patch(at="last", layers=1, value=mmf.values.zeros(), when="all"),
        "Change": mmf.Change(at="image", layers=[1, 2], site="attn", heads=[1], value=centered),
        "Change of new tokens": mmf.Change(at="question | last", layers=2, value=centered, when="all"),
        "Change through an autoencoder": mmf.Change(
            at="image", layers=2, value=mmf.values.through(torch.abs, torch.neg, torch.zeros_like, features=[3])
        ),
        "Add": mmf.Add(at="last", layers=3, vector=torch.linspace(-1, 1, 128)),
        "Scale": mmf.Scale(at="image", layers=[1, 2], site="mlp", factor=0.5),
        "Skip": mmf.Skip(layers=3),
        "Skip at a span": mmf.Skip(layers=3, at="image"),
        "HiMAP": mmf.HiMAP(k1=2, k2=4),
        "HiMAP by mask": mmf.HiMAP(k1=2, k2=4, mode="mask"),
        "FastV": mmf.FastV(k=2),
        "PyramidDrop": mmf.PyramidDrop(),
        "SparseVLM": mmf.prune.SparseVLM(),
        "VisiPruner": mmf.prune.VisiPruner(),
        "VisionZip": mmf.prune.VisionZip(dominant=12, contextual=4),
        "FasterVLM": mmf.prune.FasterVLM(),
        "Random": mmf.Random(),
        "Grid": mmf.prune.Grid(),
        "Keep": mmf.prune.Keep(at="corner", from_layer=2),
        "DropAll": mmf.DropAll(from_layer=3),
        "Prune by a ranking of one's own": mmf.prune.Prune(
            own=[mmf.prune.Stage(layer=2, keep=0.5, rank=longest, reads="")]
        ),
    }


def experiments(graph, here, prompts):
    """By name, each as a function without arguments: the rows of kit/experiments.py.

    Args:
        graph: where they run.
        here: a graph of the same model, by which inputs are made.
        prompts: two of them.
    """
    return {row.name: partial(row.run, graph, row.given(here, *prompts), **UNTOLD) for row in ROWS}
