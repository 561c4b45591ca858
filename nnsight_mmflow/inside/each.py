"""What the model would say under each of several patterns, in one session. Ships to servers by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nnsight
import torch

if TYPE_CHECKING:
    from nnsight import TransformersModel


def next_of_each(
    model: TransformersModel,
    edited: list[TransformersModel],
    inputs: dict[str, torch.Tensor],
    token: int | None,
    top: int,
    lenient: bool,
) -> list[tuple[float, list[int]] | None]:
    """Inside a session: the numbers of `next_under`.

    Args:
        model: the model.
        edited: it, under each choice of patterns.
        inputs: the prompt's tensors.
        token: the id whose log-probability is told; None: the most likely one of each.
        top: how many of the most likely tokens are told.
        lenient: patterns that change nothing give None, and are no error.
    """
    next_tokens: list[tuple[float, list[int]] | None] = []
    with torch.no_grad():  # the caller's does not travel
        for variant in edited:
            try:
                with variant.trace(**inputs, use_cache=False, logits_to_keep=1):
                    logits = nnsight.save(model.output.logits[0, -1])
            except Exception as error:
                if not lenient or type(error).__name__ != "NoEffectError":
                    raise
                next_tokens.append(None)
                continue
            logs = logits.float().cpu().double().log_softmax(-1)  # some devices have no double precision
            best = logs.topk(top).indices.tolist()
            next_tokens.append((float(logs[best[0] if token is None else token]), best))
    return next_tokens


def words_of_each(
    model: TransformersModel,
    edited: list[TransformersModel],
    inputs: dict[str, torch.Tensor],
    positions: list[int],
    top: int,
) -> list[list[list[int]]]:
    """Inside a session: the ids of `words_under`.

    Args:
        model: the model.
        edited: it, under each choice of patterns.
        inputs: the prompt's tensors.
        positions: where the words are read.
        top: how many words at each position.
    """
    words = []
    with torch.no_grad():  # the caller's does not travel
        for variant in edited:
            with variant.trace(**inputs, use_cache=False):
                best = nnsight.save(model.output.logits[0, positions].topk(top, -1).indices.cpu())
            words.append(best.tolist())
    return words
