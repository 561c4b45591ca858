"""Attention between groups of positions, drawn by CircuitsVis: axes named, scale stated, sinks marked, size limited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.patterns.attention.result import SINK, AttentionResult
from nnsight_mmflow.show.attention_mass import DrawnAttention, drawn_attention
from nnsight_mmflow.show.generated import token_label
from nnsight_mmflow.show.pages.circuits import BLUE, circuits, circuits_page
from nnsight_mmflow.show.pages.slides import pages_slider
from nnsight_mmflow.spans.groups import Grouping
from nnsight_mmflow.spans.span import ranges

if TYPE_CHECKING:
    from nnsight_mmflow._page import Page
    from nnsight_mmflow.bridge.span_cache import SpanCache
    from nnsight_mmflow.patterns.attention_and_effect import AttentionAndEffectResult
    from nnsight_mmflow.prompts.prompt import Prompt

# 2026-11-28, headless Chromium 900 px wide, two cores: 32 heads x 30 groups open in 2.3 s, 8 x 60 in 2.4 s, 1 x 150 in
# 2.9 s, 32 x 40 in 5.3 s, 8 x 100 in 4.6 s. The chosen head is drawn a second time, large.
MOST_CELLS = 30_000
MOST_GROUPS = 120
LONGEST = 18  # letters of a label
OWN_SCALE = ", the largest cell of rows that read more than one group"
FEW_HEADS = 12  # more are shown smaller, so that the chosen head stays in sight below them
SMALL = "#drawn > div > div:first-of-type > div { flex: 0 0 8.33% !important; max-width: 8.33% !important; }"
CELL = "mean over a row's targets of the attention that they give to all sources of the column together"


@checked
def attention(
    what: AttentionResult | SpanCache | torch.Tensor,
    layer: int,
    *,
    prompt: Prompt | None = None,
    by: Grouping = "span",
    heads: Sequence[int] | None = None,
    max_value: float | int | None = None,
    effect: AttentionAndEffectResult | None = None,
) -> Page:
    """A page on which CircuitsVis shows each head's attention between groups of positions; notebooks show it.

    Rows are targets, columns sources, the same groups on both. A cell is attention mass: the mean over the row's
    targets of the sum over the column's sources, so that each row sums to 1 where all sources are drawn. The first
    picture is the mean over heads. `page.save(file)` writes a file that opens anywhere; nothing is ever fetched.
    Maps with generated tokens get a slider: first all of them, then each alone (of the rows, the others are empty).

    Args:
        what: AttentionResult; a SpanCache of a TransformerLens run (pooled already); or a tensor (heads, queries, keys)
            with `prompt`.
        layer: the layer whose attention is drawn.
        prompt: what a tensor or a SpanCache is of.
        by: how positions are grouped: "span", "image_row", "tile", "text_token", "token", or names with spans, such as
            {"object": prompt.spans["image"].box(...), "rest": ...}.
        heads: which; all unless given.
        max_value: the mass that has the full colour; the largest one unless given, rows that read a single group aside.
        effect: what mmf.attention_and_effect returned: the causal effect of an edge stands below the map.

    Raises:
        MMFlowError: a wrong shape, more cells than a browser opens in three seconds, or CircuitsVis is missing.
        SpanError: groups that overlap, hold nothing, or leave out what is drawn.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> prompt = mmf.nano.prompts(graph, 1)[0]
        >>> page = mmf.show.attention(mmf.attention(graph, prompt, layers=6), 6)
        >>> print(str(page).splitlines()[0])
        nano, layer 6: attention mass by group, mean of 4 heads, percent; rows are targets, columns sources
    """
    circuits()
    if isinstance(what, AttentionResult) and what.tokens_read:
        return _by_token(what, layer, prompt, by, heads, max_value, effect)
    return _page(what, layer, prompt, by, heads, max_value, effect)


def _by_token(
    maps: AttentionResult,
    layer: int,
    prompt: Prompt | None,
    by: Grouping,
    heads: Sequence[int] | None,
    max_value: float | int | None,
    effect: AttentionAndEffectResult | None,
) -> Page:
    """All targets, then the prompt's with one generated token after another."""
    asked = [position for position in maps.targets if position not in maps.generated]
    cuts = [(token_label(maps, k), maps.rows([*asked, maps.generated[k]], token=k)) for k in maps.tokens_read]
    parts, scale = [("all", maps), *cuts], max_value
    if scale is None:  # one for all of them
        scale = max(_largest(_with_mean(drawn_attention(one, layer, prompt, by, heads))) for _, one in parts)
    pages = [(name, _page(one, layer, prompt, by, heads, scale, effect, own=max_value is None)) for name, one in parts]
    return pages_slider(pages, f"attention of generated tokens, layer {layer}")


