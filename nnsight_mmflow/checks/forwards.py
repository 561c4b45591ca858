"""Checks of plain forwards: the answer must not depend on the attention implementation or on a batch neighbour."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from nnsight_mmflow._errors import PromptError
from nnsight_mmflow.checks.subject import OTHER, QUESTION, NotApplicable, Subject


@contextmanager
def backend(subject: Subject, name: str) -> Iterator[None]:
    """The model runs with that attention implementation while this lasts."""
    model, before = subject.graph.adapter.model, subject.graph.backend
    try:
        model.set_attn_implementation(name)
    except ValueError as error:
        raise NotApplicable(f"transformers has no {name} for this model: {str(error).split('.')[0]}") from None
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def eager_and_sdpa(subject: Subject) -> str:
    """Both implementations give the same logits."""
    with backend(subject, "sdpa"):
        sdpa = subject.logits(subject.prompt)
    with backend(subject, "eager"):
        eager = subject.logits(subject.prompt)
    return subject.agree("logits", sdpa, eager)


def batched(subject: Subject) -> str:
    """Prompts of different lengths, with one image, two, and (where allowed) none, padded into one batch."""
    graph = subject.graph
    pair = graph.prompt([subject.picture(4), subject.picture(5, (1.0, 1.0))], OTHER)
    prompts = [subject.prompt, pair, subject.other]
    with suppress(PromptError):  # PaliGemma takes no prompt without an image
        prompts.append(graph.prompt(None, QUESTION))
    batch = graph.batch(prompts)
    with torch.no_grad():
        together = graph.adapter.model(**graph.checked(batch), use_cache=False).logits[:, -1].float().cpu()
    alone = torch.stack([subject.logits(prompt) for prompt in prompts])
    counts = ", ".join(str(len(prompt)) for prompt in prompts)
    return f"{subject.agree('logits', together, alone)}; rows of {counts}"
