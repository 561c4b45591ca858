"""Every pattern and every experiment that the package has, once: for tests/smoke.py and tests/real_ndif.

test_catalogue.py sees to it that a new one cannot be forgotten here.
"""

from dataclasses import replace

import nnsight_mmflow as mmf

QUIET = {"progress": False}
UNTOLD = {"progress": False, "report": str}
LOOSE = {"only_correct": False, **UNTOLD}
# By gradients, which do not reach a process apart from the model's.
BY_GRADIENTS = ("saliency", "attribution_patching", "edit", "edit_report")


def longest(seen):
    """A ranking of one's own."""
    return seen.hidden[seen.image].norm(dim=-1)


def prompts(graph):
    """Two of nano's; the first has a span more, "corner": a quarter of its image."""
    one, two = mmf.nano.prompts(graph, 2)
    width, height = one.images[0].size
    corner = one.spans["image"].box((0, 0, width / 2, height / 2))
    return [replace(one, spans=one.spans.having(corner=corner)), two]


def patterns(other):
    """By name, for the first of the prompts; `other` is the second, whose activations are patched in."""
    edges = {"source": "image", "target": "question | last", "layers": (1, 2)}
    return {
        **{f"Knockout {when}": mmf.Knockout(**edges, when=when) for when in ("prefill", "decode", "all")},
        "Knockout of heads": mmf.Knockout(source="image", target="question", layers=[4], heads=[1]),
        "ZeroWeights": mmf.ZeroWeights(**edges),
        "Patch": mmf.Patch(at="image", layers=1, value=mmf.values.from_run(other)),
        "Patch by zeros": mmf.Patch(at="image", site="mlp", layers=[1, 2], value=mmf.values.zeros()),
        "Patch of embeddings": mmf.Patch(at="image", site="embed", value=mmf.values.noise(0.5, seed=1)),
        "Patch by a mean": mmf.Patch(at="image", layers=1, value=mmf.values.mean_of([other])),
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
    """By name, each as a function without arguments.

    Args:
        graph: where they run.
        here: a graph of the same model, by which inputs are made.
        prompts: two of them.
    """
    one, two = prompts
    clean, corrupt = mmf.nano.trace_pairs(here, 2, "flag")
    answered = mmf.nano.prompts(here, 4)[2:]
    other = mmf.corruption.other_image(here, one, two.images[0])
    trace = {"min_clean": 0.0, "max_corrupt": float("inf"), **LOOSE}
    return {
        "flow": lambda: mmf.flow(graph, prompts, window=3, **LOOSE),
        "flow by forwards": lambda: mmf.flow(graph, one, ["image->last"], window=9, engine="forward", **LOOSE),
        "skip_flow": lambda: mmf.skip_flow(graph, prompts, ("image",), **LOOSE),
        "lens": lambda: mmf.lens(graph, prompts, **LOOSE),
        "word_overlap": lambda: mmf.word_overlap(graph, one, window=2, **UNTOLD),
        "contributions": lambda: mmf.contributions(graph, prompts, **UNTOLD),
        "causal_trace": lambda: mmf.causal_trace(graph, one, other, **trace),
        "causal_trace by noise": lambda: mmf.causal_trace(graph, one, mmf.corruption.noisy_image(one), **trace),
        "saliency": lambda: mmf.saliency(graph, prompts, **UNTOLD),
        "disruption": lambda: mmf.disruption(graph, prompts, layers=(1,), **UNTOLD),
        "attribution_patching": lambda: mmf.attribution_patching(graph, clean, corrupt, exact=0, **UNTOLD),
        "prune_report": lambda: mmf.prune_report(graph, prompts, [mmf.FastV(k=2)], max_new_tokens=2, timed=0, **UNTOLD),
        "kept_tokens": lambda: mmf.kept_tokens(graph, one, mmf.HiMAP(k1=2, k2=4)).layers,
        "edit": lambda: mmf.edit(graph, mmf.nano.edits(here, 1), layers=4, **UNTOLD),
        "edit_report": lambda: mmf.edit_report(
            graph, mmf.nano.edits(here, 1), answered, layers=4, fine_tuning=False, **UNTOLD
        ),
        "knockout_by_token": lambda: mmf.knockout_by_token(graph, one, **QUIET),
        "knockout_by_patch": lambda: mmf.knockout_by_patch(graph, one, size=4, window=3, **QUIET),
        "lens_by_patch": lambda: mmf.lens_by_patch(graph, one),
        "attention": lambda: mmf.attention(graph, one),
        "attention_and_effect": lambda: mmf.attention_and_effect(graph, one, "image", layers=[4], controls=0, **QUIET),
    }
