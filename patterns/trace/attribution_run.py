"""One prompt's attribution patching: two forwards and a backward, and the cells that are really patched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import nnsight
import torch

from nnsight_mmflow.inside.gradients import heads_and_gradients
from nnsight_mmflow.inside.reading import numbers_of
from nnsight_mmflow.patterns.patch import Patch
from nnsight_mmflow.patterns.trace.corruption import Corruption
from nnsight_mmflow.runs.each import numbers_under
from nnsight_mmflow.runs.scores import Scored
from nnsight_mmflow.spans.span import Span

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt


def measure(
    graph: Graph,
    prompt: Prompt,
    corruption: Corruption,
    places: dict[str, list[int]],
    exact: int,
    seed: int,
    parts: list[tuple[Scored, Corruption]],
    why: str,
) -> dict:
    """What the journal keeps of one prompt."""
    if why:
        return {"rows": [], "why": why}
    sides = [_estimates(graph, *part, places) for part in parts]
    cells = [(layer, name, head) for layer in range(graph.n_layers) for name in places for head in range(graph.n_heads)]
    estimates = [a - b for a, b in zip(sides[0].gains, sides[1].gains, strict=True)] if sides[1:] else sides[0].gains
    high, low = (
        getattr(sides[0], what) - (getattr(sides[1], what) if sides[1:] else 0.0) for what in ("clean", "corrupt")
    )
    chosen = _chosen(estimates, exact, seed)
    patched = [
        _patched(
            graph, *part, side, [(places[name], layer, head) for layer, name, head in map(cells.__getitem__, chosen)]
        )
        for part, side in zip(parts, sides, strict=True)
    ]
    measured = {i: changes[0] - sum(changes[1:]) for i, changes in zip(chosen, zip(*patched, strict=True), strict=True)}
    told = {"answer": graph.processor.tokenizer.decode([sides[0].token]).strip()}
    first = parts[0][0].reading is None
    if first:
        told |= {"clean_probability": math.exp(high), "corrupt_probability": math.exp(low)}
    else:
        told |= {"answer": prompt.answer, "clean_score": high, "corrupt_score": low}
    return {
        "rows": [
            {
                "span": name,
                "layer": layer,
                "head": head,
                **told,
                "estimate": estimates[i],
                "exact": measured.get(i, float("nan")),
            }
            for i, (layer, name, head) in enumerate(cells)
        ]
    }


@dataclass(frozen=True)
class Side:
    """What two forwards and a backward give.

    Attributes:
        token: the clean run's most likely first token.
        clean: the clean run's score; corrupt: the corrupt one's.
        gains: of each cell, layer by layer, span by span, head by head.
        heads: of each layer the clean results.
    """

    token: int
    clean: float
    corrupt: float
    gains: list[float]
    heads: list[torch.Tensor]


def _estimates(graph: Graph, scored: Scored, corruption: Corruption, places: dict[str, list[int]]) -> Side:
    outs, first, width = (
        [graph.attention_out(layer) for layer in range(graph.n_layers)],
        graph.layers[0],
        graph.head_width,
    )
    reading = scored.reading
    keep = 1 if reading is None else reading.count
    with torch.no_grad(), graph.trace(scored.prompt, use_cache=False, logits_to_keep=keep):
        clean = nnsight.save([out.inputs[0][0][0].detach().clone() for out in outs])
        logits = nnsight.save(graph.model.output.logits[0, -keep:].detach())
    token = int(logits[0].float().log_softmax(-1).argmax())
    high = float(
        logits[0].float().log_softmax(-1)[token]
        if reading is None
        else numbers_of(logits, torch.tensor(token), reading)[0, 0]
    )
    with graph.trace(corruption.prompt, *corruption.patterns, use_cache=False, logits_to_keep=keep):
        found = nnsight.save(heads_and_gradients(first, outs, graph.model, token, reading))
    low, heads, gradients = found
    gains = []
    for was, now, gradient in zip(clean, heads, gradients, strict=True):
        gain = ((was.to(now) - now).float() * gradient.float()).unflatten(-1, (graph.n_heads, width)).sum(-1).cpu()
        gains += [float(gain[at, head].sum()) for at in places.values() for head in range(graph.n_heads)]
    return Side(token, high, low, gains, clean)


def _chosen(estimates: list[float], exact: int, seed: int) -> list[int]:
    """The cells that are really patched: those with the largest estimates, and others by chance."""
    generator = torch.Generator().manual_seed(seed)
    order = sorted(range(len(estimates)), key=lambda i: -abs(estimates[i]))
    drawn = [i for i in torch.randperm(len(estimates), generator=generator).tolist() if i not in order[: exact // 2]]
    return [*order[: exact // 2], *drawn[: exact - exact // 2]]


def _patched(
    graph: Graph, scored: Scored, corruption: Corruption, side: Side, chosen: list[tuple[list[int], int, int]]
) -> list[float]:
    """What patching one head at a span changes, for each (positions, layer, head); 0 where it gives what it gave."""
    everything, patterns = corruption.prompt.spans["all"], []
    for at, layer, head in chosen:
        span = Span("span", tuple(at), everything.row)
        value = side.heads[layer][at][None, None]
        patch = Patch(at=span, site="attn", layers=layer, heads=(head,), value=value)
        patterns.append((f"layer {layer}, head {head}", (*corruption.patterns, patch)))
    found = numbers_under(graph, corruption.prompt, patterns, side.token, scored.reading, lenient=True)
    return [one[0] - side.corrupt if one else 0.0 for one in found]