def _page(
    what: AttentionResult | SpanCache | torch.Tensor,
    layer: int,
    prompt: Prompt | None,
    by: Grouping,
    heads: Sequence[int] | None,
    max_value: float | int | None,
    effect: AttentionAndEffectResult | None,
    own: bool | None = None,
) -> Page:
    """One picture of all heads; `own`: the scale is that of the numbers, and not one that was asked for."""
    from circuitsvis.attention import attention_heads

    drawn = drawn_attention(what, layer, prompt, by, heads)
    _check_size(drawn)
    small = len(drawn.heads) > FEW_HEADS
    mass, names = _with_mean(drawn), [f"{'' if small else 'head '}{head}" for head in drawn.heads]
    if len(names) > 1:
        names = ["mean", *names]
    largest = _largest(mass) if max_value is None else float(max_value)
    if not 0 < largest < float("inf"):
        raise MMFlowError(f"max_value={largest:g}: the full colour stands for a mass above 0.")
    picture = attention_heads(
        mass,
        [
            axis_name(group.name.removesuffix(f" ({max(group.positions, default='')})"), bool(sinks))
            for group, sinks in zip(drawn.groups, drawn.sinks or [()] * len(drawn.groups), strict=True)
        ],
        names,
        max_value=largest,
        min_value=-largest,
        positive_color=BLUE,
        mask_upper_tri=False,  # a group may hold positions on both sides of another
    )
    title = f"{drawn.model + ', ' if drawn.model else ''}layer {layer}"
    above = f"<h1>{escape(title)}: attention mass, {len(drawn.heads)} head(s), {len(drawn.groups)} groups</h1>"
    below = _caption(drawn, largest, max_value is None if own is None else own) + _table(drawn)
    if effect is not None:
        below += effect.beside(layer)
    page = circuits_page(picture, f"attention, {title}", above, below, _as_text(drawn, title))
    return replace(page, style=page.style + SMALL) if small else page


def _with_mean(drawn: DrawnAttention) -> torch.Tensor:
    """The mass of each head, the mean over heads before them where there are several."""
    mass = drawn.mass
    return torch.cat([mass.mean(0, keepdim=True), mass]) if len(mass) > 1 else mass


def axis_name(name: str, marked: bool = False) -> str:
    """A label that fits the axis, without spaces: CircuitsVis takes all of them out."""
    joined = "_".join(name.split())
    return (joined if len(joined) <= LONGEST else joined[: LONGEST - 1] + "\u2026") + ("*" if marked else "")


def _largest(mass: torch.Tensor) -> float:
    """The largest cell of the rows that read more than one group: the first token can but give all to itself."""
    free = ((mass > 0).any(0).sum(-1) > 1).nonzero().flatten()
    return float(mass[:, free].max()) if len(free) else float(mass.max())


def _check_size(drawn: DrawnAttention) -> None:
    groups, pictures = len(drawn.groups), len(drawn.heads) + (2 if len(drawn.heads) > 1 else 1)
    if groups > MOST_GROUPS or pictures * groups * groups > MOST_CELLS:
        raise MMFlowError(
            f"{len(drawn.heads)} heads x {groups} x {groups} groups are more than a browser opens in about 3 s (at most"
            f" {MOST_GROUPS} groups, and {MOST_CELLS} cells, the mean and the chosen head counted too). Pool further:"
            ' by="image_row" or by="span", or names with spans; or draw fewer heads: heads=[0].'
        )


