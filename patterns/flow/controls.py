"""Control edges: as many random source positions as an edge has, and none of its own, closed to the same target.

An edge's control asks what it costs to close anything of that size. Sources are drawn from the part of the prompt that
the edge's source lies in (image, question, ...), so that an object's control is other patches; where that part has too
few left, from all that the target reads. The first position is never drawn: attention rests there, and every row needs
it. Where even all others are too few (the image is most of a prompt), an edge has no control of its own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnsight_mmflow.spans.edges import edge_positions

if TYPE_CHECKING:
    from nnsight_mmflow.spans.row_spans import Spans
    from nnsight_mmflow.spans.span import Span

PARTS = ("prefix", "image", "question", "suffix")
WORD = "control"


def control_name(edge: str, draw: int) -> str:
    """The name of an edge's control: "control 1: object->question"."""
    return f"{WORD} {draw}: {edge}"


def controlled(edge: str) -> str | None:
    """The edge that a control is of; None for any other edge."""
    word, colon, rest = edge.partition(": ")
    return rest if colon and word.startswith(f"{WORD} ") and word[len(WORD) + 1 :].isdigit() else None


def with_controls(
    spans: Spans,
    edges: Sequence[str],
    draws: int,
    seed: str,
    window: int | None = None,
    blocks: tuple[tuple[int, int], ...] = (),
) -> tuple[Spans, tuple[str, ...], dict[str, str]]:
    """(the spans with the controls' beside them, the control edges, why an edge has none).

    Args:
        spans: of the prompt.
        edges: those that are asked for.
        draws: how many controls each gets.
        seed: the same seed gives the same positions, in every process.
        window: how far back a target reads, where the model has a sliding window.
        blocks: (first, end) of positions that read each other both ways.
    """
    if not draws:
        return spans, (), {}
    targets: dict[str, list[tuple[int, ...]]] = {}
    for edge in edges:
        _, target = edge_positions(spans, edge, blocks)
        targets.setdefault(edge.partition("->")[0], []).append(target)
    drawn_spans: dict[str, Span] = {}
    lacking: dict[str, str] = {}
    for source, readers in targets.items():
        own = spans[source.strip()]
        pool = control_pool(spans, own, readers, window)
        if pool is None:
            lacking[source] = f"{len(own)} sources, and fewer other positions that the target reads"
            continue
        for draw in range(1, draws + 1):
            drawn = random.Random(f"{seed}:{source}:{draw}").sample(pool, len(own))
            name = control_name(source, draw)
            drawn_spans[name.strip()] = spans["all"].part(drawn, name)
    named = tuple(
        control_name(edge, draw)
        for edge in edges
        for draw in range(1, draws + 1)
        if edge.partition("->")[0] not in lacking
    )
    why = {edge: lacking[edge.partition("->")[0]] for edge in edges if edge.partition("->")[0] in lacking}
    return spans.having(**drawn_spans), named, why


def control_pool(
    spans: Spans, source: Span, readers: Sequence[tuple[int, ...]], window: int | None = None
) -> list[int] | None:
    """Where an edge's control may be drawn from; None where that is less than the edge closes itself.

    Args:
        spans: of the prompt.
        source: what the edge closes.
        readers: the positions of each target that reads it.
        window: how far back a target reads, where the model has a sliding window.
    """
    first, _ = spans["all"].row
    nearest, furthest = min(map(min, readers)), max(map(max, readers))
    start = first + 1 if window is None else max(first + 1, furthest - window + 1)
    read = set(range(start, nearest + 1)) - set(source)
    for part in PARTS:
        if set(source) <= set(spans[part]):
            alike = read & set(spans[part])
            read = alike if len(alike) > len(source) else read  # as many: each draw would be the same
            break
    return sorted(read) if len(read) >= len(source) else None
