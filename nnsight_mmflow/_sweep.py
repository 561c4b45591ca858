"""Runs the sweep of one prompt: by rows in one nnsight session, or by one forward per window (the slow reference)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import nnsight
import torch
from transformers import DynamicCache

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._rows import (
    answer_numbers,
    clean_inputs,
    closed_edges,
    crop_cache,
    mask_of_layer,
    open_mask,
    run_rows,
)
from nnsight_mmflow.patterns.knockout import Knockout

if TYPE_CHECKING:
    from transformers import Cache

    from nnsight_mmflow._graph import Graph
    from nnsight_mmflow._plan import Plan
    from nnsight_mmflow._prompt import Prompt


@dataclass
class Clean:
    """The clean run of a prompt.

    Attributes:
        tokens: what the model answers, greedily, the end token left out.
        text: the same, decoded and stripped.
        numbers: (1, 2): log-probability of the first answer token, and its id.
        inputs: each layer's input from `start` on.
        start: the first position that any row needs.
        cache: keys and values of the prompt, and of the answer after it; a sweep cuts it up and leaves None.
    """

    tokens: list[int]
    text: str
    numbers: torch.Tensor
    inputs: list[torch.Tensor]
    start: int
    cache: Cache | None


def run_clean(graph: Graph, prompt: Prompt, start: int, max_new_tokens: int) -> Clean:
    """The clean forward, and the greedy answer continued from its cache."""
    model, layers, n_layers = graph.model, graph.layers, graph.n_layers
    inputs = graph.checked(prompt)
    ends = end_tokens(graph)
    # A plain cache keeps every position; the model's own may keep only as many as a sliding window reaches.
    with torch.no_grad(), model.trace(**inputs, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1):
        clean = nnsight.save(clean_inputs(layers, n_layers, start))
        logits = nnsight.save(graph.unembed.output[:, -1])
        cache = nnsight.save(model.output.past_key_values)
    tokens = [int(logits.argmax(-1))]
    numbers = answer_numbers(logits, logits.argmax(-1)[0])
    while tokens[-1] not in ends and len(tokens) < max_new_tokens:
        step = torch.tensor([[tokens[-1]]], device=graph.device)
        with torch.no_grad(), model.trace(input_ids=step, past_key_values=cache, use_cache=True):
            token = nnsight.save(graph.unembed.output[0, -1].argmax(-1))
        tokens.append(int(token))
    answer = tokens[:-1] if tokens[-1] in ends else tokens
    text = graph.processor.tokenizer.decode(answer, skip_special_tokens=True).strip()
    return Clean(answer or tokens, text, numbers, clean, start, cache)


def run_by_rows(graph: Graph, plan: Plan, clean: Clean) -> torch.Tensor:
    """(cells, 2): for each cell of the plan the log-probability of the clean answer's first token, and the top one."""
    model, layers, unembed, device = graph.model, graph.layers, graph.unembed, graph.device
    check_reach(graph, plan.length)
    if clean.cache is None:
        raise MMFlowError("this clean run has served a sweep, which cut its cache up: make another with run_clean.")
    cache, clean.cache = clean.cache, None
    token = clean.numbers[0, 1].long()
    results: list[torch.Tensor] = []
    # The cache shrinks from chunk to chunk: those with the longest prefix run first.
    order = sorted(range(len(plan.chunks)), key=lambda number: -plan.chunks[number].start)
    with torch.no_grad(), model.session():
        for rows in [plan.chunks[number] for number in order]:
            crop_cache(cache, rows.start)
            inputs = [hidden[:, rows.start - clean.start :] for hidden in clean.inputs]
            opened, closed = open_mask(rows, inputs[0]), closed_edges(rows, inputs[0].device)
            first = inputs[0].repeat(1, rows.joined(0), 1)
            places = torch.arange(rows.start, rows.start + rows.tail, device=device)[None].repeat(1, rows.joined(0))
            ends = torch.arange(1, len(rows.windows) + 1, device=device) * rows.tail - 1
            with model.trace(
                inputs_embeds=first,
                position_ids=places,
                attention_mask=mask_of_layer(rows, 0, opened, closed),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=ends,
            ):
                run_rows(layers, rows, inputs, opened, closed)
                numbers = nnsight.save(answer_numbers(unembed.output[0], token))
            results.append(numbers)
    by_chunk = dict(zip(order, results, strict=True))
    return torch.stack([by_chunk[chunk][row] for chunk, row in plan.row_of])


def run_by_forwards(graph: Graph, plan: Plan, prompt: Prompt, clean: Clean) -> torch.Tensor:
    """The same numbers, one full forward from the pixels for each different window."""
    token = clean.numbers[0, 1].long()
    seen: dict[tuple[int, int], torch.Tensor] = {}
    for cell, place in zip(plan.cells, plan.row_of, strict=True):
        if place in seen:
            continue
        source, _, target = cell[0].partition("->")
        rows = plan.chunks[place[0]]
        pattern = Knockout(source=source.strip(), target=target.strip(), layers=range(*rows.windows[place[1]]))
        with torch.no_grad(), graph.trace(prompt, pattern, use_cache=False, logits_to_keep=1):
            numbers = nnsight.save(answer_numbers(graph.unembed.output[:, -1], token))
        seen[place] = numbers[0]
    return torch.stack([seen[place] for place in plan.row_of])


def check_reach(graph: Graph, length: int) -> None:
    """Refuses rows where a text model's sliding window is shorter than the prompt, since their masks do not hold it.

    Raises:
        MMFlowError: the prompt is longer than the window reaches.
    """
    reach = graph.adapter.sliding_window()
    if reach is not None and length > reach:
        raise MMFlowError(
            f"the text model reads only {reach} positions back (sliding_window), and the prompt has {length}: the row"
            " engine does not handle that. Use engine='forward'."
        )


def end_tokens(graph: Graph) -> set[int]:
    """The ids at which generation stops."""
    ends = graph.adapter.model.generation_config.eos_token_id
    if ends is None:
        ends = graph.text_config.eos_token_id
    return set(ends) if isinstance(ends, list | tuple) else {ends}
