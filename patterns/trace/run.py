"""The parts of a causal trace: its cost, the runs of one prompt, and one cell by a whole forward (the reference)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nnsight
import torch

from nnsight_mmflow.inside.restore import Cell, chunks_of, needs_of, read_clean, sites_of
from nnsight_mmflow.inside.rows import answer_numbers, tail_start
from nnsight_mmflow.patterns.patch import Patch
from nnsight_mmflow.remote.words import changed_nothing
from nnsight_mmflow.runs.plan import sizes_of
from nnsight_mmflow.runs.restored import run_cells
from nnsight_mmflow.runs.sweep import answer_of

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.trace.corruption import Corruption
    from nnsight_mmflow.prompts.prompt import Prompt


def cost(graph: Graph, left: list[tuple], budget: int, engine: str) -> str:
    """What a run will cost, in words; `left` holds (prompt, corruption, cells) of each prompt."""
    rows = forward = 0
    for prompt, _, cells in left:
        sizes, length = sizes_of(graph, prompt), len(prompt)
        whole = sizes.n_layers * sizes.layer_flops(length, length) + sizes.tower_flops
        forward += whole * (len(cells) + 2)
        rows += 3 * whole
        for start, chunk in chunks_of(cells, length, budget, graph.adapter.bidirectional(prompt.spans)):
            tail = length - start
            for layer in range(sizes.n_layers):
                there = tail * max(1, sum(cell.first <= layer for cell in chunk))
                rows += sizes.layer_flops(there, length - tail + there)
    cells, needed = sum(len(cells) for _, _, cells in left), rows if engine == "rows" else forward
    return (
        f"{cells} cells, {needed / 1e12:.3g} TFLOP by engine={engine!r} (one forward per cell: {forward / 1e12:.3g})."
    )


def measure(
    graph: Graph,
    prompt: Prompt,
    corruption: Corruption,
    cells: list[Cell],
    limits: tuple[bool, float, float],
    engine: str,
    budget: int,
) -> dict:
    """What the journal keeps of one prompt: its base numbers, why it is left out, or each cell's numbers."""
    only_correct, min_clean, max_corrupt = limits
    plain = answer_of(graph, prompt, 16)
    base, token, answer = plain.base, plain.token, torch.tensor(plain.token)
    blocks = graph.adapter.bidirectional(prompt.spans)
    low, corrupt_token = corrupt_numbers(graph, corruption, answer)
    p_clean, p_corrupt = float(torch.tensor(base).exp()), float(torch.tensor(low).exp())
    entry = {
        "prediction": plain.text,
        "token": token,
        "clean": base,
        "corrupt": low,
        "corrupt_token": corrupt_token,
        "left_out": "",
        "cells": [],
    }
    if only_correct and not prompt.accepts(plain.text):
        return {**entry, "left_out": "answered otherwise"}
    if p_clean < min_clean:
        return {**entry, "left_out": f"P_clean below {min_clean}"}
    if p_corrupt > max_corrupt * p_clean:
        return {**entry, "left_out": f"P_corrupt above {max_corrupt} of P_clean"}
    if engine == "rows":
        start = min(tail_start(cell.positions[0], blocks) for cell in cells)
        numbers = run_cells(graph, prompt, corruption.prompt, corruption.patterns, cells, start, answer, budget, blocks)
    else:
        names, positions = needs_of(cells)
        values = clean_values(graph, prompt, names, positions)
        places = {position: row for row, position in enumerate(positions)}
        numbers = {cell: one_forward(graph, corruption, cell, values, places, answer) for cell in cells}
    kept = [[cell.span, cell.site, cell.first, cell.end, *numbers[cell].tolist()] for cell in cells]
    return {**entry, "cells": kept}


def corrupt_numbers(graph: Graph, corruption: Corruption, token: torch.Tensor) -> tuple[float, int]:
    """Of the corrupt run: the log-probability of the token, and the most likely one."""
    with torch.no_grad(), graph.trace(corruption.prompt, *corruption.patterns, use_cache=False, logits_to_keep=1):
        numbers = nnsight.save(answer_numbers(graph.model.output.logits[:, -1], token).detach())
    low, best = numbers[0].tolist()
    return low, int(best)


def clean_values(graph: Graph, prompt: Prompt, names: list[str], positions: list[int]) -> dict[str, list[torch.Tensor]]:
    """For each site the clean activations at the positions, per layer (positions, width)."""
    n_layers, sites = graph.n_layers, sites_of(graph)
    with torch.no_grad(), graph.trace(prompt, use_cache=False, logits_to_keep=1):
        read = nnsight.save(read_clean(n_layers, sites, names, positions))
    return read


def one_forward(
    graph: Graph,
    corruption: Corruption,
    cell: Cell,
    values: dict[str, list[torch.Tensor]],
    places: dict[int, int],
    token: torch.Tensor,
) -> torch.Tensor:
    """The same numbers by one whole forward, the patches written with Patch."""
    rows = [places[position] for position in cell.positions]
    window = range(cell.first, cell.end)
    written = torch.stack([values[cell.site][layer][rows] for layer in window])[:, None]
    everything = corruption.prompt.spans["all"]
    at = everything.part(cell.positions, cell.span)
    patch = Patch(at=at, site=cell.site, layers=window, value=written)
    patterns = (*corruption.patterns, patch)
    try:
        with torch.no_grad(), graph.trace(corruption.prompt, *patterns, use_cache=False, logits_to_keep=1):
            numbers = nnsight.save(answer_numbers(graph.model.output.logits[:, -1], token).detach())
    except Exception as error:
        if not changed_nothing(error):
            raise
        return torch.tensor(corrupt_numbers(graph, corruption, token), dtype=torch.double)  # by causality, or chance
    return numbers[0]
