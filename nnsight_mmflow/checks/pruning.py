"""Checks of dropping image tokens, of skipping layers, and of saliency: what they must give exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nnsight_mmflow.checks.subject import Failed, NotApplicable, Subject

if TYPE_CHECKING:
    from nnsight_mmflow.model.pattern import Pattern


def dropped(subject: Subject) -> str:
    """Tokens that leave the sequence change the answer as closing their keys does, alone and in a padded batch."""
    from dataclasses import replace

    from nnsight_mmflow.patterns.prune.methods import HiMAP

    graph, first = subject.graph, max(1, subject.graph.enters_after)
    if first + 1 >= graph.n_layers:
        raise NotApplicable(f"{graph.n_layers} layers leave no room for two prunes")
    method, said = HiMAP(k1=first, k2=first + 1), []
    for prompt in (subject.prompt, subject.graph.batch([subject.prompt, subject.other])):
        ways = []
        for pattern in (method, replace(method, mode="mask")):
            with torch.no_grad(), graph.trace(prompt, pattern, use_cache=False):
                logits = graph.model.output.logits[:, -1].float().cpu().save()
            ways.append(logits)
        said.append(subject.agree("logits", *ways))
    if float((ways[0][0] - subject.logits(subject.prompt)).abs().max()) < 1e-6:
        raise Failed("three quarters of the image tokens make no difference, so that the comparison says nothing")
    return "; ".join(said)


def skipped(subject: Subject) -> str:
    """A layer left out equals its input handed on, by a hook."""
    from nnsight_mmflow.patterns.skip import Skip

    graph, prompt, layer = subject.graph, subject.prompt, subject.graph.n_layers - 1
    module = graph.layers[layer]._module
    hook = module.register_forward_hook(lambda module, given, output: given[0])
    wanted = subject.logits(prompt)
    hook.remove()
    return subject.agree("logits", _logits(subject, Skip(layers=layer)), wanted)


def zeroed(subject: Subject) -> str:
    """Zeroing all weights of the last position in the last layer leaves of its attention nothing but the bias."""
    from nnsight_mmflow.patterns.patch import Patch
    from nnsight_mmflow.patterns.values import zeros
    from nnsight_mmflow.patterns.zero_weights import ZeroWeights

    graph, last = subject.graph, subject.graph.n_layers - 1
    bias = getattr(graph.attention_out(last)._module, "bias", None)  # is added whatever the weights are
    value = zeros() if bias is None else bias.detach()[None, None, None]
    everything = ZeroWeights(source="all", target="last", layers=last)
    nothing = Patch(at="last", site="attn", layers=last, value=value)
    return subject.agree("logits", _logits(subject, everything), _logits(subject, nothing))


def _logits(subject: Subject, pattern: Pattern) -> torch.Tensor:
    graph = subject.graph
    with torch.no_grad(), graph.trace(subject.prompt, pattern, use_cache=False, logits_to_keep=1):
        logits = graph.model.output.logits[0, -1].float().cpu().save()
    return logits
