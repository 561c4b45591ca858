"""The flow experiment by rows against one forward per window, and one knocked-out trace against hand-made hooks.

Run: python benchmarks/flow.py [--shape small|7b|13b] [--device cuda --dtype float16] [--json FILE]

Everything is timed in one process, so that the ratios mean something on a busy machine; memory is measured as the
peak above what lay there before, in the process (CPU) or on the device (GPU).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import threading
import time

import numpy as np
import psutil
import torch
from shapes import SHAPES, build, question

import nnsight_mmflow as mmf
from nnsight_mmflow.patterns.flow.edges import PAPER
from nnsight_mmflow.patterns.flow.reference import run_by_forwards
from nnsight_mmflow.runs.plan import make_plan, sizes_of
from nnsight_mmflow.runs.results import versions
from nnsight_mmflow.runs.sweep import run_sweep


class Peak:
    """Highest memory above the start, in MB, while the block runs."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.process = psutil.Process()

    def __enter__(self) -> Peak:
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.before = self.high = self.process.memory_info().rss
            self.going = True
            self.watcher = threading.Thread(target=self._watch, daemon=True)
            self.watcher.start()
        return self

    def _watch(self) -> None:
        while self.going:
            self.high = max(self.high, self.process.memory_info().rss)
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            self.high = torch.cuda.max_memory_allocated()
        else:
            self.going = False
            self.watcher.join()
        self.megabytes = (self.high - self.before) / 1e6
        self.total = self.high / 1e6


def timed(work, device: str, repeats: int = 1) -> tuple[float, object]:
    """Median seconds, and the last result."""
    seconds = []
    for _ in range(repeats):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        result = work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def hooked_forward(model, inputs, mask, layers):
    """A plain forward with hand-made hooks that set the mask: what a user would write without us."""
    decoder = model.get_decoder().layers

    def replace(_module, arguments, named):
        return arguments, {**named, "attention_mask": mask}

    handles = [decoder[layer].register_forward_pre_hook(replace, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        logits = model(**inputs, use_cache=False, logits_to_keep=1).logits
    for handle in handles:
        handle.remove()
    return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--window", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--row-budget", type=int, default=mmf_budget())
    parser.add_argument("--forwards", type=int, help="time only so many of the windows by forwards, and scale up")
    parser.add_argument("--json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shape = SHAPES[given.shape]
    model, processor = build(shape, getattr(torch, given.dtype), given.device)
    graph = mmf.adapt(model, processor)
    image = np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    prompt = graph.prompt(image, question())
    counts = {name: len(prompt.spans[name]) for name in ("prefix", "image", "question", "suffix")}
    plan = make_plan(sizes_of(graph, prompt), prompt.spans, PAPER, (given.window,), given.row_budget)
    print(f"{given.shape}: {graph}\npositions {counts}\n{plan}", flush=True)
    inputs = graph.checked(prompt)
    start = min(chunk.start for chunk in plan.chunks)

    def plain():
        with torch.no_grad():
            return model(**inputs, use_cache=False, logits_to_keep=1).logits

    def by_rows():
        swept = run_sweep(graph, plan, prompt, start, 1, None)
        return swept["numbers"][0], torch.tensor(swept["cells"], dtype=torch.float64)

    plain()
    with Peak(given.device) as plain_peak:
        plain_seconds, _ = timed(plain, given.device, 3)
    by_rows()
    with Peak(given.device) as row_peak:
        row_seconds, ((base, token), rows) = timed(by_rows, given.device, 3)

    limited = plan
    if given.forwards:
        from dataclasses import replace

        chosen = np.linspace(0, len(plan.cells) - 1, given.forwards).round().astype(int).tolist()
        limited = replace(
            plan,
            cells=tuple(plan.cells[i] for i in chosen),
            row_of=tuple(plan.row_of[i] for i in chosen),
        )
    run = len(set(limited.row_of))
    forward_seconds, forwards = timed(
        lambda: run_by_forwards(graph, limited, prompt, torch.tensor(int(token))), given.device
    )
    forward_seconds = forward_seconds / run * plan.n_rows + plain_seconds
    where = [plan.cells.index(cell) for cell in limited.cells]
    difference = float((rows[where][:, 0].exp() - forwards[:, 0].exp()).abs().max())
    log_difference = float((rows[where][:, 0] - forwards[:, 0]).abs().max())

    # One knocked-out trace against the same forward with hand-made hooks and a mask made beforehand; taken in turn.
    layers = range(shape.layers // 3, shape.layers // 3 + 9)
    pattern = mmf.Knockout(source="image", target="question", layers=layers)
    length, shut = len(prompt), torch.finfo(model.dtype).min
    mask = torch.full((length, length), shut, dtype=model.dtype, device=given.device).triu(1)
    mask[torch.tensor(list(prompt.spans["question"]))[:, None], torch.tensor(list(prompt.spans["image"]))] = shut
    mask = mask[None, None]

    def traced():
        with torch.no_grad(), graph.trace(prompt, pattern, use_cache=False, logits_to_keep=1):
            logits = graph.unembed.output.save()
        return logits

    pairs = []
    for _ in range(9):
        by_hand, hooked = timed(lambda: hooked_forward(model, inputs, mask, layers), given.device)
        by_trace, logits = timed(traced, given.device)
        pairs.append((by_trace, by_hand))
    same = float((logits.float() - hooked.float()).abs().max())
    trace_ratio = statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)

    found = {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": torch.cuda.get_device_name() if given.device.startswith("cuda") else f"{given.threads} CPU threads",
        "machine": platform.machine(),
        "shape": given.shape,
        "dtype": given.dtype,
        "edges": list(PAPER),
        "window": given.window,
        "rows": plan.n_rows,
        "row_budget": given.row_budget,
        "plain_forward_seconds": plain_seconds,
        "row_seconds": row_seconds,
        "forward_seconds": forward_seconds,
        "forwards_timed": run,
        "ratio": forward_seconds / row_seconds,
        "probability_difference": difference,
        "log_probability_difference": log_difference,
        # what the agreement is to be compared with: how much any window changes
        "largest_log_probability_change": float((rows[:, 0] - base).abs().max()),
        "row_flops": plan.row_flops,
        "naive_flops": plan.naive_flops,
        "plain_peak_mb": plain_peak.total,
        "row_peak_mb": row_peak.total,
        "peak_ratio": row_peak.total / plain_peak.total,
        "plain_extra_mb": plain_peak.megabytes,
        "row_extra_mb": row_peak.megabytes,
        "trace_against_hooks": trace_ratio,
        "trace_difference": same,
        "versions": versions(),
    }
    print(json.dumps(found, indent=2))
    if given.json:
        with open(given.json, "w") as file:
            json.dump(found, file, indent=2)


def mmf_budget() -> int:
    """The package's own row budget."""
    from nnsight_mmflow.inside.plan import ROW_BUDGET

    return ROW_BUDGET


if __name__ == "__main__":
    main()
