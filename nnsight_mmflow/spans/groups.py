"""Groups of positions to pool by: the parts of a prompt, rows of the image, tiles, or spans that a user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from nnsight_mmflow._errors import SpanError
from nnsight_mmflow.spans.span import Span

if TYPE_CHECKING:
    from nnsight_mmflow.spans.row_spans import Spans

WAYS = ("span", "image_row", "tile", "text_token", "token")
Grouping = str | Mapping[str, str | Span]


class Group(NamedTuple):
    """Positions that are drawn as one.

    Attributes:
        name: what it is called.
        positions: sorted, at least one.
    """

    name: str
    positions: tuple[int, ...]


def groups_of(spans: Spans, by: Grouping = "span", drawn: Sequence[int] | None = None) -> tuple[Group, ...]:
    """The groups that partition the drawn positions, in the order of the sequence (of the mapping, if one is given).

    Args:
        spans: of the prompt.
        by: "span" (prefix, each image, question, suffix, and what was generated), "image_row" (each row of patches,
            the rest by span), "tile" (the picture as a whole, each tile, row ends; the rest by span), "text_token"
            (each image, and each token of text alone), "token" (each position alone), or names with spans or span
            expressions: {"object": spans["image"].box(...), "rest": ...}.
        drawn: the positions to partition; all of the prompt unless given. Groups without any of them are left out.

    Raises:
        SpanError: an unknown way, a name that holds no position, groups that overlap, or ones that leave something out.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> [(group.name, len(group.positions)) for group in groups_of(mmf.nano.prompts(graph, 1)[0].spans)]
        [('prefix', 4), ('image', 64), ('question', 6), ('suffix', 2)]
    """
    if isinstance(by, Mapping):
        groups = _named(spans, by)
    elif by == "token":
        groups = [_alone(spans, at) for at in spans["all"]]
    elif by in WAYS:
        groups = _parts(spans, str(by))
    else:
        raise SpanError(
            f"by={by!r} is no grouping: it is one of {', '.join(WAYS)}, or names with spans, such as"
            ' {"object": prompt.spans["image"].box((x0, y0, x1, y1)), "rest": ...}.'
        )
    wanted = set(spans["all"] if drawn is None else drawn)
    cut = [Group(name, tuple(position for position in held if position in wanted)) for name, held in groups]
    missing = sorted(wanted - {position for group in cut for position in group.positions})
    if missing:
        raise SpanError(
            f"the groups {', '.join(group.name for group in cut)} leave out {len(missing)} of {len(wanted)} drawn"
            f" positions, the first of them {missing[:5]} ({spans.tokens[missing[0]]!r}). Every position belongs to one"
            ' group: add {"rest": "~(...)"}, or ask only for the positions you group (target=, source=).'
        )
    return tuple(group for group in cut if group.positions)


def _alone(spans: Spans, position: int) -> Group:
    """A token as a group; line ends and lone spaces made visible."""
    token = spans.tokens[position]
    shown = token.replace("\n", "\\n") if token.strip() else repr(token)
    return Group(f"{shown} ({position})", (position,))


def _named(spans: Spans, by: Mapping[str, str | Span]) -> list[Group]:
    groups: list[Group] = []
    owner: dict[int, str] = {}
    for name, what in by.items():
        span = spans[what] if isinstance(what, str) else what
        if span.row != spans["all"].row:
            raise SpanError(
                f"the group {name!r} is of a row at {span.row}, the prompt's is at {spans['all'].row}: take the span"
                " from the prompt that is drawn."
            )
        if not len(span):
            raise SpanError(f"the group {name!r} ({span.name}) holds no position of this prompt: leave it out.")
        twice = [position for position in span if position in owner]
        if twice:
            raise SpanError(
                f"the groups {owner[twice[0]]!r} and {name!r} both hold {len(twice)} position(s), the first of them"
                f" {twice[:5]}: a cell would count them twice. Take them out of one: a - b."
            )
        owner.update(dict.fromkeys(span, name))
        groups.append(Group(name, span.positions))
    return groups


def _parts(spans: Spans, by: str) -> list[Group]:
    """Prefix, image, question and suffix; the image whole, or divided."""
    image = spans["image"]
    if by in ("image_row", "tile") and not len(image):
        raise SpanError(f'by={by!r} divides the image, but the prompt has none: by="span".')
    text = ["prefix", "question", "suffix"]
    if "generated" in spans.named and spans.named["generated"].each:
        text.append("generated")
    groups = [Group(name, tuple(spans[name])) for name in text]
    if by == "text_token":
        groups = [_alone(spans, position) for name in text for position in spans[name]]
    several = len(image.images) > 1
    for number in range(len(image.images)):
        picture, label = image[number], f"image[{number}]" if several else "image"
        if by in ("span", "text_token"):
            groups.append(Group(label, picture.positions))
            continue
        by_part: dict[str, list[int]] = {}
        for position, place in zip(picture.positions, picture.places(), strict=True):
            if place.kind != "patch":
                part = place.kind
            elif by == "image_row":
                part = f"row {place.row}" if place.view == "image" else f"{place.view} row {place.row}"
            else:
                part = "base" if place.tile is None else f"tile[{place.tile}]"
            by_part.setdefault(part, []).append(position)
        groups += [Group(f"{label} {part}", tuple(positions)) for part, positions in by_part.items()]
    return sorted((group for group in groups if group.positions), key=lambda group: group.positions[0])
