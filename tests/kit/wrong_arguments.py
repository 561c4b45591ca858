"""Every public function, and for each of its arguments what must be refused: one row per value."""

from __future__ import annotations

import numpy as np
import torch

import nnsight_mmflow as mmf

NAN, INF, HUGE = float("nan"), float("inf"), 10**12
ABOUT = {"progress": False, "report": str}
QUIET = {"progress": False}

# Kinds of values that no argument of the kind may be.
LAYERS = ["3", 3.5, [[1]], [True], True, [], [99], -99, "all", {1: 2}, np.array([[1]]), [1.0], [None], object()]
WINDOWS = [0, -1, "3", 2.5, True, [], [0], ["3"], [[3]], {3: 1}, NAN]
HEADS = [[-1], [99], "0", [], 1.5, [True], [[1]], -1, 99, {1: 2}]
SPAN = [None, 3, "", "photo", "image[9]", "text('zzz')", "image |", ["image"], b"image", True, "image.tile[0]", 2.5]
EDGES = [[], "image", "image->", "->last", [("a", "b")], [3], [None], "photo->last", {"a": 1}, 3, "a->b->c", [""]]
SPANS = [[], 3, [3], ["photo"], [""], [None], {"a": 1}, 2.5, True]
PROMPTS = [[], "text", ["text"], None, 3, [None], {"a": 1}, 2.5]
GRAPH = ["nano", None, 3, [], {}]
FOLDER = [3, b"x", ["x"], True, ""]
FLAG = ["no", None, 1, [], 0.0, "True"]
COUNT = [0, -1, 1.5, "3", True, None, [1], NAN, {}]
SEED = ["1", -1, 1.5, None, 2**70, True, NAN]
CALLED = ["x", 3, [str]]
CHOICE = ["foo", 3, "", ["x"], True, {}]
PLACE = [3, "", [], 2.5]
NUMBER = ["x", NAN, INF, [1], True]
TEXT = [3, ["red"], True, 2.5]
WORKERS = [-1, 1.5, "2", True, None, [1], {}]
GENERATED = [-1, 1.5, "3", True, None, [1], {}, HUGE]
QUIET_ARGUMENTS = {"progress": FLAG, "report": CALLED}
DRAWS = [-1, 1.5, "3", None, HUGE]
SCORES = ["last", "", 3, None, ["answer"], str, True]


def _closed(layer):
    return mmf.Knockout(source="image", target="last", layers=layer)


