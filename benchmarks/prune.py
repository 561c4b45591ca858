"""Pruning: prefill, decode and ranking times of HiMAP, FastV and their controls against the unpruned model.

Run: python benchmarks/prune.py [--shape small|7b|13b] [--device cuda --dtype float16 --batch 8] [--shared] [--json
FILE]

576 image tokens and 170 others, as in the paper. `--shared` lets all layers use one layer's weights: as much computing
in a fraction of the memory. The vision tower is made small, so that the times are the decoder's. All is timed in one
process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace

import numpy as np
import torch
from shapes import SHAPES, build

import nnsight_mmflow as mmf
from nnsight_mmflow.runs.costs import DecoderSize, cache_bytes, paper_flops, real_flops, tokens_per_layer
from nnsight_mmflow.runs.results import versions

BEFORE, AFTER, IMAGE = 35, 135, 576
METHODS = {
    "unpruned": None,
    "FastV 2/50": mmf.FastV(k=2, r=0.5),
    "HiMAP-8": mmf.HiMAP(),
    "HiMAP-15": mmf.HiMAP(k2=15),
    "random as HiMAP-8": mmf.prune.Prune(),  # filled in below: the same schedule without ranking
    "HiMAP-8, mask": mmf.HiMAP(mode="mask"),
}


def unranked(pattern: mmf.prune.Prune, graph: mmf.Graph) -> mmf.prune.Prune:
    """The same schedule, ranked by nothing: what is left of the cost is dropping alone."""
    stages = [
        mmf.prune.Stage(layer=one.layer, keep=one.keep, rank=_first, reads="") for one in pattern.stages(graph, IMAGE)
    ]
    return mmf.prune.Prune(own=stages)


def _first(seen: mmf.prune.Seen) -> torch.Tensor:
    return -torch.arange(len(seen.image), dtype=torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--decode", type=int, default=0, help="also time so many steps after the first token")
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shape = replace(SHAPES[given.shape], tower_layers=2, tower_width=64)
    model, processor = build(
        replace(shape, layers=1) if given.shared else shape, getattr(torch, given.dtype), given.device
    )
    if given.shared:
        share_layers(model, shape.layers)
    graph = mmf.adapt(model, processor)
    image = np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    text = " ".join([*(f"w{i}" for i in range(BEFORE)), "<image>", *(f"w{100 + i}" for i in range(AFTER))])
    prompt = graph.prompt(image, text, raw=True)
    assert (len(prompt), len(prompt.spans["image"])) == (BEFORE + IMAGE + AFTER, IMAGE)
    asked = prompt if given.batch == 1 else graph.batch([prompt] * given.batch)
    methods = {**METHODS, "random as HiMAP-8": unranked(mmf.HiMAP(), graph)}
    prefill: dict[str, list[float]] = {name: [] for name in methods}
    decode: dict[str, list[float]] = {name: [] for name in methods}
    memory: dict[str, float] = {}
    for repeat in range(given.repeats + 1):  # in turns, so that what else the machine does hits all of them
        for name, pattern in methods.items():
            if given.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            first = timed(graph, asked, pattern, 1, given.device)
            many = timed(graph, asked, pattern, 1 + given.decode, given.device) if given.decode else first
            if repeat:
                prefill[name].append(first)
                decode[name].append((many - first) / max(1, given.decode))
            if given.device == "cuda":
                memory[name] = torch.cuda.max_memory_allocated() / 1e9
    size, whole = DecoderSize.of(graph), [len(prompt)] * graph.n_layers
    plain, rows = statistics.median(prefill["unpruned"]), {}
    for name, pattern in methods.items():
        stages = [] if pattern is None else pattern.stages(graph, IMAGE)
        image_tokens = tokens_per_layer(stages, IMAGE, graph.n_layers)
        positions = [n + BEFORE + AFTER for n in image_tokens]
        rows[name] = {
            "prefill_seconds": statistics.median(prefill[name]),
            "prefill_ratio": statistics.median(prefill[name]) / plain,
            "paper_flops_ratio": paper_flops(positions, size) / paper_flops(whole, size),
            "roofline_ratio": real_flops(positions, size) / real_flops(whole, size),
            "cache_ratio": cache_bytes(positions, size) / cache_bytes(whole, size),
            "image_tokens_per_layer": sum(image_tokens) / graph.n_layers,
        }
        if given.decode:
            rows[name]["decode_ms"] = statistics.median(decode[name]) * 1e3
        if memory:
            rows[name]["peak_gb"] = memory[name]
    ranking = statistics.median(prefill["HiMAP-8"]) - statistics.median(prefill["random as HiMAP-8"])
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "shape": given.shape + (" (all layers on one layer's weights)" if given.shared else ""),
        "dtype": given.dtype,
        "device": torch.cuda.get_device_name() if given.device == "cuda" else given.device,
        "batch": given.batch,
        "threads": given.threads,
        "methods": rows,
        "ranking_share_of_prefill": ranking / plain,
        "versions": versions(),
    }
    print(json.dumps(found, indent=2))
    if given.json:
        with open(given.json, "w") as file:
            json.dump(found, file, indent=2)


def timed(
    graph: mmf.Graph, asked: mmf.Prompt | mmf.Batch, pattern: mmf.prune.Prune | None, tokens: int, device: str
) -> float:
    """Seconds of a generation of so many tokens."""
    patterns = () if pattern is None else (pattern,)
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    with (
        torch.no_grad(),
        graph.generate(asked, *patterns, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False) as tracer,
    ):
        ids = tracer.result.save()
    assert ids.shape[1] >= tokens
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def share_layers(model: torch.nn.Module, count: int) -> None:
    """Gives the decoder so many layers, all on the weights of its first."""
    import copy

    decoder = model.get_decoder()
    first = decoder.layers[0]
    shared = {id(tensor): tensor for tensor in [*first.parameters(), *first.buffers()]}
    for number in range(1, count):
        layer = copy.deepcopy(first, dict(shared))
        layer.self_attn.layer_idx = number
        decoder.layers.append(layer)
    for config in (decoder.config, model.config.text_config):
        config.num_hidden_layers = count
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types * count


if __name__ == "__main__":
    main()
