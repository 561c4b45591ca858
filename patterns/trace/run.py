"""The parts of a causal trace: its cost, the runs of one prompt, and one cell by a whole forward (the reference)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import nnsight
import torch

from nnsight_mmflow.inside.reading import Reading, numbers_of
from nnsight_mmflow.inside.restore import Cell, chunks_of, needs_of, read_clean, sites_of
from nnsight_mmflow.inside.rows import tail_start
from nnsight_mmflow.patterns.patch import Patch
from nnsight_mmflow.patterns.trace.corruption import Corruption
from nnsight_mmflow.remote.words import changed_nothing
from nnsight_mmflow.runs.plan import sizes_of
from nnsight_mmflow.runs.restored import run_cells
from nnsight_mmflow.runs.scores import FIRST, WHOLE, Numbers, Scored, difference
from nnsight_mmflow.runs.sweep import answer_of
from nnsight_mmflow.spans.span import Span

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
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
    parts: list[tuple[Scored, Corruption]],
    score: str,
    why: str,
) -> dict:
    """What the journal keeps of one prompt: its base numbers, why it is left out, or each cell's numbers.

    Args:
        graph: the model.
        prompt: the clean prompt.
        corruption: its corrupt run.
        cells: what is restored.
        limits: whether the answer must be right, the least clean probability, the corrupt one's largest share of it.
        engine: "rows" or "forward".
        budget: positions in one chunk of rows.
        parts: what is read, and the corrupt run with the same answer behind it.
        score: its name.
        why: why the prompt is left out in any case; "" if it is not.
    """
    only_correct, min_clean, max_corrupt = limits
    plain = answer_of(graph, prompt, 16)
    token = torch.tensor(plain.token)
    entry: dict = {"prediction": plain.text, "token": plain.token, "left_out": why, "cells": []}
    if why:
        return entry
    if score == FIRST:
        high, low = [plain.base, float(plain.token)], corrupt_numbers(graph, corruption, token=token)
    else:
        clean = [Corruption(part.prompt, "clean") for part, _ in parts]
        readings = [part.reading for part, _ in parts]
        high, low = (
            difference([[corrupt_numbers(graph, *one, token=token)] for one in zip(runs, readings, strict=True)])[0]
            for runs in (clean, [broken for _, broken in parts])
        )
    entry |= {"clean": high[0], "corrupt": low[0], "corrupt_token": int(low[1]), "bases": [high, low]}
    if only_correct and not prompt.accepts(plain.text):
        return {**entry, "left_out": "answered otherwise"}
    if score in (FIRST, WHOLE):  # no other score is a probability
        p_clean, p_corrupt = math.exp(high[0]), math.exp(low[0])
        if p_clean < min_clean:
            return {**entry, "left_out": f"P_clean below {min_clean}"}
        if p_corrupt > max_corrupt * p_clean:
            return {**entry, "left_out": f"P_corrupt above {max_corrupt} of P_clean"}
    numbers = difference([_cells(graph, *part, cells, token, engine, budget) for part in parts])
    words = list(parts[0][0].words)
    kept = [[cell.span, cell.site, cell.first, cell.end, *one] for cell, one in zip(cells, numbers, strict=True)]
    return {**entry, "cells": kept, "words": words}


def _cells(
    graph: Graph,
    scored: Scored,
    corruption: Corruption,
    cells: list[Cell],
    token: torch.Tensor,
    engine: str,
    budget: int,
) -> Numbers:
    """The numbers of each cell."""
    prompt, reading, blocks = scored.prompt, scored.reading, graph.adapter.bidirectional(scored.prompt.spans)
    if engine == "rows":
        read = prompt.spans["all"].row[1] - 1
        start = min(tail_start(min(read, cell.positions[0]), blocks) for cell in cells)
        corrupt, patterns = corruption.prompt, corruption.patterns
        found = run_cells(graph, prompt, corrupt, patterns, cells, start, token, budget, blocks, reading)
    else:
        names, positions = needs_of(cells)
        values = clean_values(graph, prompt, names, positions)
        places = {position: row for row, position in enumerate(positions)}
        found = {cell: one_forward(graph, corruption, cell, values, places, token, reading) for cell in cells}
    return [found[cell].tolist() for cell in cells]


def corrupt_numbers(
    graph: Graph, corruption: Corruption, reading: Reading | None = None, *, token: torch.Tensor
) -> list[float]:
    """Of the corrupt run what `numbers_of` tells: of the token, or what is read."""
    keep = 1 if reading is None else reading.count
    with torch.no_grad(), graph.trace(corruption.prompt, *corruption.patterns, use_cache=False, logits_to_keep=keep):
        numbers = nnsight.save(numbers_of(graph.model.output.logits[0, -keep:], token, reading).detach())
    return numbers[0].tolist()


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
    reading: Reading | None = None,
) -> torch.Tensor:
    """The same numbers by one whole forward, the patches written with Patch."""
    rows = [places[position] for position in cell.positions]
    window = range(cell.first, cell.end)
    written = torch.stack([values[cell.site][layer][rows] for layer in window])[:, None]
    everything = corruption.prompt.spans["all"]
    at = Span(cell.span, tuple(cell.positions), everything.row)
    patch = Patch(at=at, site=cell.site, layers=window, value=written)
    patterns, keep = (*corruption.patterns, patch), 1 if reading is None else reading.count
    try:
        with torch.no_grad(), graph.trace(corruption.prompt, *patterns, use_cache=False, logits_to_keep=keep):
            numbers = nnsight.save(numbers_of(graph.model.output.logits[0, -keep:], token, reading).detach())
    except Exception as error:
        if not changed_nothing(error):
            raise
        return torch.tensor(
            corrupt_numbers(graph, corruption, reading, token=token), dtype=torch.double
        )  # by causality, or chance
    return numbers[0]
