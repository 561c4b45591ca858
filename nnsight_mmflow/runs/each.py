"""What the model would say under each of several patterns, wherever the graph runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import nnsight
import torch

from nnsight_mmflow.inside.each import next_of_each, words_of_each

if TYPE_CHECKING:
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
    return [step for step in _next(graph, prompt, patterns, token, top, lenient=False) if step is not None]


def _next(
    graph: Graph, prompt: Prompt, patterns: list[tuple[Pattern, ...]], token: int | None, top: int, lenient: bool
) -> list[Next | None]:
    inputs, model, remotely = graph.checked(prompt), graph.model, graph.remotely
    edited = [graph.edited(prompt, chosen) for chosen in patterns]
    with torch.no_grad(), model.session(**remotely):
        steps = nnsight.save(next_of_each(model, edited, inputs, token, top, lenient))
    return [None if step is None else Next(*step) for step in steps]


def words_under(
    graph: Graph, prompt: Prompt, patterns: list[tuple[Pattern, ...]], positions: list[int], top: int
) -> list[list[list[int]]]:
    """For each choice of patterns the most likely ids at each position, in one session.

    Args:
        graph: the model.
        prompt: what is asked.
        patterns: the choices; () is the plain model.
        positions: where the words are read.
        top: how many words at each position.
    """
    inputs, model, remotely = graph.checked(prompt), graph.model, graph.remotely
    edited = [graph.edited(prompt, chosen) for chosen in patterns]
    with torch.no_grad(), model.session(**remotely):
        words = nnsight.save(words_of_each(model, edited, inputs, positions, top))
    return words
