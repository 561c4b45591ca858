"""The runs of a prune report: answers in batches, and times and memory of one prompt."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow.model.generation_settings import plain_settings

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.prune.prune import Prune
    from nnsight_mmflow.prompts.prompt import Prompt

STEPS = 8  # after the first token, for the time per token


def answer_together(graph: Graph, given: list[tuple[Prompt, Prune | None, Mapping[str, object]]]) -> list[dict]:
    """What the journal keeps of prompts under one pattern: what the model writes, in one generation.

    Args:
        graph: the model.
        given: (prompt, the method or None, all settings of the generation), the last two the same for all.
    """
    (_, pattern, settings), prompts = given[0], [prompt for prompt, *_ in given]
    batch, patterns = graph.batch(prompts), () if pattern is None else (pattern,)
    with torch.no_grad(), graph.generate(batch, *patterns, **settings) as tracer:
        ids = tracer.result.save()
    length = batch.inputs["input_ids"].shape[1]
    texts = graph.processor.tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
    return [{"written": text.strip()} for text in texts]


def measure_speed(graph: Graph, prompt: Prompt, pattern: Prune | None, repeats: int) -> dict:
    """What the journal keeps of a method's speed: medians, after one run that is not counted.

    Milliseconds to the first token and per token after it, and memory.

    The times hold what nnsight costs: on small models that is most of them. Memory is the device's peak, or on a CPU
    the process's largest size so far, in MB: there only its growth from method to method means something.
    """
    patterns = () if pattern is None else (pattern,)
    cuda = graph.device.type == "cuda"
    first, later = [], []
    for run in range(repeats + 1):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        short, long = (_timed(graph, prompt, patterns, count) for count in (1, 1 + STEPS))
        if run:
            first.append(short)
            later.append((long - short) / STEPS)
    peak = torch.cuda.max_memory_allocated() / 1e6 if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {
        "speed": {
            "first_token_ms": statistics.median(first) * 1e3,
            "later_token_ms": statistics.median(later) * 1e3,
            "peak_memory_mb": peak,
        }
    }


def _timed(graph: Graph, prompt: Prompt, patterns: tuple[Prune, ...], count: int) -> float:
    """Seconds that a generation of so many tokens takes."""
    if graph.device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    with (
        torch.no_grad(),
        graph.generate(
            prompt, *patterns, **plain_settings(graph, max_new_tokens=count, min_new_tokens=count)
        ) as tracer,
    ):
        ids = tracer.result.save()
    assert ids is not None
    if graph.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
