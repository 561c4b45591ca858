"""Runs the sweep of one prompt in one nnsight session, wherever the graph runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import nnsight
import torch

from nnsight_mmflow.inside.sweep import Ask, clean_and_rows

if TYPE_CHECKING:
    from nnsight_mmflow.inside.plan import Plan
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt


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
    """

    text: str
    base: float
    token: int


def answer_of(graph: Graph, prompt: Prompt, max_new_tokens: int) -> Answered:
    """The model's greedy answer, in one session, wherever the graph runs."""
    swept = run_sweep(graph, None, prompt, len(prompt) - 1, max_new_tokens, ())
    base, token = swept["numbers"][0]
    text = graph.processor.tokenizer.decode(swept["tokens"], skip_special_tokens=True).strip()
    return Answered(text, base, int(token))


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
    saved = backend.poll()
    return "RECEIVED" if backend.status is None else backend.status.value, None if saved is None else saved["found"]


def run_sweep(
    graph: Graph,
    plan: Plan | None,
    prompt: Prompt,
    start: int,
    max_new_tokens: int,
    only: tuple[tuple[int, ...], ...] | None,
) -> dict:
    """What `clean_and_rows` returns, in one session: the greedy answer, and the plan's cells if it has any."""
    model, layers, remotely = graph.model, graph.layers, graph.remotely
    ask = ask_of(graph, prompt, start, max_new_tokens, only)
    with torch.no_grad(), model.session(**remotely):
        swept = nnsight.save(clean_and_rows(model, layers, plan, ask))
    return swept


def ask_of(
    graph: Graph, prompt: Prompt, start: int, max_new_tokens: int, only: tuple[tuple[int, ...], ...] | None
) -> Ask:
    """What the session needs, in plain values."""
    ends = tuple(sorted(end_tokens(graph)))
    inputs = graph.checked(prompt)
    return Ask(inputs, start, graph.n_layers, graph.enters_after, graph.causal, graph.apart, ends, max_new_tokens, only)
