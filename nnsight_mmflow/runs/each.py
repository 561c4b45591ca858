"""What the model would say under each of several patterns, wherever the graph runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import nnsight
import torch

from nnsight_mmflow.inside.each import next_of_each, numbers_of_each, words_of_each
from nnsight_mmflow.runs.scores import Numbers, Scored, difference

if TYPE_CHECKING:
    from nnsight_mmflow.inside.reading import Reading
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


def numbers_under(
    graph: Graph,
    prompt: Prompt,
    patterns: Sequence[tuple[str, tuple[Pattern, ...]]],
    token: int,
    reading: Reading | None,
    lenient: bool = False,
) -> list[list[float]]:
    """For each choice of patterns, by its name, what is read of the prompt, as `numbers_of` tells; in one session.

    Args:
        graph: the model.
        prompt: what is asked, with the answer behind it if that is read.
        patterns: the choices, and what they are called; () is the plain model.
        token: whose log-probability is read, without a reading.
        reading: what is read.
        lenient: patterns that change nothing give no numbers, and are no error.

    Raises:
        NoEffectError: patterns that would change nothing; which, by name.
    """
    inputs, model, remotely, followed = graph.checked(prompt), graph.model, graph.remotely, torch.tensor(token)
    edited = [(name, graph.edited(prompt, chosen)) for name, chosen in patterns]
    with torch.no_grad(), model.session(**remotely):
        found = nnsight.save(numbers_of_each(model, edited, inputs, followed, reading, lenient))
    return found


def scored_under(
    graph: Graph, parts: Sequence[Scored], patterns: Sequence[tuple[str, tuple[Pattern, ...]]], token: int
) -> Numbers:
    """The clean run's numbers, and those under each choice of patterns, which go on over an answer behind the prompt.

    Args:
        graph: the model.
        parts: what is read of a prompt, from `readings`.
        patterns: the choices, and what they are called.
        token: whose log-probability is read, without a reading.
    """
    found = []
    for part in parts:
        spans = part.prompt.spans
        through = [(name, tuple(one.over_answer(spans) for one in chosen)) for name, chosen in patterns]
        found.append(numbers_under(graph, part.prompt, [("clean", ()), *through], token, part.reading))
    return difference(found)


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
