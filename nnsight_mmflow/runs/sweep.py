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
    answer_numbers,
    clean_inputs,
)
from nnsight_mmflow.inside.sweep import Ask, Clean, clean_and_rows, greedy, rows_of

if TYPE_CHECKING:
    from nnsight_mmflow.inside.plan import Plan
    from nnsight_mmflow.inside.reading import Reading
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.prompts.prompt import Prompt


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


def end_tokens(graph: Graph) -> set[int]:
    """The ids at which generation stops."""
    ends = graph.adapter.model.generation_config.eos_token_id
    if ends is None:
        ends = graph.text_config.eos_token_id
    return set(ends) if isinstance(ends, list | tuple) else {ends}


@dataclass(frozen=True)
class Answered:
    """What the model answers, greedily.

    Attributes:
        text: decoded and stripped.
        base: log-probability of the first token.
        token: its id.
        tokens: all of them, the end token left out.
    """

    text: str
    base: float
    token: int
    tokens: tuple[int, ...] = ()


def answer_of(graph: Graph, prompt: Prompt, max_new_tokens: int) -> Answered:
    """The model's greedy answer, in one session, wherever the graph runs."""
    found = run_sweep(graph, None, prompt, len(prompt) - 1, max_new_tokens, ())
    base, token = found["numbers"][0]
    text = graph.processor.tokenizer.decode(found["tokens"], skip_special_tokens=True).strip()
    return Answered(text, base, int(token), tuple(found["tokens"]))


def submit_there(
    graph: Graph,
    plan: Plan,
    prompt: Prompt,
    start: int,
    max_new_tokens: int,
    only: tuple[tuple[int, ...], ...] | None,
) -> str:
    """Sends what `run_sweep` runs, and returns the job's id at once."""
    model, layers, backend = graph.model, graph.layers, graph.backend_there(blocking=False)
    ask = ask_of(graph, prompt, start, max_new_tokens, only)
    with torch.no_grad(), model.session(backend=backend):
        found = nnsight.save(clean_and_rows(model, layers, plan, ask))  # noqa: F841, comes back under this name
    return backend.job_id


def fetch_there(graph: Graph, job: str) -> tuple[str, dict | None]:
    """(where a job stands, what it found if it is done)."""
    backend = graph.backend_there(blocking=False, job=job)
    found = backend.poll()
    return "RECEIVED" if backend.status is None else backend.status.value, None if found is None else found["found"]


def run_sweep(
    graph: Graph,
    plan: Plan | None,
    prompt: Prompt,
    start: int,
    max_new_tokens: int,
    only: tuple[tuple[int, ...], ...] | None,
    reading: Reading | None = None,
) -> dict:
    """What `clean_and_rows` found on the server, in one session."""
    model, layers, remotely = graph.model, graph.layers, graph.remotely
    ask = ask_of(graph, prompt, start, max_new_tokens, only, reading)
    with torch.no_grad(), model.session(**remotely):
        found = nnsight.save(clean_and_rows(model, layers, plan, ask))
    return found


def ask_of(
    graph: Graph,
    prompt: Prompt,
    start: int,
    max_new_tokens: int,
    only: tuple[tuple[int, ...], ...] | None,
    reading: Reading | None = None,
) -> Ask:
    """What the session needs, in plain values."""
    from nnsight_mmflow.runs.sweep import end_tokens

    ends = tuple(sorted(end_tokens(graph)))
    inputs = graph.checked(prompt)
    facts = graph.n_layers, graph.enters_after, graph.causal, graph.apart
    return Ask(inputs, start, *facts, ends, max_new_tokens, only, reading)
