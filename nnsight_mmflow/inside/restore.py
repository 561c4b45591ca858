"""Restored cells by rows: copies of the corrupt run's tail in one forward. Ships to servers by value.

In each, clean activations are written over a span, at a site, in a window of layers. A cell equals the corrupt
run before its span and below its window, so the rows share the corrupt run's cache and join late, as those of a
knockout sweep do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import nnsight
import torch

from nnsight_mmflow.inside.names import cached
from nnsight_mmflow.inside.row_masks import Rows
from nnsight_mmflow.inside.rows import LayerInput, answer_numbers, crop_cache, enter_layer, prepared, tail_start
from nnsight_mmflow.inside.sites import SITES, Site, read_site, write_site

if TYPE_CHECKING:
    from nnsight import Envoy, TransformersModel
    from transformers import Cache

    from nnsight_mmflow.inside.roles import Roles

ORDER = ("attn", "mlp", "resid")  # in which a layer holds them


@dataclass(frozen=True)
class Cell:
    """One restored cell.

    Attributes:
        span: its name.
        positions: those that are restored, counted within the prompt.
        site: "attn", "mlp" or "resid".
        first: the window's first layer.
        end: the layer behind its last.
    """

    span: str
    positions: tuple[int, ...]
    site: str
    first: int
    end: int


def chunks_of(
    cells: list[Cell], length: int, budget: int, blocks: tuple[tuple[int, int], ...] = ()
) -> list[tuple[int, list[Cell]]]:
    """(start of the tail, cells) of each chunk: they share a tail, fit the budget, and the first to join are in front.

    Args:
        cells: what to restore.
        length: of the prompt.
        budget: positions in one chunk.
        blocks: (first, end) of stretches whose positions read one another backwards and forwards: a tail that would
            start inside one takes all of it.
    """
    groups: dict[int, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(tail_start(cell.positions[0], blocks), []).append(cell)
    chunks = []
    for start, group in sorted(groups.items(), reverse=True):  # the cache shrinks from chunk to chunk
        group.sort(key=lambda cell: (cell.first, cell.end, cell.site, cell.span))
        per_chunk = max(1, budget // (length - start))
        chunks += [(start, group[i : i + per_chunk]) for i in range(0, len(group), per_chunk)]
    return chunks


def needs_of(cells: list[Cell]) -> tuple[list[str], list[int]]:
    """(the sites, the positions) whose clean activations some cell restores."""
    positions = {position for cell in cells for position in cell.positions}
    return list(dict.fromkeys(cell.site for cell in cells)), sorted(positions)


def sites_of(graph: Roles) -> list[dict[str, Site]]:
    """For each layer where its sites are."""
    return [{name: SITES[name](graph, layer) for name in ORDER} for layer in range(graph.n_layers)]


def cells_of(
    model: TransformersModel,
    layers: Envoy,
    sites: list[dict[str, Site]],
    chunks: list[tuple[int, list[Cell]]],
    first_start: int,
    corrupt: list[LayerInput],
    cache: Cache,
    values: dict[str, list[torch.Tensor]],
    places: dict[int, int],
    token: torch.Tensor,
) -> torch.Tensor:
    """Inside a session: (cells, 2), chunk by chunk, as `run_cells` gives them.

    Args:
        model: the model.
        layers: its decoder layers.
        sites: for each layer where its sites are.
        chunks: from `chunks_of`.
        first_start: where `corrupt` starts.
        corrupt: what each layer was handed in the corrupt run.
        cache: of the corrupt run; it is cut up.
        values: for each site the clean activations at the positions, per layer.
        places: for each position of the prompt its row in `values`.
        token: the answer whose probability is followed.
    """
    length = first_start + corrupt[0].hidden.shape[1]
    measured: list[torch.Tensor] = []
    for start, chunk in chunks:
        rows = Rows(start, length - start, tuple((cell.first, cell.end) for cell in chunk))
        crop_cache(cache, start)
        inputs, nowhere, opened = prepared(corrupt, start - first_start, rows)
        restored = [
            (cell.site, [p - start for p in cell.positions], [places[p] for p in cell.positions]) for cell in chunk
        ]
        count, device = rows.joined(0), inputs[0].hidden.device
        first = inputs[0].hidden.repeat(1, count, 1)
        spots = torch.arange(start, length, device=device)[None].repeat(1, count)
        ends = torch.arange(1, len(chunk) + 1, device=device) * rows.tail - 1
        mask = opened[0][: count * rows.tail, : start + count * rows.tail][None, None]
        with model.trace(
            inputs_embeds=first,
            position_ids=spots,
            attention_mask=mask,
            **cached(model, cache),
            use_cache=True,
            logits_to_keep=ends,
        ):
            run_restored(layers, rows, inputs, opened, nowhere, sites, restored, values)
            numbers = nnsight.save(answer_numbers(model.output.logits[0], token))
        measured.append(numbers)
    return torch.cat(measured)


def run_restored(
    layers: Envoy,
    rows: Rows,
    inputs: list[LayerInput],
    opened: list[torch.Tensor],
    nowhere: torch.Tensor,
    sites: list[dict[str, Site]],
    restored: list[tuple[str, list[int], list[int]]],
    values: dict[str, list[torch.Tensor]],
) -> None:
    """Inside a trace: gives each layer its rows, and writes each row's clean activations in the layers of its window.

    Args:
        layers: the decoder layers.
        rows: the chunk; its windows are those of the cells.
        inputs: what each layer was handed in the corrupt run.
        opened: for each layer its rows' mask.
        nowhere: no edge is changed.
        sites: for each layer where its sites are.
        restored: for each row the site, the positions within the tail, and their rows in `values`.
        values: for each site the clean activations, per layer (positions, width).
    """
    present = 0
    for layer in range(len(inputs)):
        present = enter_layer(layers, layer, rows, inputs, opened, nowhere, present)
        for name in ORDER:
            active = [
                (row, positions, come)
                for row, ((first, end), (site, positions, come)) in enumerate(zip(rows.windows, restored, strict=True))
                if site == name and first <= layer < end
            ]
            if not active:
                continue
            before = read_site(sites[layer][name])
            after = before.clone()
            for row, positions, come in active:
                spots = [row * rows.tail + position for position in positions]
                after[0, spots] = values[name][layer][come].to(after)
            write_site(sites[layer][name], after)


def read_clean(layers: int, sites: list[dict[str, Site]], names: list[str], positions: list[int]) -> dict:
    """Inside a trace: for each site named the activations at the positions, per layer."""
    read: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for layer in range(layers):
        for name in ORDER:
            if name in names:
                read[name].append(read_site(sites[layer][name])[0, positions].clone())
    return read
