"""The check of the TransformerLens side: the same knockout on both sides of the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import ModelError
from nnsight_mmflow.checks.subject import NotApplicable, Subject

if TYPE_CHECKING:
    from nnsight_mmflow.model.pattern import Pattern


def parity(subject: Subject) -> str:
    """A bridge gives the model's logits, plain and under a knockout."""
    from nnsight_mmflow.patterns.knockout import Knockout

    graph, prompt = subject.graph, subject.prompt
    try:
        bridge = graph.to_transformer_lens()
    except ModelError as reason:
        raise NotApplicable(str(reason)) from None
    patterns: list[tuple[Pattern, ...]] = [(), (Knockout(source="image", target="last", layers=range(graph.n_layers)),)]
    said = []
    for chosen in patterns:
        with torch.no_grad(), graph.trace(prompt, *chosen, use_cache=False):
            wanted = graph.model.output.logits[0, -1].float().cpu().save()
        with torch.no_grad(), graph.hooks(bridge, prompt, *chosen) as bound:
            logits = bound()[0, -1].float().cpu()
        said.append(subject.agree("logits", logits, wanted))
    return "; ".join(said)
