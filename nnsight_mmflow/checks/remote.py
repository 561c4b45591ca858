"""The checks of a model on a server: what must hold there, whatever the weights, without having them here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from nnsight_mmflow._errors import NoEffectError
from nnsight_mmflow.checks.subject import QUESTION, Failed, NotApplicable, Subject
from nnsight_mmflow.model.generation_settings import plain_settings
from nnsight_mmflow.remote.words import changed_nothing

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.prompts.prompt import Batch, Prompt


def logits_of(graph: Graph, prompt: Prompt | Batch, *patterns: Pattern) -> torch.Tensor:
    """(rows, vocabulary): after each row's last position, in one request."""
    with torch.no_grad(), graph.trace(prompt, *patterns, use_cache=False, logits_to_keep=1):
        logits = graph.model.output.logits[:, -1].float().detach().cpu().save()
    return logits


def answers(subject: Subject) -> str:
    """The server runs the model, and another picture gives other logits."""
    logits, others = (
        logits_of(subject.graph, subject.graph.prompt(subject.picture(seed), QUESTION)) for seed in (0, 1)
    )
    difference = float((logits - others).abs().max())
    if not difference > 0 or not logits.isfinite().all():
        raise Failed(f"two pictures give logits that differ by {difference}")
    return f"two pictures give logits that differ by up to {difference:.2g}"


def knocked(subject: Subject) -> str:
    """A knockout in a padded batch equals it alone."""
    from nnsight_mmflow.patterns.knockout import Knockout

    graph, prompts = subject.graph, [subject.prompt, subject.other]
    blocked = Knockout(source="image", target="last", layers=range(graph.n_layers))
    together = logits_of(graph, graph.batch(prompts), blocked)
    alone = torch.cat([logits_of(graph, prompt, blocked) for prompt in prompts])
    if float((alone[0] - logits_of(graph, prompts[0])[0]).abs().max()) < 1e-6:
        raise Failed("the knockout makes no difference")
    return subject.agree("logits", together, alone)


def patched(subject: Subject) -> str:
    """The merged embedding of another run gives that run."""
    from nnsight_mmflow.patterns.patch import Patch
    from nnsight_mmflow.patterns.values import from_run

    graph = subject.graph
    prompt, other = (graph.prompt(subject.picture(seed), QUESTION) for seed in (0, 1))
    logits = logits_of(graph, prompt, Patch(at="image", site="embed", value=from_run(other)))
    return subject.agree("logits", logits, logits_of(graph, other))


def dropped(subject: Subject) -> str:
    """Dropping image tokens equals closing their keys."""
    from nnsight_mmflow.patterns.prune.methods import FastV

    method = FastV(k=max(1, subject.graph.enters_after))
    logits = [logits_of(subject.graph, subject.prompt, pattern) for pattern in (method, replace(method, mode="mask"))]
    return subject.agree("logits", *logits)


def generated(subject: Subject) -> str:
    """In a generation too, dropping image tokens equals closing their keys: steps read what the prompt wrote."""
    from nnsight_mmflow.patterns.prune.methods import FastV

    graph = subject.graph
    method = FastV(k=graph.enters_after + 1)
    if method.k >= graph.n_layers:
        raise NotApplicable("image features are added in every layer")
    logits = [logits_of_steps(graph, subject.prompt, pattern) for pattern in (method, replace(method, mode="mask"))]
    return subject.agree("logits", *logits)


def logits_of_steps(graph: Graph, prompt: Prompt, pattern: Pattern) -> torch.Tensor:
    """(steps, vocabulary): of the first two tokens of a greedy generation."""
    more = {"output_logits": True, "return_dict_in_generate": True}
    settings = plain_settings(graph, max_new_tokens=2, min_new_tokens=2, **more)
    with torch.no_grad(), graph.generate(prompt, pattern, **settings) as tracer:
        logits = torch.cat(tracer.result.logits).float().detach().cpu().save()
    return logits


def swept(subject: Subject) -> str:
    """A sweep by rows, in one request, equals one forward per window."""
    from nnsight_mmflow.patterns.flow.flow import flow

    graph = subject.graph
    quiet: dict[str, Any] = {"progress": False, "report": str}
    settings: dict[str, Any] = {"edges": ["image->last"], "window": graph.n_layers // 2 * 2 - 1, "only_correct": False}
    tables = [
        flow(graph, subject.prompt, engine=engine, **settings, **quiet).to_frame()["log_probability_change"]
        for engine in ("rows", "forward")
    ]
    return subject.agree("log-probabilities", *(torch.tensor(table.to_numpy()) for table in tables))


def no_op(subject: Subject) -> str:
    """A ranking that keeps all is an error: only the server's forward can know."""
    from nnsight_mmflow.inside.pruning import Stage
    from nnsight_mmflow.patterns.prune.prune import Prune

    keeps = Prune(own=[Stage(layer=max(1, subject.graph.enters_after), keep=0, rank=keep_all, reads="", exact=True)])
    try:
        logits_of(subject.graph, subject.prompt, keeps)
    except Exception as error:
        if not changed_nothing(error):
            raise
        return NoEffectError.__name__
    raise Failed("it ran through")


def keep_all(seen: object) -> torch.Tensor:
    """Ranks that keep every token."""
    return torch.ones(len(seen.image))  # type: ignore[attr-defined]


def beside(subject: Subject) -> str:
    """In which process this key's blocks run: told by a generation in the way that only the model's process gets right.

    The other way, which is right in both, is what it is held against.
    """
    from nnsight_mmflow.patterns.prune.methods import FastV

    graph, prompt = subject.graph, subject.prompt
    if graph.n_layers < 3 or graph.enters_after + 1 >= graph.n_layers:
        raise NotApplicable("the model is too small to tell")
    method, logits = FastV(k=graph.enters_after + 1, mode="mask"), []
    for trusted in (True, False):
        try:
            logits.append(logits_of_steps(graph.at(None, trusted=trusted), prompt, method))
        except Exception as error:
            return f"beside the model ({type(error).__name__} in a step): patterns attend by themselves in generations"
    near = float((logits[0] - logits[1]).abs().max()) <= max(0.05, subject.allowed(logits[1]))
    return "in the model's process: graph.at(True, trusted=True)" if near else "beside it"


REMOTE_CHECKS: dict[str, Callable[[Subject], str]] = {
    "the server answers, and looks at the picture": answers,
    "a knockout in a padded batch equals it alone": knocked,
    "the merged embedding of another run gives that run": patched,
    "dropping image tokens equals closing their keys": dropped,
    "the same in a generation": generated,
    "a sweep in one request equals one forward per window": swept,
    "a pattern that changes nothing is an error": no_op,
    "where this key's blocks run": beside,
}
