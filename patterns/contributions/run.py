"""One prompt's attention contributions: the forward, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import nnsight
import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.contributions import Contributions, plain_values, read_contributions
from nnsight_mmflow.inside.heads import QueryKeyReader, differs
from nnsight_mmflow.runs.answers import with_target

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.prompts.prompt import Prompt


@dataclass(frozen=True)
class Answer:
    """What the model answers first.

    Attributes:
        text: the token.
        probability: its probability.
        correct: whether it is the first token of the prompt's answer; None where the prompt has none.
    """

    text: str
    probability: float
    correct: bool | None


def read_prompt(
    graph: Graph, prompt: Prompt, sources: list[int], targets: list[int], patterns: tuple[Pattern, ...] = ()
) -> tuple[Answer, list[Contributions]]:
    """The answer, and each layer's contributions, checked against the attention's own output."""
    inputs, every = graph.checked(prompt), range(graph.n_layers)
    edited = graph.edited(prompt, patterns)
    remotely = graph.remotely
    with torch.no_grad(), edited.trace(**inputs, use_cache=False, logits_to_keep=1, **remotely):
        logits = nnsight.save(graph.model.output.logits[0, -1].float().detach().cpu())
    token, right = logits.argmax(-1), None
    if prompt.answer is not None:
        right = with_target(graph, prompt, prompt.answer, first_token=True)[1][0] == int(token)
    answer = Answer(graph.processor.tokenizer.decode([int(token)]).strip(), float(logits.softmax(-1).max()), right)
    unembed, chosen = graph.unembed, int(token)
    attentions = [graph.attention(layer) for layer in every]
    outs = [graph.attention_out(layer) for layer in every]
    layers, causal, reader = graph.layers, graph.causal, QueryKeyReader(graph)
    cap = getattr(graph.text_config, "attn_logit_softcapping", None)
    with (
        torch.no_grad(),
        edited.trace(**inputs, use_cache=False, logits_to_keep=1, **remotely),
    ):
        read = read_contributions(layers, reader, attentions, outs, unembed, chosen, targets, sources, cap, causal)
        plain = nnsight.save([plain_values(values) for values in read])  # a server cannot return our classes
    by_layer = [Contributions(**values) for values in plain]
    for layer, reading in enumerate(by_layer):
        if differs(reading.error, reading.scale, reading.dtype):
            raise MMFlowError(
                f"layer {layer}: the contributions of all positions sum up to something that differs from the"
                f" attention's output by {reading.error:.1e} (its largest number is {reading.scale:.1e}): this family's"
                " attention does something that is not known here."
            )
    return answer, by_layer