def calls(graph) -> dict:
    """name: (what runs it, {argument: wrong values})."""
    two = mmf.nano.prompts(graph, 2)
    one, batch = two[0], graph.batch(two)
    clean, corrupt = mmf.nano.trace_pairs(graph, 2, "flag")
    found = mmf.features(graph, mmf.nano.prompts(graph, 4), "last", [3], **ABOUT)
    fact, maps = mmf.nano.edits(graph, 1)[0], mmf.attention(graph, one, layers=[2, 3])
    single = ["x", None, 3, [one], batch]
    prompts, pairs, facts = [*PROMPTS, [one, 3]], ["x", None, [], [3], one, 3], ["x", None, 3, [], [3], one]
    short = mmf.EditSettings(steps=1)

    def with_base(run, **base):
        return lambda **wrong: run(**{**base, **wrong})

    def traced(pattern, **base):
        def run(**wrong):
            made = pattern(**{**base, **wrong})
            with torch.no_grad(), graph.trace(one, made):
                logits = graph.unembed.output.save()
            return logits

        return run

    def experiment(run, **base):
        return with_base(run, graph=graph, **base)

    place = {"graph": GRAPH, "remote": PLACE}
    run = place | {"folder": FOLDER, "workers": WORKERS, "blocking": FLAG, "progress": FLAG, "report": CALLED}
    return {
        "flow": (
            experiment(mmf.flow, prompts=one, edges=["image->last"], window=3, only_correct=False, **ABOUT),
            run
            | {"prompts": prompts, "edges": EDGES, "window": WINDOWS, "only_correct": FLAG, "row_budget": COUNT}
            | {
                "max_new_tokens": [count for count in (*COUNT, HUGE) if count is not None],
                "chunks_per_request": COUNT,
                "controls": [*DRAWS, True],
                "engine": CHOICE,
                "score": SCORES,
            },
        ),
        "sweep": (
            experiment(mmf.sweep, prompts=one, make=_closed, over=[3], only_correct=False, **ABOUT),
            run
            | {"prompts": prompts, "make": CALLED, "over": ["abc", 3, None, [], {}, {"prompt": [1]}, [1, 1]]}
            | {"score": SCORES, "only_correct": FLAG, "controls": [*DRAWS, True], "engine": CHOICE}
            | {"row_budget": COUNT, "max_new_tokens": [*COUNT, HUGE]},
        ),
        "accuracy": (
            experiment(mmf.accuracy, prompts=one, **ABOUT),
            run
            | {"prompts": prompts, "match": ["foo", 3, None, ["exact"], str]}
            | {"max_new_tokens": [count for count in (*COUNT, HUGE) if count is not None], "batch_size": COUNT},
        ),
        "lens": (
            experiment(mmf.lens, prompts=one, only_correct=False, **ABOUT),
            run
            | {"prompts": prompts, "at": SPAN, "norm": FLAG, "top": COUNT, "only_correct": FLAG}
            | {"max_new_tokens": COUNT, "generated": GENERATED},
        ),
        "skip_flow": (
            experiment(mmf.skip_flow, prompts=one, spans=["image"], only_correct=False, **ABOUT),
            run
            | {"prompts": prompts, "spans": SPANS, "window": WINDOWS, "scope": CHOICE, "part": CHOICE}
            | {"only_correct": FLAG, "score": SCORES},
        ),
        "causal_trace": (
            experiment(mmf.causal_trace, clean=clean[0], corrupt=corrupt[0], sites=["mlp"], **ABOUT),
            run
            | {"clean": prompts, "corrupt": pairs, "spans": SPANS, "sites": SPANS, "only_correct": FLAG}
            | {"window": [*WINDOWS, [3, 5]], "each_position": FLAG, "min_clean": ["x", NAN, None, True]}
            | {"max_corrupt": ["x", NAN, None], "controls": DRAWS, "same_answer": ["x", 3, [3]]}
            | {"engine": CHOICE, "row_budget": COUNT, "score": SCORES},
        ),
        "attribution_patching": (
            experiment(mmf.attribution_patching, clean=clean[0], corrupt=corrupt[0], exact=2, **ABOUT),
            run
            | {"clean": prompts, "corrupt": pairs, "spans": SPANS, "exact": ["x", -1, 1.5, True, None], "seed": SEED}
            | {"score": SCORES},
        ),
        "contributions": (
            experiment(mmf.contributions, prompts=one, **ABOUT),
            run | {"prompts": prompts, "source": SPAN, "target": SPAN, "heads": FLAG, "generated": GENERATED},
        ),
        "saliency": (
            experiment(mmf.saliency, prompts=one, **ABOUT),
            run | {"prompts": prompts, "mode": CHOICE, "heads_at_once": COUNT},
        ),
        "disruption": (
            experiment(mmf.disruption, prompts=one, layers=[3], ways=["img2txt"], **ABOUT),
            run | {"prompts": prompts, "ways": SPANS, "scope": CHOICE, "stage": CHOICE, "layers": LAYERS, "seed": SEED},
        ),
        "word_overlap": (
            experiment(mmf.word_overlap, prompts=one, window=3, at="last", **ABOUT),
            run | {"prompts": prompts, "at": SPAN, "window": WINDOWS, "top": COUNT},
        ),
        "knockout_by_patch": (
            experiment(mmf.knockout_by_patch, prompt=one, layers=[4], size=4, **ABOUT),
            run
            | {
                "prompt": single,
                "target": SPAN,
                "source": SPAN,
                "layers": LAYERS,
                "window": WINDOWS,
                "size": [*COUNT, 99],
            }
            | {"controls": DRAWS, "seed": SEED, "row_budget": COUNT, "score": SCORES},
        ),
        "lens_by_patch": (
            experiment(mmf.lens_by_patch, prompt=one, layers=[4], **ABOUT),
            run | {"prompt": single, "source": SPAN, "layers": LAYERS, "top": COUNT},
        ),
        "attention": (
            experiment(mmf.attention, prompt=one, layers=[4], target="last", **ABOUT),
            run
            | {
                "prompt": single,
                "layers": LAYERS,
                "source": SPAN,
                "target": SPAN,
                "heads": HEADS,
                "most_bytes": COUNT,
                "generated": GENERATED,
            },
        ),
        "attention_and_effect": (
            experiment(mmf.attention_and_effect, prompt=one, source="question", layers=[4], controls=1, **ABOUT),
            run
            | {"prompt": single, "source": SPAN, "target": SPAN, "layers": LAYERS, "seed": SEED}
            | {"controls": [*DRAWS, True]},
        ),
        "knockout_by_token": (
            experiment(mmf.knockout_by_token, prompt=one, **ABOUT),
            run | {"prompt": single, "source": SPAN, "target": SPAN, "window": WINDOWS},
        ),
        "prune_report": (
            experiment(
                mmf.prune_report,
                prompts=two,
                methods=[mmf.FastV(k=4)],
                controls=0,
                timed=0,
                max_new_tokens=1,
                **ABOUT,
            ),
            run
            | {"prompts": prompts, "controls": DRAWS, "max_new_tokens": COUNT, "batch_size": COUNT, "judge": CALLED}
            | {"timed": [*DRAWS, True], "generation": ["x", 3, [3], {"num_return_sequences": 2}]}
            | {
                "methods": [
                    [],
                    "fastv",
                    None,
                    3,
                    [3],
                    {"a": 3},
                    {3: mmf.FastV(k=4)},
                    [mmf.FastV],
                    [mmf.FastV(k=99)],
                    [mmf.HiMAP(k1=99, k2=100)],
                    [mmf.FastV(k=5, r=0.0)],
                    [mmf.Skip(layers=2)],
                ]
            },
        ),
        "kept_tokens": (
            experiment(mmf.kept_tokens, prompt=one, pattern=mmf.FastV(k=4), **ABOUT),
            run
            | {"prompt": single}
            | {"pattern": ["x", None, 3, mmf.FastV, mmf.Skip(layers=1), mmf.FastV(k=99), mmf.FastV(k=4, r=0.0)]},
        ),
        "edit": (
            experiment(mmf.edit, facts=fact, layers=4, settings=short, **ABOUT),
            run | {"facts": facts, "layers": LAYERS, "settings": ["x", None, 3, {}, mmf.EditSettings]},
        ),
        "edit_report": (
            experiment(mmf.edit_report, facts=[fact], others=two, layers=4, settings=short, fine_tuning=False, **ABOUT),
            run
            | {"facts": facts, "others": ["x", None, 3, [3]], "layers": LAYERS, "together": [*COUNT, 2]}
            | {"control_layers": ["x", 3.5, [99], [True], None], "fine_tuning": FLAG, "bound": [*NUMBER, 0, -1]}
            | {"settings": ["x", None, 3, {}]},
        ),
        "features": (
            experiment(mmf.features, prompts=one, at="last", layers=[3], **ABOUT),
            run
            | {"prompts": prompts, "at": SPAN, "layers": LAYERS, "site": CHOICE, "pool": CHOICE}
            | {"batch_size": [*COUNT, True]},
        ),
        "probe": (
            with_base(mmf.probe, features=found, labels=["a", "b"] * 2, folds=2, layers=[3], **ABOUT),
            {
                "features": ["x", None, 3, [3], one, graph],
                "labels": ["x", 3, ["a"], {"a": 1}, ["a"] * 4, [None] * 4],
                "types": ["x", 3, ["a"], {"a": 1}, [None] * 4, ["a"] * 4],
                "layers": LAYERS,
                "controls": [*DRAWS, True],
                "folds": [0, 1, -1, 3, "2", 1.5, True, None],
                "seed": SEED,
            }
            | QUIET_ARGUMENTS,
        ),
        "check": (experiment(mmf.check, **QUIET), {"graph": GRAPH, "progress": FLAG}),
        "flow on workers": (
            experiment(mmf.flow, prompts=one, workers=2, only_correct=False, **ABOUT),
            {
                "graph": GRAPH,
                "prompts": [*PROMPTS[1:]],
                "edges": EDGES[:-1],
                "remote": [*PLACE, True],
                "blocking": FLAG,
                "report": CALLED,
            },
        ),
        "Workers": (
            with_base(mmf.Workers, count=2),
            {"count": [0, -1, "2", 1.5, True, None], "address": [3, "", [], True]}
            | {"load": ["nano", 3, ["nano"], {3: "nano"}, {"dtype": "float16"}]},
        ),
        "graph.prompt": (
            with_base(graph.prompt, image=one.images[0], question="what color is the circle ?"),
            {"question": [None, 3, "", "  ", ["what"], b"x", True], "answer": TEXT, "template": [3, "foo", True]}
            | {"instruction": [3, True], "options": ["red", ["red"], ["a", "b", "c"], [1, 2], 3, {"a": 1}], "key": [3]}
            | {
                "boxes": [3, "x", [3], [[1, 2]], (1, 2, 3, 4), [["a"] * 4], [[NAN] * 4], [None]],
                "kind": [3],
                "image": [3, "no.png"],
            },
        ),
        "graph.batch": (with_base(graph.batch, prompts=two), {"prompts": PROMPTS}),
        "graph.attention": (with_base(graph.attention, layer=1), {"layer": [99, -99, "1", 1.5, True, None, [1]]}),
        "graph.trace": (
            lambda what: graph.trace(*what) if isinstance(what, tuple) else graph.trace(what),
            {
                "what": [
                    "x",
                    None,
                    3,
                    [one],
                    {},
                    (one, "x"),
                    (one, mmf.FastV),
                    (one, None),
                    (dict(one.inputs), mmf.Skip(layers=1)),
                ]
            },
        ),
        "on_image": (
            with_base(mmf.show.on_image, prompt=one, values=np.zeros(64)),
            {"prompt": ["x", None, 3, batch], "values": ["x", None, 3, [1, 2], np.zeros((2, 3)), {}, ["a"] * 64]}
            | {
                "image": [9, -1, "0", 1.5, True, None],
                "view": ["foo", 3],
                "label": [3, None],
                "titles": [3, ["a", "b"], []],
            }
            | {"signed": ["x", 3], "max_value": ["x", 0, -1, NAN, True]},
        ),
        "show_tokens": (
            with_base(mmf.show.tokens, prompt=one, values=[0.5] * 6),
            {"prompt": ["x", None, 3, batch], "values": ["x", None, 3, [1, 2], {}, [NAN] * 6, ["a"] * 6, {"a": 1}]}
            | {
                "at": SPAN,
                "label": [3, None],
                "layer": ["x", 1.5],
                "column": [3],
                "max_value": ["x", 0, -1, NAN, True, INF],
            },
        ),
        "show_attention": (
            with_base(mmf.show.attention, what=maps, layer=2),
            {
                "what": ["x", None, 3, one],
                "layer": [9, "2", 1.5, True, None],
                "by": ["foo", 3, None, {}, [1]],
                "heads": HEADS,
            }
            | {"max_value": ["x", 0, -1, NAN, True, INF], "prompt": ["x", 3]},
        ),
        "explore": (
            with_base(mmf.explore, what=maps),
            {"what": ["x", None, 3, one, np.zeros(3)], "layer": [9, "zz", 1.5, True], "layers": LAYERS, "heads": HEADS}
            | {
                "title": [3, None],
                "most_bytes": COUNT,
                "labels": [3, "x"],
                "words": [3, "x"],
                "prompt": ["x", 3],
                "column": [3],
            },
        ),
        "Knockout": (
            traced(mmf.Knockout, source="image", target="last", layers=[2]),
            {"source": SPAN, "target": SPAN, "layers": [*LAYERS, None], "heads": HEADS, "when": [*CHOICE, None]},
        ),
        "Bias": (
            traced(mmf.Bias, source="image", target="last", layers=[2], value=1.0),
            {"source": SPAN, "target": SPAN, "layers": [*LAYERS, None], "heads": HEADS, "when": [*CHOICE, None]}
            | {"value": [*NUMBER, None, 0, 0.0, -INF, [1.0], torch.zeros(3)]},
        ),
        "ZeroWeights": (
            traced(mmf.ZeroWeights, source="image", target="last", layers=[2]),
            {"source": SPAN, "target": SPAN, "layers": [*LAYERS, None]},
        ),
        "Patch": (
            traced(mmf.Patch, at="image", value=mmf.values.zeros(), layers=[2]),
            {"at": SPAN, "layers": [*LAYERS, None], "site": [*CHOICE, None], "heads": HEADS, "when": [*CHOICE, "all"]}
            | {"value": [None, 3, "x", [1], torch.zeros(3), torch.zeros(2, 7), mmf.Patch]},
        ),
        "Change": (
            traced(mmf.Change, at="image", value=torch.neg, layers=[2]),
            {"at": SPAN, "layers": [*LAYERS, None], "site": [*CHOICE, None], "heads": HEADS, "when": [*CHOICE, "all"]}
            | {
                "value": [
                    None,
                    3,
                    "x",
                    [1],
                    torch.zeros(3),
                    mmf.Patch,
                    mmf.values.zeros(),
                    lambda: 0,
                    lambda a, b, c: a,
                ]
            },
        ),
        "Add": (
            traced(mmf.Add, at="image", vector=torch.ones(graph.d_model), layers=[2]),
            {"at": SPAN, "layers": [*LAYERS, None], "site": [*CHOICE, None], "heads": HEADS, "when": [*CHOICE, "all"]}
            | {"vector": [None, 3, "x", [1], {}, {3: 1}, {"a": [1.0]}, torch.zeros(3), torch.ones(2, 128), [NAN] * 128]}
            | {"scale": [*NUMBER, None, 0]},
        ),
        "Scale": (
            traced(mmf.Scale, at="image", factor=0.5, layers=[2]),
            {"at": SPAN, "layers": [*LAYERS, None], "site": [*CHOICE, None], "heads": HEADS, "when": [*CHOICE, "all"]}
            | {"factor": [*NUMBER, None, 1]},
        ),
        "through": (
            with_base(mmf.values.through, encoder=torch.abs, decoder=torch.neg, edit=torch.neg),
            {"encoder": [None, 3, "x", torch.zeros(3), lambda a, b: a], "decoder": [None, 3, lambda: 0]}
            | {"edit": [None, 3, "x", mmf.values.noise(1.0), lambda a, b, c: a], "error": FLAG}
            | {"features": [[], "x", -1, [1.5], [True], {}]},
        ),
        "Skip": (
            traced(mmf.Skip, layers=[2]),
            {"at": SPAN[1:], "layers": [*LAYERS, None], "part": [*CHOICE, None]},
        ),
        "FastV": (
            traced(mmf.FastV, k=4),
            {
                "k": [99, -1, "4", 1.5, True, None, 0],
                "r": [*NUMBER, 2, -1, None, 0.0],
                "rank": CHOICE,
                "mode": [*CHOICE, None],
            }
            | {"positions": CHOICE},
        ),
        "HiMAP": (
            traced(mmf.HiMAP, k1=2, k2=4),
            {
                "k1": [99, -1, "4", 4, 5],
                "k2": [99, 2, "4", 1.5],
                "r1": [*NUMBER, 2],
                "r2": [*NUMBER, -1],
                "deep": CHOICE,
            },
        ),
        "PyramidDrop": (
            traced(mmf.PyramidDrop, layers=(2, 4), keep=(0.5, 0.2)),
            {"layers": [[], 3, "34", (4, 2), (2, 99), (2,), [[1]], [True, 2], 2.5]}
            | {"keep": [[], 0.5, "x", (0.5, NAN), (2, 0.1), ("a", "b"), (0.5, INF), None]},
        ),
        "SparseVLM": (
            traced(mmf.prune.SparseVLM, layers=(2, 4), keep=(0.5, 0.2)),
            {"layers": [[], 3, (4, 2), (2, 99)], "keep": [[], 0.5, "x", (0.5, NAN)], "recycle": FLAG},
        ),
        "VisionZip": (
            traced(mmf.prune.VisionZip, dominant=10, contextual=2),
            {"dominant": [0, 1, -1, "x", 1.5, 999, None], "contextual": [0, -1, "x", 1.5, 999, True]},
        ),
        "FasterVLM": (traced(mmf.prune.FasterVLM), {"r": [*NUMBER, 2, -1]}),
        "VisiPruner": (
            traced(mmf.prune.VisiPruner),
            {"first_layer": ["x", 99, -1, 1.5], "fires_below": NUMBER, "keep_above": NUMBER, "calm_above": NUMBER}
            | {"calm_layers": ["x", -1, 1.5]},
        ),
        "DropAll": (traced(mmf.DropAll), {"from_layer": ["x", 99, -1, 1.5, None, True]}),
        "Keep": (
            traced(mmf.prune.Keep, at="image", from_layer=3),
            {"at": ["photo", 3, "", None, ["image"]], "from_layer": ["x", 99, -1]},
        ),
        "Random": (traced(mmf.Random), {"k": [99, "x", -1], "r": NUMBER, "seed": SEED}),
        "Grid": (traced(mmf.prune.Grid), {"k": [99, "x", -1], "r": NUMBER}),
        "Prune": (traced(mmf.prune.Prune), {"own": [[], 3, "x", [3], *map(lambda stage: [stage], stages())]}),
        "replace_phrase": (
            experiment(mmf.corruption.replace_phrase, prompt=clean[0], constraint="this place", phrase="place oberon"),
            {
                "graph": GRAPH,
                "prompt": ["x", None, 3, batch],
                "constraint": ["zzz", "", 3, None],
                "phrase": ["", 3, None, "umbrella"],
            },
        ),
        "repeat_token": (
            experiment(mmf.corruption.repeat_token, prompt=clean[0], constraint="this place", word="red"),
            {"graph": GRAPH, "constraint": ["zzz", "", 3], "word": ["", 3, "umbrella", None]},
        ),
        "other_image": (
            experiment(mmf.corruption.other_image, prompt=one, image=two[1].images[0]),
            {"prompt": ["x", None, 3], "image": [3, "nosuch.png", None, []], "how": [3]},
        ),
        "blank_image": (
            experiment(mmf.corruption.blank_image, prompt=one),
            {"color": ["x", 3, (1, 2), (1, 2, 300), (NAN, 0, 0), None, (-1, 0, 0), (1.5, 0, 0)]},
        ),
        "masked_box": (
            experiment(mmf.corruption.masked_box, prompt=one, boxes=[(0, 0, 8, 8)]),
            {
                "boxes": [[], 3, "x", [(1, 2)], (1, 2, 3, 4), [("a",) * 4], [(8, 8, 0, 0)], [(NAN,) * 4]],
                "color": ["x", (1, 2)],
            },
        ),
        "noisy_image": (
            with_base(mmf.corruption.noisy_image, prompt=one),
            {"prompt": ["x", None, 3], "scale": NUMBER, "seed": SEED},
        ),
        "from_run": (
            with_base(mmf.values.from_run, prompt=one),
            {"prompt": ["x", None, 3, [one]], "at": [3, ["image"]]},
        ),
        "mean_of": (with_base(mmf.values.mean_of, prompts=two), {"prompts": ["x", None, 3, [3]], "at": [3, ["image"]]}),
        "noise": (with_base(mmf.values.noise, scale=1.0), {"scale": [*NUMBER, None], "seed": SEED}),
        "Fact": (
            with_base(mmf.Fact, prompt=one, target="red", at="question"),
            {"prompt": ["x", None, batch, 3], "target": ["", 3, None, "  "], "at": [3, None, ["image"]]}
            | {"same": [3, "x", {"a": 3}, {3: [one]}, {"a": ["x"]}, None]},
        ),
        "EditSettings": (
            mmf.EditSettings,
            {"learning_rate": [*NUMBER, 0, -1, None], "steps": ["x", 0, 1.5, None, True], "stop_at": ["x", 2, -1, NAN]}
            | {
                "clip": ["x", 0, NAN, -1],
                "norm_penalty": ["x", -1, NAN],
                "regulariser": ["x", 0, -1, INF],
                "first_token": FLAG,
            },
        ),
        "nano.samples": (
            with_base(mmf.nano.samples, n=1),
            {"n": [0, -1, "x", 1.5, 10**9, True, None], "kinds": ["foo", 3, ["foo"], []]},
        ),
        "nano.trace_pairs": (
            experiment(mmf.nano.trace_pairs, n=2, way="flag"),
            {"n": [0, -1, "x", 10**9], "way": ["foo", 3], "constraints": [0, 3, "x", True]},
        ),
        "nano.edits": (experiment(mmf.nano.edits, n=1), {"n": [0, -1, "x", 10**9], "seed": SEED}),
        "mmf.load": (
            mmf.load,
            {"name": [3, None, "", "/no/such/folder", "no/such", b"nano", ["nano"], "a/b/c"]},
        ),
        "mmf.load nano": (
            with_base(mmf.load, name="nano"),
            {
                "dtype": ["float99", 3, "nn", True],
                "device": ["cuda", "gpu", 0, "cuda:7"],
                "device_map": ["cuda", "nowhere"],
            }
            | {"remote": PLACE, "processor": ["x", 3, graph.processor.tokenizer, graph.processor.image_processor]}
            | {"attn_implementation": ["fast"], "nosuch": [1]},
        ),
        "mmf.adapt": (
            with_base(mmf.adapt, model=graph.model, processor=graph.processor),
            {
                "model": ["nano", None, 3, torch.nn.Linear(2, 2), graph],
                "processor": ["x", 3, graph.processor.tokenizer],
            },
        ),
    }


