"""The words that a model says at a span, and with attention or MLPs silenced there, wherever the graph runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nnsight
import torch

from nnsight_mmflow.inside.rows import tail_start
from nnsight_mmflow.inside.silence import words_of_each

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt


def words_silenced(
    graph: Graph, prompt: Prompt, positions: list[int], cells: list[tuple[str, tuple[int, ...]]], top: int
) -> list[list[set[int]]]:
    """The top words at each position: plain, and with each cell silenced there; what lies before is computed once.

    Args:
        graph: the model.
        prompt: what is asked.
        positions: where outputs are set to zero, and words are read.
        cells: (site, layers) each, the site "attn" or "mlp".
        top: how many words.

    Raises:
        NoEffectError: an output that was zero already.
    """
    model, layers, remotely, apart = graph.model, graph.layers, graph.remotely, graph.apart
    n_layers = graph.n_layers
    start = tail_start(positions[0], graph.adapter.bidirectional(prompt.spans))
    inputs, enters_after, causal = graph.checked(prompt), graph.enters_after, graph.causal
    silenced = [(site, {layer: graph.joining(site, layer) for layer in chosen}) for site, chosen in cells]
    with torch.no_grad(), model.session(**remotely):
        words = words_of_each(
            model, layers, n_layers, inputs, start, enters_after, causal, apart, silenced, positions, top
        )
        by_layer = nnsight.save(words)
    return [[set(ids) for ids in rows] for rows in by_layer]
