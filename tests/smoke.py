"""What has to work under any releases of the libraries: `python tests/smoke.py`, in about a minute, without pytest.

The conformance suite on nano and on one tiny model of each family, every kind of pattern in a generation with a cache
and without, every experiment on two prompts, a result saved and read again, a page and a figure. tests/matrix.py runs
it in one environment after another. The last line is JSON: versions, what passed, and what failed with its words.
"""

import json
import logging
import os
import platform
import sys
import tempfile
import time
import traceback
import warnings
from functools import partial
from importlib.metadata import version

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
warnings.simplefilter("error", FutureWarning)  # of the newest libraries: met by their new way
MAY_BE_REFUSED = ("paligemma2",)  # whose final logits older releases do not cap
REFUSED: dict[str, str] = {}
TOLD: list[str] = []  # what transformers logs of names that go away

import torch  # noqa: E402
from families import EAGER_ONLY, FAMILIES, QUESTION, family  # noqa: E402
from tiny import picture  # noqa: E402

import nnsight_mmflow as mmf  # noqa: E402
from nnsight_mmflow.runs.sweep import run_clean  # noqa: E402

torch.set_num_threads(1)
SHOWN = (
    "python torch transformers nnsight transformer-lens numpy pandas pillow pyarrow matplotlib safetensors tqdm anyio"
    " jinja2 accelerate"
).split()
QUIET = {"progress": False}
TOLDLESS = {"progress": False, "report": str}
LOOSE = {"only_correct": False, **TOLDLESS}
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


class Heard(logging.Handler):
    """Keeps what transformers says is deprecated."""

    def emit(self, record: logging.LogRecord) -> None:
        if "deprecated" in record.getMessage():
            TOLD.append(record.getMessage())


def conformance(graph):
    report = mmf.check(graph, progress=False)
    wrong = [f"{line.name}: {line.detail}" for line in report.lines if line.outcome == "fail"]
    assert not wrong, "; ".join(wrong)


def a_family(name):
    try:
        graph = family(name, "eager" if name in EAGER_ONLY else "sdpa")
    except mmf.ModelError as error:
        if name not in MAY_BE_REFUSED:
            raise
        REFUSED[name] = str(error)
        return
    conformance(graph)
    prompt = graph.prompt(picture(0), QUESTION)
    with torch.no_grad():
        ids = graph.adapter.model.generate(**prompt.inputs, **GREEDY)[0, -4:].tolist()
    found = run_clean(graph, prompt, len(prompt) - 1, 4).tokens
    assert found == ids[: len(found)], f"the experiments' greedy answer is {found}, transformers' is {ids}"


def patterns(nano, other):
    edges = {"source": "image", "target": "question | last", "layers": (1, 2)}
    return {
        **{f"Knockout {when}": mmf.Knockout(**edges, when=when) for when in ("prefill", "decode", "all")},
        "ZeroWeights": mmf.ZeroWeights(**edges),
        "Patch": mmf.Patch(at="image", layers=1, value=mmf.values.from_run(other)),
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
        "DropAll": mmf.DropAll(from_layer=3),
    }


def written(graph, prompt, pattern, **settings):
    with torch.no_grad(), graph.generate(prompt, pattern, **GREEDY, **settings) as tracer:
        ids = tracer.result.save()
    return ids[:, -4:].tolist()


def generation(graph, prompt, pattern):
    ways = ({}, {"use_cache": False}, {"cache_implementation": "static"})
    dropping = getattr(pattern, "mode", "") == "drop"
    found = [written(graph, prompt, pattern, **way) for way in ways[: 2 if dropping else 3]]
    assert all(one == found[0] for one in found), f"other tokens without a cache, or with a static one: {found}"


