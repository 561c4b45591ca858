"""What has to work under any releases of the libraries: `python tests/smoke.py`, in half a minute, without pytest.

The conformance suite on nano and on one tiny model of each family, every kind of pattern in a generation with a cache
and without, every experiment on two prompts, a result saved and read again, a page and a figure, the README's lines.
Each step hands on its numbers: verdicts, logits, ids, frames. `--numbers FILE` writes them, and tests/matrix.py
compares them between environments. The last line is JSON: versions, what passed, and what failed with its words.
"""

import argparse
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
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
warnings.simplefilter("error", FutureWarning)  # of the newest libraries: met by their new way
README = Path(__file__).parent.parent / "README.md"
REFUSED: dict[str, str] = {}
TOLD: list[str] = []  # what transformers logs of names that go away

import pandas as pd  # noqa: E402
import torch  # noqa: E402
from kit.catalogue import LOOSE, UNTOLD, experiments, patterns, prompts  # noqa: E402
from kit.families import EAGER_ONLY, FAMILIES, QUESTION, family, refused_here  # noqa: E402
from kit.recorded import recorded  # noqa: E402
from kit.ten_lines import ten_lines  # noqa: E402
from kit.tiny import picture  # noqa: E402

import nnsight_mmflow as mmf  # noqa: E402
from nnsight_mmflow.runs.sweep import run_sweep  # noqa: E402

torch.set_num_threads(1)
SHOWN = (
    "python torch transformers nnsight transformer-lens numpy pandas pillow pyarrow matplotlib safetensors tqdm anyio"
    " jinja2 accelerate"
).split()
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
    return {line.name: line.outcome for line in report.lines}


def a_family(name):
    try:
        graph = family(name, "eager" if name in EAGER_ONLY else "sdpa")
    except mmf.ModelError as error:
        if name not in refused_here():
            raise
        REFUSED[name] = str(error)
        return None
    outcomes = conformance(graph)
    prompt = graph.prompt(picture(0), QUESTION)
    with torch.no_grad():
        ids = graph.adapter.model.generate(**prompt.inputs, **GREEDY)[0, -4:].tolist()
        logits = graph.adapter.model(**prompt.inputs).logits[0, -1]
    tokens = run_sweep(graph, None, prompt, len(prompt) - 1, 4, None)["tokens"]
    assert tokens == ids[: len(tokens)], f"the experiments' greedy answer is {tokens}, transformers' is {ids}"
    spans = str(prompt.spans).splitlines()
    return {
        "conformance": outcomes,
        "spans": spans,
        "boxes": prompt.spans["image"].boxes(),
        "ids": ids,
        "logits": logits,
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
    return {"ids": found[0]}


def around(nano, prompt, folder):
    """What is done with results: files, pages, figures, the command line."""
    file = f"{folder}/result"
    return {
        "a result saved": lambda: saved(mmf.flow(nano, prompt, window=3, **LOOSE), file),
        "a result read again": lambda: read_again(file),
        "attention, a page": lambda: a_page(mmf.attention(nano, prompt), folder),
        "times": lambda: mmf.prune_report(nano, [prompt], [mmf.FastV(k=2)], max_new_tokens=2, **UNTOLD),
        "the command line": lambda: run_command(folder),
        "README's lines": lambda: ten_lines(README),
    }


def saved(result, folder):
    result.save(folder)
    return result


def read_again(folder):
    result = mmf.results.FlowResult.load(folder)
    result.plot().savefig(f"{folder}/again.png")
    return result


def a_page(attention, folder):
    mmf.explore(attention, layer=4).save(f"{folder}/page.html")
    return {"weights": attention.weights[4], "received": attention.received}


def run_command(folder):
    from nnsight_mmflow.command_line import main

    assert main(["flow", "--window", "9", "--limit", "2", "--out", f"{folder}/command"]) == 0
    return pd.read_csv(f"{folder}/command/flow.csv")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", type=Path, help="a JSON file, written with what each step found")
    given = parser.parse_args()
    logging.getLogger("transformers").addHandler(Heard())
    nano = mmf.load("nano")
    asked = prompts(nano)
    steps = {"nano": partial(conformance, nano), **{name: partial(a_family, name) for name in chosen(FAMILIES)}}
    for name, pattern in patterns(asked[1]).items():
        steps[f"{name} in a generation"] = partial(generation, nano, asked[0], pattern)
    failed, numbers, before = {}, {}, time.time()
    with tempfile.TemporaryDirectory() as folder:
        steps |= experiments(nano, nano, asked) | around(nano, asked[0], folder)
        for name, step in steps.items():
            try:
                numbers[name] = recorded(step())
            except Exception as error:  # the next environment's table wants all of them
                traceback.print_exc()
                failed[name] = f"{type(error).__name__}: {error}"[:300]
    for told in dict.fromkeys(TOLD):
        failed[f"deprecated: {told[:60]}"] = told
    versions = {name: platform.python_version() if name == "python" else installed(name) for name in SHOWN}
    seconds = round(time.time() - before)
    told = {"versions": versions, "steps": len(steps), "failed": failed, "refused": REFUSED, "seconds": seconds}
    if given.numbers:
        given.numbers.write_text(json.dumps({name: found for name, found in numbers.items() if found is not None}))
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
