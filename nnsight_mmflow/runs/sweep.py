"""Runs the sweep of one prompt: by rows in one nnsight session, or by one forward per window (the slow reference)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import nnsight
import torch
from transformers import DynamicCache

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.names import cache_of, cached
from nnsight_mmflow.inside.rows import (
    LayerInput,
    answer_numbers,
    clean_inputs,
)
from nnsight_mmflow.inside.sweep import greedy, rows_of
from nnsight_mmflow.patterns.knockout import Knockout

if TYPE_CHECKING:
    from transformers import Cache

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.plan import Plan


@dataclass
class Clean:
    """The clean run of a prompt.

    Attributes:
        tokens: what the model answers, greedily, the end token left out.
        text: the same, decoded and stripped.
        numbers: (1, 2): log-probability of the first answer token, and its id.
        distribution: (1, vocabulary): log-probabilities of the first answer token, in double precision.
        inputs: what each layer was handed from `start` on.
        start: the first position that any row needs.
        cache: keys and values of the prompt, and of the answer after it; a sweep cuts it up and leaves None.
    """

    tokens: list[int]
    text: str
    numbers: torch.Tensor
    distribution: torch.Tensor
    inputs: list[LayerInput]
    start: int
    cache: Cache | None


def run_clean(
    graph: Graph, prompt: Prompt, start: int, max_new_tokens: int, patterns: tuple[Pattern, ...] = ()
) -> Clean:
    """The prompt's forward (with patterns, if there are any), and the greedy answer continued from its cache."""
    model, layers, n_layers = graph.model, graph.layers, graph.n_layers
    enters_after, causal = graph.enters_after, graph.causal
    inputs = graph.checked(prompt)
    # A plain cache keeps every position; the model's own may keep only as many as a sliding window reaches.
    edited = graph.edited(prompt, patterns)
    with torch.no_grad(), edited.trace(**inputs, **cached(model, DynamicCache()), use_cache=True, logits_to_keep=1):
        clean = nnsight.save(clean_inputs(layers, n_layers, start, enters_after, causal))
        logits = nnsight.save(model.output.logits[:, -1])
        cache = nnsight.save(cache_of(model.output))
    token = logits.argmax(-1)[0]
    numbers = answer_numbers(logits, token)
    ends = end_tokens(graph)
    tokens, cache = greedy(model, token.to(graph.device), cache, ends, max_new_tokens)
    answer = tokens[:-1] if tokens[-1] in ends else tokens
    text = graph.processor.tokenizer.decode(answer, skip_special_tokens=True).strip()
    distribution = logits.float().cpu().double().log_softmax(-1)
    return Clean(answer or tokens, text, numbers, distribution, clean, start, cache)


def run_by_rows(graph: Graph, plan: Plan, clean: Clean) -> torch.Tensor:
    """(cells, 2): for each cell of the plan the log-probability of the clean answer's first token, and the top one."""
    model, layers = graph.model, graph.layers
    if clean.cache is None:
        raise MMFlowError("this clean run has served a sweep, which cut its cache up: make another with run_clean.")
    cache, clean.cache = clean.cache, None
    token, inputs, start = clean.numbers[0, 1].long(), clean.inputs, clean.start
    with torch.no_grad(), model.session():
        numbers = nnsight.save(rows_of(model, layers, plan, start, inputs, cache, token))
    return numbers


def run_by_forwards(graph: Graph, plan: Plan, prompt: Prompt, token: torch.Tensor) -> torch.Tensor:
    """The same numbers for a token, one full forward from the pixels for each different window."""
    seen: dict[tuple[int, int], torch.Tensor] = {}
    for cell, place in zip(plan.cells, plan.row_of, strict=True):
        if place in seen:
            continue
        source, _, target = cell[0].partition("->")
        rows = plan.chunks[place[0]]
        pattern = Knockout(source=source.strip(), target=target.strip(), layers=range(*rows.windows[place[1]]))
        with torch.no_grad(), graph.trace(prompt, pattern, use_cache=False, logits_to_keep=1):
            numbers = nnsight.save(answer_numbers(graph.model.output.logits[:, -1], token))
        seen[place] = numbers[0]
    return torch.stack([seen[place] for place in plan.row_of])


def end_tokens(graph: Graph) -> set[int]:
    """The ids at which generation stops."""
    ends = graph.adapter.model.generation_config.eos_token_id
    if ends is None:
        ends = graph.text_config.eos_token_id
    return set(ends) if isinstance(ends, list | tuple) else {ends}