def stages() -> list[mmf.prune.Stage]:
    """Stages whose layer, share or ranking is none."""
    return [
        mmf.prune.Stage(2, 0.5, lambda seen: torch.full((len(seen.image),), NAN)),
        mmf.prune.Stage(2, 0.5, lambda seen: torch.full((len(seen.image),), INF)),
        mmf.prune.Stage(2, 0.5, lambda seen: [1]),
        mmf.prune.Stage(2, 0.5, lambda seen: None),
        mmf.prune.Stage(2, 0.5, lambda seen: torch.zeros(3)),
        mmf.prune.Stage(2, 0.5, lambda seen: (torch.ones(len(seen.image)), torch.zeros(3))),
        mmf.prune.Stage(2, 0.5, lambda seen: torch.zeros(len(seen.image)), "foo"),
        *(mmf.prune.Stage(layer, 0.5, len) for layer in ("x", 1.5, True, 99, -1, None)),
        *(mmf.prune.Stage(2, keep, len) for keep in ("x", NAN, -1, 1.5, None, True)),
        mmf.prune.Stage(2, 0.5, 3),
    ]


def result_calls(graph) -> dict:
    """The same for the methods of results, spans and graphs; a lone argument is called `what`."""
    two = mmf.nano.prompts(graph, 2)
    one, batch = two[0], graph.batch(two)
    clean, corrupt = mmf.nano.trace_pairs(graph, 2, "flag")
    flow = mmf.flow(graph, two, ["image->last"], 3, only_correct=False, **ABOUT)
    taken, flows = mmf.contributions(graph, two, **QUIET), mmf.saliency(graph, two, **QUIET)
    traced = mmf.causal_trace(graph, clean, corrupt, ["last"], ["mlp"], **ABOUT)
    skipped = mmf.skip_flow(graph, two, ["image"], only_correct=False, **ABOUT)
    maps = mmf.attention(graph, one, layers=[2])
    patches = mmf.knockout_by_patch(graph, one, size=4, layers=[4], **QUIET)
    words = mmf.lens_by_patch(graph, one, layers=[4])
    kept = mmf.kept_tokens(graph, one, mmf.FastV(k=4))
    edited = mmf.edit(graph, mmf.nano.edits(graph, 1)[0], 4, settings=mmf.EditSettings(steps=2), **ABOUT)
    estimated = mmf.attribution_patching(graph, clean, corrupt, ["last"], exact=2, **QUIET)
    effect = mmf.attention_and_effect(graph, one, "question", layers=[3], controls=0, **QUIET)
    image, closed = one.spans["image"], mmf.Knockout(source="image", target="last", layers=1)
    largest, prompts = [0, -1, "3", 1.5, None, True, NAN], ["x", None, [3], 3]
    layer, single = [99, -11, "2", 1.5, True, [99], ["a"], []], ["x", None, batch, 3]
    window, place = [99, "3", 1.5, [3], True], {"image": [9, "0", None, -1, 1.5], "view": ["foo", 3]}

    def based(run, **base):
        return lambda **wrong: run(**{**base, **wrong})

    look = {
        "ax": ["x", 3, []],
        "figsize": [3, "large", (1,), (0, 2), (1, "2")],
        "rows": ["nobody", 3, [], [3]],
        "colors": [3, {"nobody": "red"}, "no colours"],
        "labels": [3, "one", {"nobody": "x"}, {3: "x"}],
    }
    return {
        "flow.plot": (flow.plot, {**look, "edges": ["image->last", "nobody", 3, [], ["image->nobody"]][1:]}),
        "maps.plot": (maps.plot, look),
        "patches.plot look": (patches.plot, look),
        "maps.token": (maps.token, {"index": [0, -1, "0", 1.5, None]}),
        "contributions.token": (taken.token, {"index": [0, -1, "0", 1.5, None]}),
        "flow.curves": (flow.curves, {"window": window}),
        "flow.controls": (flow.controls, {"window": window}),
        "flow.arrows": (flow.arrows, {"window": window, "threshold": ["x", NAN, True, [1]]}),
        "flow.diagram": (flow.diagram, {"window": window, "threshold": ["x", NAN]}),
        "contributions.top": (taken.top, {"k": largest}),
        "contributions.concentration": (taken.concentration, {"k": largest}),
        "contributions.overlap": (taken.overlap, {"k": largest}),
        "contributions.knock_out": (
            based(taken.knock_out, graph=graph, prompts=two, k=2),
            {"k": largest, "graph": GRAPH, "prompts": prompts, "seed": SEED},
        ),
        "contributions.position_control": (
            based(taken.position_control, graph=graph, prompts=two),
            {"graph": GRAPH, "prompts": prompts, "seed": SEED},
        ),
        "contributions.correctness": (taken.correctness, {"layers": [99, -11, "2", 1.5, True, [99], ["a"]]}),
        "contributions.on_image": (based(taken.on_image, prompt=one), {"prompt": single, "layer": layer, **place}),
        "saliency.curves": (flows.curves, {"names": ["foo", 3, ["foo"], []], "normalise": FLAG}),
        "saliency.on_image": (based(flows.on_image, prompt=one), {"prompt": single, "layer": layer, **place}),
        "trace.map": (traced.map, {"quantity": CHOICE}),
        "trace.plot": (traced.plot, {"quantity": CHOICE}),
        "trace.caption": (traced.caption, {"quantity": CHOICE}),
        "skip.needless_from": (based(skipped.needless_from, span="image"), {"span": ["foo", 3, None], "loss": NUMBER}),
        "maps.at": (maps.at, {"layer": [99, "2", 1.5, None, [2], True]}),
        "maps.sinks": (based(maps.sinks, layer=2), {"layer": [99, "2", None], "times": [*NUMBER, None]}),
        "maps.by_span": (based(maps.by_span), {"rows": ["foo", 3, None, {}, []], "columns": ["foo", 3, {}]}),
        "patches.plot": (patches.plot, {"prompt": ["x", batch, 3], **place}),
        "words.plot": (words.plot, {"prompt": ["x", batch, 3], "layer": [99, "4", 1.5, True], **place}),
        "kept.on_image": (kept.on_image, {"by_layer": FLAG, **place}),
        "edit.bleed": (based(edited.bleed, prompts=two), {"prompts": [*prompts, []], "at": SPAN}),
        "attribution.top": (estimated.top, {"k": largest}),
        "effect.beside": (effect.beside, {"layer": [99, "3", None, 1.5]}),
        "spans[]": (
            lambda what: one.spans[what],
            {"what": [3, None, "", b"x", ["image"], ("image",), image, 1.5, True]},
        ),
        "spans.text": (
            based(one.spans.text, substring="color"),
            {"substring": [3, None, "", "zzz"], "index": ["0", 1.5, 9, -1, True], "match": ["foo", 3, None]},
        ),
        "spans.having": (
            lambda what: one.spans.having(a=what),
            {"what": [3, "umbrella", None, [], (1, 2, 3), np.zeros((4, 4), bool), {7: (0, 0, 9, 9)}, True]},
        ),
        "span[]": (lambda what: image[what], {"what": [9, -1, "0", None, 1.5, slice(0, 1), True]}),
        "span.box": (
            lambda what: image.box(what),
            {"what": [3, None, "x", (1, 2), ("a",) * 4, (NAN,) * 4, (8, 8, 0, 0), (500, 500, 600, 600)]},
        ),
        "span.part": (lambda what: image.part(what, "some"), {"what": [3, None, [999], ["a"], [1.5], [-1], "x"]}),
        "graph.mlp": (graph.mlp, {"layer": [99, "1", None, 1.5, True]}),
        "graph.joining": (based(graph.joining, layer=1, site="attn"), {"site": ["foo", 3, None], "layer": [99, "1"]}),
        "graph.at": (lambda what: graph.at(what), {"what": [3, "", []]}),
        "graph.bound": (lambda what: graph.bound(what, one), {"what": ["x", None, graph]}),
        "graph.hooks": (lambda what: graph.hooks(what, one).__enter__(), {"what": ["x", None, graph]}),
        "apply": (lambda what: closed.apply(graph, what), {"what": ["x", None, one, [], ()]}),
        "apply to": (lambda what: closed.apply(what, one.spans), {"what": ["x", None, 3]}),
        "cache_by_span": (lambda what: mmf.bridge.cache_by_span(what, one), {"what": ["x", None, {}, {"a": 3}]}),
        "patch_by_span": (
            lambda what: mmf.bridge.patch_by_span(what, {}, lambda logits: logits.sum()),
            {"what": ["x", None, graph, one]},
        ),
        "attribution_by_span": (
            lambda what: mmf.bridge.attribution_by_span(what, what, lambda logits: logits.sum()),
            {"what": ["x", None, graph, one]},
        ),
        "budget": (lambda what: mmf.FastV(k=4).budget(graph, what), {"what": ["x", -1, None, 1.5, 0]}),
        "prompts_of": (
            based(mmf.data.prompts_of, graph=graph, questions=[]),
            {"graph": GRAPH, "questions": ["x", None, 3, [3]]},
        ),
        "write": (lambda what: mmf.data.write_constraint_questions(what, "/dev/null"), {"what": ["x", None, 3, [3]]}),
    }
