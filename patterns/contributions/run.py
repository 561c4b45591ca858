"""One prompt's attention contributions: the forward, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import nnsight
import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.contributions import Contributions, plain_values, read_contributions
from nnsight_mmflow.inside.generated import lag_of
from nnsight_mmflow.inside.heads import QueryKeyReader, differs
from nnsight_mmflow.runs.answers import with_target
from nnsight_mmflow.runs.generated import check_forward, generated_ids

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
    """The answer, and each layer's contributions, checked against the attention's own output.

    A target's contributions are projected on what is written first; those of a generated token, and of the prompt's
    last position, on what is written behind it.
    """
    inputs, every = graph.checked(prompt), range(graph.n_layers)
    edited = graph.edited(prompt, patterns)
    remotely, model = graph.remotely, graph.model
    ids = torch.tensor(generated_ids(prompt), dtype=torch.long)
    steps, lag = len(ids), (0.0, 1.0)
    with torch.no_grad(), edited.trace(**inputs, use_cache=False, logits_to_keep=steps + 1, **remotely):
        logits = nnsight.save(model.output.logits[0, -steps - 1].float().detach().cpu())
        last = nnsight.save(model.output.logits[0, -1].argmax(-1).cpu())
        if steps:
            lag = nnsight.save(lag_of(model.output.logits[0, -steps - 1 : -1], ids))
    token, right = logits.argmax(-1), None
    if prompt.answer is not None:
        right = with_target(graph, prompt.continues or prompt, prompt.answer, first_token=True)[1][0] == int(token)
    answer = Answer(graph.processor.tokenizer.decode([int(token)]).strip(), float(logits.softmax(-1).max()), right)
    written, first = [*ids.tolist(), int(last)], len(prompt) - steps - 1
    chosen = [written[position - first] if position > first else int(token) for position in targets]
    unembed = graph.unembed
    attentions = [graph.attention(layer) for layer in every]
    outs = [graph.attention_out(layer) for layer in every]
    layers, causal, reader = graph.layers, graph.causal, QueryKeyReader(graph)
    cap = getattr(graph.text_config, "attn_logit_softcapping", None)
    with (
        torch.no_grad(),
        edited.trace(**inputs, use_cache=False, logits_to_keep=1, **remotely),
    ):
        read = read_contributions(layers, reader, attentions, outs, unembed, chosen, targets, sources, cap, causal)
        plain = nnsight.save([plain_values(one) for one in read])  # a server cannot return our classes
    by_layer = [Contributions(**values) for values in plain]
    check_forward(*lag, by_layer[0].dtype)
    for layer, reading in enumerate(by_layer):
        if differs(reading.error, reading.scale, reading.dtype):
            raise MMFlowError(
                f"layer {layer}: the contributions of all positions sum up to something that differs from the"
                f" attention's output by {reading.error:.1e} (its largest number is {reading.scale:.1e}): this family's"
                " attention does something that is not known here."
            )
    return answer, by_layer
