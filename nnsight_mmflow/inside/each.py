"""What the model would say under each of several patterns, in one session. Ships to servers by value."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import nnsight
import torch

if TYPE_CHECKING:
    from nnsight import TransformersModel

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.prompts.prompt import Prompt


class Next(NamedTuple):
    """The next token's distribution, as far as it is asked for.

    Attributes:
        log: log-probability of the token that is followed (of the most likely one, if none is), in double precision.
        top: ids of the most likely tokens, the first in front.
    """

    log: float
    top: list[int]


def next_or_none(
    graph: Graph, prompt: Prompt, patterns: list[tuple[Pattern, ...]], token: int | None = None, top: int = 1
) -> list[Next | None]:
    """As `next_under`, with None for patterns that change nothing."""
    return _next(graph, prompt, patterns, token, top, lenient=True)


def next_under(
    graph: Graph, prompt: Prompt, patterns: list[tuple[Pattern, ...]], token: int | None = None, top: int = 1
) -> list[Next]:
    """For each choice of patterns what comes next, wherever the graph runs; one request on a server.

    Args:
        graph: the model.
        prompt: what is asked.
        patterns: the choices; () is the plain model.
        token: the id whose probability is followed.
        top: how many of the most likely tokens are told.

    Raises:
        NoEffectError: patterns that would change nothing.
    """
    return [one for one in _next(graph, prompt, patterns, token, top, lenient=False) if one is not None]


def _next(
    graph: Graph, prompt: Prompt, patterns: list[tuple[Pattern, ...]], token: int | None, top: int, lenient: bool
) -> list[Next | None]:
    inputs, model, remotely = graph.checked(prompt), graph.model, graph.remotely
    edited = [graph.edited(prompt, chosen) for chosen in patterns]
    with torch.no_grad(), model.session(**remotely):
        found = nnsight.save(next_of_each(model, edited, inputs, token, top, lenient))
    return [None if one is None else Next(*one) for one in found]


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
        token: as in `next_under`.
        top: as there.
        lenient: patterns that change nothing give None, and are no error.
    """
    found: list[tuple[float, list[int]] | None] = []
    with torch.no_grad():  # the caller's does not travel
        for one in edited:
            try:
                with one.trace(**inputs, use_cache=False, logits_to_keep=1):
                    logits = nnsight.save(model.output.logits[0, -1])
            except Exception as error:
                if not lenient or type(error).__name__ != "NoEffectError":
                    raise
                found.append(None)
                continue
            logs = logits.float().cpu().double().log_softmax(-1)  # some devices have no double precision
            best = logs.topk(top).indices.tolist()
            found.append((float(logs[best[0] if token is None else token]), best))
    return found


def words_under(
    graph: Graph, prompt: Prompt, patterns: list[tuple[Pattern, ...]], positions: list[int], top: int
) -> list[list[list[int]]]:
    """For each choice of patterns the most likely ids at each position, in one session.

    Args:
        graph: the model.
        prompt: what is asked.
        patterns: the choices; () is the plain model.
        positions: where the words are read.
        top: how many.
    """
    inputs, model, remotely = graph.checked(prompt), graph.model, graph.remotely
    edited = [graph.edited(prompt, chosen) for chosen in patterns]
    with torch.no_grad(), model.session(**remotely):
        found = nnsight.save(words_of_each(model, edited, inputs, positions, top))
    return found


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
        top: how many.
    """
    found = []
    with torch.no_grad():  # the caller's does not travel
        for one in edited:
            with one.trace(**inputs, use_cache=False):
                best = nnsight.save(model.output.logits[0, positions].topk(top, -1).indices.cpu())
            found.append(best.tolist())
    return found
