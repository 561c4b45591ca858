"""Checks of knockout and of the row engine, against references that are slow and obvious."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import NoEffectError
from nnsight_mmflow.adapters.base import PER_POSITION
from nnsight_mmflow.checks.forwards import backend
from nnsight_mmflow.checks.subject import Failed, NotApplicable, Subject
from nnsight_mmflow.model.generation_settings import plain_settings
from nnsight_mmflow.patterns.flow.reference import run_by_forwards
from nnsight_mmflow.runs.plan import make_plan, sizes_of
from nnsight_mmflow.runs.sweep import end_tokens, run_sweep

if TYPE_CHECKING:
    from nnsight_mmflow.prompts.prompt import Prompt

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
                    logits = _knocked_out(subject, subject.prompt, source, target)
            except NotApplicable as reason:
                said.append(f"{name}: {reason}")
                continue
            said.append(f"{source}->{target}, {name}: {subject.agree('logits', logits, gold)}")
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


def generated(subject: Subject) -> str:
    """A knockout in every step of a generation, and the whole sequence run again for each token without a cache."""
    from nnsight_mmflow.patterns.knockout import Knockout

    graph, prompt, steps = subject.graph, subject.prompt, 4
    pattern = Knockout(source="image", target="question | last", layers=_middle(subject), when="all")
    settings = plain_settings(graph, max_new_tokens=steps)
    with torch.no_grad(), graph.generate(prompt, pattern, **settings) as tracer:
        output = tracer.result.save()
    with backend(subject, "eager"):
        wanted: list[int] = []
        while len(wanted) < steps and not (wanted and wanted[-1] in end_tokens(graph)):
            wanted.append(int(_hand_masked(subject, prompt, "image", "question | last", wanted).argmax()))
    tokens = output[0, len(prompt) :].tolist()
    if tokens != wanted:
        raise Failed(f"tokens {tokens}, but {wanted} when each is computed anew")
    return f"{len(tokens)} tokens"


def rows(subject: Subject) -> str:
    """Four edges, windows of three layers around a few centres; and the image's own tokens, in all layers."""
    centres = {0, subject.graph.n_layers // 2, subject.graph.n_layers - 1}
    said = _by_rows(subject, EDGES, 3, centres)
    return f"{said}; prefix->image: {_by_rows(subject, ('prefix->image',), 2 * subject.graph.n_layers + 1, {0})}"


def _by_rows(subject: Subject, edges: tuple[str, ...], window: int, centres: set[int]) -> str:
    graph, prompt = subject.graph, subject.prompt
    blocks = graph.adapter.bidirectional(prompt.spans)
    plan = make_plan(sizes_of(graph, prompt), prompt.spans, edges, (window,), blocks=blocks)
    chosen = [i for i, (_, _, centre) in enumerate(plan.cells) if centre in centres]
    swept = run_sweep(graph, plan, prompt, min(chunk.start for chunk in plan.chunks), 2, None)  # as experiments run it
    base, token = swept["numbers"][0]
    few = replace(plan, cells=tuple(plan.cells[i] for i in chosen), row_of=tuple(plan.row_of[i] for i in chosen))
    by_forwards = run_by_forwards(graph, few, prompt, torch.tensor(int(token)))
    by_rows = torch.tensor(swept["cells"], dtype=by_forwards.dtype, device=by_forwards.device)[chosen]
    effect = float((by_forwards[:, 0] - base).abs().max())
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


def _hand_masked(subject: Subject, prompt: Prompt, source: str, target: str, more: Sequence[int] = ()) -> torch.Tensor:
    """A plain forward under eager, where every layer is handed its real mask: hooks close the edge in a copy of it.

    Tokens that have been generated (`more`) follow the prompt, and are targets too.
    """
    model, inputs = subject.graph.adapter.model, subject.graph.checked(prompt)
    length = len(prompt)
    for name in ("input_ids", *PER_POSITION):
        if name in inputs and more:
            # a generated token is text; PaliGemma marks what is not prompt, and so read forwards alone, by 1
            fill = name == "attention_mask" or (name == "token_type_ids" and not subject.graph.causal)
            added = torch.tensor([more]) if name == "input_ids" else torch.full((1, len(more)), int(fill))
            inputs[name] = torch.cat([inputs[name], added.to(inputs[name])], 1)
    query = torch.tensor([*prompt.spans[target], *range(length, length + len(more))])[:, None]
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
