"""Checks of knockout and of the row engine, against references that are slow and obvious."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import NoEffectError
from nnsight_mmflow._plan import make_plan, sizes_of
from nnsight_mmflow._sweep import run_by_forwards, run_by_rows, run_clean
from nnsight_mmflow.checks.forwards import backend
from nnsight_mmflow.checks.subject import Failed, NotApplicable, Subject

if TYPE_CHECKING:
    from nnsight_mmflow._prompt import Prompt

EDGES = ("image->question", "image->last", "question->last", "last->last")


def by_hand(subject: Subject) -> str:
    """The knockout, under each attention implementation, and a plain eager forward whose masks are edited by hooks."""
    said = []
    for source, target in (("image", "question"), ("question", "last")):
        with backend(subject, "eager"):
            gold, clean = _hand_masked(subject, subject.prompt, source, target), subject.logits(subject.prompt)
        if float((gold - clean).abs().max()) < 1e-6:
            raise Failed(f"closing {source}->{target} by hand in the middle layers changes nothing")
        for name in ("eager", "sdpa"):
            try:
                with backend(subject, name):
                    found = _knocked_out(subject, subject.prompt, source, target)
            except NotApplicable as reason:
                said.append(f"{name}: {reason}")
                continue
            said.append(f"{source}->{target}, {name}: {subject.agree('logits', found, gold)}")
    return "; ".join(said)


def padded(subject: Subject) -> str:
    """Two prompts of different lengths, knocked out in one batch and each alone."""
    from nnsight_mmflow.patterns.knockout import Knockout

    graph, prompts = subject.graph, [subject.prompt, subject.other]
    pattern = Knockout(source="image", target="question", layers=_middle(subject))
    with torch.no_grad(), graph.trace(graph.batch(prompts), pattern, use_cache=False):
        together = graph.model.output.logits[:, -1].float().cpu().save()
    alone = torch.stack([_knocked_out(subject, prompt, "image", "question") for prompt in prompts])
    return subject.agree("logits", together, alone)


def rows(subject: Subject) -> str:
    """Four edges, windows of three layers around a few centres."""
    graph, prompt = subject.graph, subject.prompt
    plan = make_plan(
        sizes_of(graph, prompt), prompt.spans, EDGES, (3,), blocks=graph.adapter.bidirectional(prompt.spans)
    )
    centres = {0, graph.n_layers // 2, graph.n_layers - 1}
    chosen = [i for i, (_, _, centre) in enumerate(plan.cells) if centre in centres]
    clean = run_clean(graph, prompt, min(chunk.start for chunk in plan.chunks), 2)
    by_rows = run_by_rows(graph, plan, clean)[chosen]
    few = replace(plan, cells=tuple(plan.cells[i] for i in chosen), row_of=tuple(plan.row_of[i] for i in chosen))
    by_forwards = run_by_forwards(graph, few, prompt, clean)
    effect = float((by_forwards[:, 0] - clean.numbers[0, 0]).abs().max())
    if effect < 1e-6:
        raise Failed("no window of any edge changes the answer's log-probability")
    said = subject.agree("log-probabilities", by_rows[:, 0], by_forwards[:, 0])
    return f"{said}; {plan.n_rows} rows, largest effect {effect:.2g}"


def no_op(subject: Subject) -> str:
    """An edge that is closed anyway raises NoEffectError before any forward."""
    from nnsight_mmflow.patterns.knockout import Knockout

    graph, prompt = subject.graph, subject.prompt
    if graph.adapter.bidirectional(prompt.spans) == (prompt.spans["all"].row,):
        raise NotApplicable("every position of the prompt reads every other, so none is closed anyway")
    try:
        graph.trace(prompt, Knockout(source="last", target="question", layers=0))
    except NoEffectError:
        return "last->question is refused"
    raise Failed("Knockout(source='last', target='question') was taken, though no position reads a later one")


def _middle(subject: Subject) -> range:
    depth = subject.graph.n_layers
    return range(depth // 4, max(depth // 4 + 1, depth - depth // 4))


def _knocked_out(subject: Subject, prompt: Prompt, source: str, target: str) -> torch.Tensor:
    from nnsight_mmflow.patterns.knockout import Knockout

    graph = subject.graph
    pattern = Knockout(source=source, target=target, layers=_middle(subject))
    with torch.no_grad(), graph.trace(prompt, pattern, use_cache=False):
        logits = graph.model.output.logits[0, -1].float().cpu().save()
    return logits


def _hand_masked(subject: Subject, prompt: Prompt, source: str, target: str) -> torch.Tensor:
    """A plain forward under eager, where every layer is handed its real mask: hooks close the edge in a copy of it."""
    model, inputs = subject.graph.adapter.model, subject.graph.checked(prompt)
    query = torch.tensor(list(prompt.spans[target]))[:, None]
    key = torch.tensor(list(prompt.spans[source]))[None, :]

    def close(_module, arguments, named):  # type: ignore[no-untyped-def]
        mask = named["attention_mask"].clone()
        mask[:, :, query, key] = torch.finfo(mask.dtype).min
        return arguments, {**named, "attention_mask": mask}

    layers = model.get_decoder().layers
    handles = [layers[layer].register_forward_pre_hook(close, with_kwargs=True) for layer in _middle(subject)]
    try:
        with torch.no_grad():
            return model(**inputs, use_cache=False).logits[0, -1].float().cpu()
    finally:
        for handle in handles:
            handle.remove()
