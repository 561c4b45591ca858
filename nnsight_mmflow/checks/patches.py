"""Checks of patching and of attention contributions: what they must give exactly."""

from __future__ import annotations

import torch

from nnsight_mmflow._errors import NoEffectError
from nnsight_mmflow.checks.subject import QUESTION, Failed, Subject


def another_run(subject: Subject) -> str:
    """All that enters the first layer, or leaves the last, taken from another run gives that run's logits."""
    from nnsight_mmflow.patterns.patch import Patch
    from nnsight_mmflow.patterns.values import from_run

    graph, other = subject.graph, subject.graph.prompt(subject.picture(7), QUESTION)
    wanted, clean, said = subject.logits(other), subject.logits(subject.prompt), []
    if float((wanted - clean).abs().max()) < 1e-6:
        raise Failed("another picture gives the same logits, so that patching could not be told from nothing")
    places = {"resid": graph.n_layers - 1} if graph.enters_after else {"embed": None, "resid": graph.n_layers - 1}
    for site, layers in places.items():
        patch = Patch(at="all", site=site, layers=layers, value=from_run(other))
        with torch.no_grad(), graph.trace(subject.prompt, patch, use_cache=False):
            logits = graph.model.output.logits[0, -1].float().cpu().save()
        said.append(f"{site}: {subject.agree('logits', logits, wanted)}")
    try:
        with torch.no_grad(), graph.trace(other, Patch(at="image", site="embed", value=from_run(other))):
            graph.model.output.logits.save()
    except NoEffectError:
        return "; ".join(said) + "; a run patched from itself is refused"
    raise Failed("a run patched from itself was taken, though it changes nothing")


def contributions(subject: Subject) -> str:
    """What the last position takes from all positions sums up to the attention's output, in every layer."""
    from nnsight_mmflow.patterns.contributions.contributions import contributions as measured

    result = measured(subject.graph, subject.prompt, "image", "last", progress=False)
    return f"equal to {result.header['largest_error']:.0e} of its size"