def experiments(nano, prompts, folder):
    one, two = prompts
    pairs = mmf.nano.trace_pairs(nano, 2, "flag")
    corrupt = mmf.corruption.other_image(nano, one, two.images[0])
    trace = {"min_clean": 0.0, "max_corrupt": float("inf"), **LOOSE}
    return {
        "flow": lambda: mmf.flow(nano, prompts, window=3, **LOOSE).save(folder),
        "a result read again": lambda: mmf.results.FlowResult.load(folder).plot().savefig(f"{folder}/again.png"),
        "flow by forwards": lambda: mmf.flow(nano, one, ["image->last"], window=9, engine="forward", **LOOSE),
        "skip_flow": lambda: mmf.skip_flow(nano, prompts, ("image",), **LOOSE),
        "lens": lambda: mmf.lens(nano, prompts, **LOOSE),
        "word_overlap": lambda: mmf.word_overlap(nano, one, window=2, **TOLDLESS),
        "contributions": lambda: mmf.contributions(nano, prompts, **TOLDLESS),
        "causal_trace": lambda: mmf.causal_trace(nano, one, corrupt, **trace),
        "saliency": lambda: mmf.saliency(nano, prompts, **TOLDLESS),
        "disruption": lambda: mmf.disruption(nano, prompts, layers=(1,), **TOLDLESS),
        "attribution": lambda: mmf.attribution_patching(nano, *pairs, exact=0, **TOLDLESS),
        "prune_report": lambda: mmf.prune_report(nano, prompts, [mmf.FastV(k=2)], max_new_tokens=2, **TOLDLESS),
        "kept_tokens": lambda: mmf.kept_tokens(nano, one, mmf.HiMAP(k1=2, k2=4)),
        "edit": lambda: mmf.edit(nano, mmf.nano.edits(nano, 1), layers=4, **TOLDLESS),
        "knockout_by_token": lambda: mmf.knockout_by_token(nano, one, **QUIET),
        "knockout_by_patch": lambda: mmf.knockout_by_patch(nano, one, size=4, window=3, **QUIET),
        "lens_by_patch": lambda: mmf.lens_by_patch(nano, one),
        "attention, a page": lambda: mmf.explore(mmf.attention(nano, one), layer=4).save(f"{folder}/page.html"),
        "attention_and_effect": lambda: mmf.attention_and_effect(nano, one, "image", layers=[4], controls=0, **QUIET),
        "the command line": lambda: run_command(folder),
    }


def run_command(folder):
    from nnsight_mmflow.command_line import main

    assert main(["flow", "--window", "9", "--limit", "2", "--out", f"{folder}/command"]) == 0


def main():
    logging.getLogger("transformers").addHandler(Heard())
    nano = mmf.load("nano")
    prompts = mmf.nano.prompts(nano, 2)
    steps = {"nano": partial(conformance, nano), **{name: partial(a_family, name) for name in chosen(FAMILIES)}}
    for name, pattern in patterns(nano, prompts[1]).items():
        steps[f"{name} in a generation"] = partial(generation, nano, prompts[0], pattern)
    failed, before = {}, time.time()
    with tempfile.TemporaryDirectory() as folder:
        steps |= experiments(nano, prompts, folder)
        for name, step in steps.items():
            try:
                step()
            except Exception as error:  # the next environment's table wants all of them
                traceback.print_exc()
                failed[name] = f"{type(error).__name__}: {error}"[:300]
    for told in dict.fromkeys(TOLD):
        failed[f"deprecated: {told[:60]}"] = told
    versions = {name: platform.python_version() if name == "python" else installed(name) for name in SHOWN}
    seconds = round(time.time() - before)
    told = {"versions": versions, "steps": len(steps), "failed": failed, "refused": REFUSED, "seconds": seconds}
    print(json.dumps(told))
    return 1 if failed else 0


def chosen(families):
    """One tiny model a family: the first of each class."""
    by_class = {}
    for name in families:
        by_class.setdefault(name.split("_siglip")[0].removesuffix("_pixtral"), name)
    return [name for name in by_class.values() if not name.endswith(("_strips", "_shrunk", "_undivided", "_scan"))]


def installed(name):
    try:
        return version(name)
    except ModuleNotFoundError:
        return "-"


if __name__ == "__main__":
    sys.exit(main())
