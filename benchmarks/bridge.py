"""TransformerLens over the same weights: peak memory and seconds of a bridge's runs, each in a process of its own.

Run: python benchmarks/bridge.py [--shape small|7b] [--layers N] [--threads 2] [--json FILE]

`--layers 1 --shape 7b` is one LLaVA-1.5-7B-shaped layer: its attention map alone is 32 heads of 636 by 636.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from dataclasses import replace

from processes import each_in_a_process

WHAT = (
    "model",
    "model and bridge",
    "nnsight forward (sdpa)",
    "bridge forward",
    "bridge forward, knockout",
    "cache of patterns",
    "span cache of patterns",
    "cache of all",
    "span cache of all",
)


def one(given: argparse.Namespace) -> None:
    """Prints the peak size of this process in MB, the median seconds, and how many MB are held."""
    import numpy as np
    import torch
    from shapes import SHAPES, build, question
    from transformer_lens.model_bridge.sources import _bridge_builder  # noqa: F401, its code is not the bridge's memory

    import nnsight_mmflow as mmf

    torch.set_num_threads(given.threads)
    shape = SHAPES[given.shape]
    if given.layers:
        shape = replace(shape, layers=given.layers, tower_layers=2, tower_width=64)
    model, processor = build(shape, torch.float32, "cpu")
    graph = mmf.adapt(model, processor)
    image = np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    prompt = graph.prompt(image, question())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    bound = (
        None if given.only in ("model", "nnsight forward (sdpa)") else graph.bound(graph.to_transformer_lens(), prompt)
    )
    blocked = mmf.Knockout(source="image", target="last", layers=range(graph.n_layers))
    times, held = [], None
    for _ in range(0 if given.only in WHAT[:2] else given.repeats + 1):
        held = None
        started = time.perf_counter()
        with torch.no_grad():
            held = run(given.only, graph, prompt, bound, blocked)
        times.append(time.perf_counter() - started)
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    storages = {} if held is None else {part.untyped_storage().data_ptr(): part for part in held}
    found = {
        "peak_mb": size,
        "peak_before_mb": before,
        "seconds": statistics.median(times[1:]) if times else 0.0,
        "held_mb": sum(part.untyped_storage().nbytes() for part in storages.values()) / 1e6,
    }
    print(json.dumps(found))


def run(what: str, graph, prompt, bound, blocked) -> list | None:
    """What is measured; returns the activations that are held."""
    if what == "nnsight forward (sdpa)":
        with graph.trace(prompt, use_cache=False):
            logits = graph.model.output.logits.save()
        return [logits]
    if what == "bridge forward":
        return [bound()]
    if what == "bridge forward, knockout":
        with graph.hooks(bound.bridge, prompt, blocked) as again:
            return [again()]
    patterns = (
        (lambda name: name.endswith("hook_pattern") and name.startswith("blocks")) if "patterns" in what else None
    )
    if what.startswith("cache"):
        return list(bound.run_with_cache(names_filter=patterns)[1].cache_dict.values())
    return list(bound.run_with_span_cache(patterns)[1].values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="small")
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=WHAT)
    parser.add_argument("--json")
    given = parser.parse_args()
    if given.only:
        one(given)
        return
    found = each_in_a_process(__file__, WHAT)
    base, plain = found["model and bridge"]["peak_mb"], found["bridge forward"]
    model = found["model"]
    model["growth_by_bridge"] = base / model["peak_mb"] - 1
    for row in found.values():
        row["peak_beside_model_mb"] = row["peak_mb"] - base
        row["seconds_ratio"] = row["seconds"] / plain["seconds"]
    print(json.dumps({"date": time.strftime("%Y-%m-%d"), **vars(given), **found}, indent=2))
    if given.json:
        with open(given.json, "w") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