def _caption(drawn: DrawnAttention, largest: float, own: bool) -> str:
    lines = [
        f"A cell is the {CELL}.",
        f"Full colour is {largest:.3g}{OWN_SCALE if own else ', as asked for'}; white is 0.",
        "Rows (CircuitsVis: destination) read columns (source); numbers in brackets count the groups as in the table.",
    ]
    common = float(drawn.mass.amax((0, 2)).median())
    if own and 4 * common < largest:
        lines.append(f"Most rows reach {common:.2g} at most: max_value={common:.2g} would show more of them.")
    empty = sum(count == 0 for count in drawn.targets)
    if empty:
        lines.append(f"{empty} row(s) are empty: no position of theirs was read as a target.")
    if drawn.sinks is None:
        lines.append("Attention sinks cannot be told from pooled weights.")
    elif any(drawn.sinks):
        lines.append(f"* holds attention sinks: most later positions give them more than {SINK:g} times an even share.")
    else:
        lines.append("No position is an attention sink in this layer.")
    lines += [f"Note: {note}." for note in drawn.notes]
    lines.append(f"At most {MOST_GROUPS} groups and {MOST_CELLS} cells are drawn.")
    return "".join(f'<p class="note">{escape(line)}</p>' for line in lines)


def _table(drawn: DrawnAttention) -> str:
    mean = drawn.mass.mean(0)
    weights = torch.tensor([float(count or 0) for count in drawn.targets])
    received = (mean * weights[:, None]).sum(0) / weights.sum() if float(weights.sum()) else None
    names = ("group", "name", "positions", "targets", "sources", "mass received", "sinks")
    left = ("name", "positions", "sinks")
    head = "".join(f"<th{'' if name in left else ' class=number'}>{name}</th>" for name in names)
    rows = []
    for at, group in enumerate(drawn.groups):
        sinks = drawn.sinks[at] if drawn.sinks is not None else ()
        shown = ", ".join(map(str, sinks[:6])) + (" ..." if len(sinks) > 6 else "")
        cells = [
            f"<td class='number'>({at})</td><td>{escape(group.name)}</td><td>{ranges(group.positions)}</td>",
            *(f"<td class='number'>{'?' if count is None else count}</td>" for count in _counts(drawn, at)),
            f"<td class='number'>{'' if received is None else f'{float(received[at]):.1%}'}</td>",
            f"<td>{escape(shown)}</td>",
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _counts(drawn: DrawnAttention, at: int) -> tuple[int | None, int | None]:
    return drawn.targets[at], drawn.sources[at]


def _as_text(drawn: DrawnAttention, title: str) -> str:
    """The mean over heads as a table of percentages."""
    mean = drawn.mass.mean(0)
    first = f"{title}: attention mass by group, mean of {len(drawn.heads)} heads, percent; rows are targets, columns"
    lines = [f"{first} sources"]
    if len(drawn.groups) > 12:
        cells = [(float(mean[i, j]), i, j) for i in range(len(mean)) for j in range(len(mean))]
        for value, i, j in sorted(cells, reverse=True)[:12]:
            lines.append(f"{100 * value:6.1f}  {drawn.groups[j].name} -> {drawn.groups[i].name}")
        return "\n".join([*lines, f"(the 12 largest of {len(cells)} cells)"])
    names = [group.name for group in drawn.groups]
    wide = max(map(len, names))
    lines.append(" " * wide + "".join(f"  {name:>6}" for name in names))
    for at, name in enumerate(names):
        values = "".join(
            f"  {'-' if drawn.targets[at] == 0 else f'{100 * float(mean[at, to]):.1f}':>{max(6, len(names[to]))}}"
            for to in range(len(names))
        )
        lines.append(f"{name:<{wide}}{values}")
    return "\n".join(lines)
