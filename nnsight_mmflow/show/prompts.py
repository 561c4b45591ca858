"""Prompts, batches and spans as notebooks show them: the picture, the text in the colours of its spans, a table."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from nnsight_mmflow.show.colors import PALE, SPAN_COLORS, span_color
from nnsight_mmflow.show.html import INK, Markup, box, heading, swatch, table, thumbnail
from nnsight_mmflow.spans.span import ranges

if TYPE_CHECKING:
    from nnsight_mmflow.prompts.prompt import Batch, Prompt
    from nnsight_mmflow.spans.row_spans import Spans
    from nnsight_mmflow.spans.span import Span

PARTS = ("prefix", "image", "question", "suffix")
HEAD = ("span", "positions", "count", "first token", "last token")


def prompt_html(prompt: Prompt) -> str:
    """Pictures, text, spans, and what is known of the answer."""
    known = {"answer": prompt.answer, "options": prompt.options, "boxes (pixels)": prompt.boxes or None}
    facts = ", ".join(f"{name}: {value}" for name, value in known.items() if value is not None)
    pictures = "".join(
        thumbnail(picture, f"image {number} of the prompt, {picture.width} x {picture.height} pixels")
        for number, picture in enumerate(prompt.images)
    )
    return box(
        heading(f"Prompt: {len(prompt)} positions", facts),
        f'<div style="{INK}">{pictures}</div>',
        chips(prompt.spans),
        span_table(prompt.spans),
    )


def batch_html(batch: Batch) -> str:
    """A row per prompt."""
    rows = []
    for number, (prompt, spans) in enumerate(zip(batch.prompts, batch.spans, strict=True)):
        first, end = spans["all"].row
        pictures = "".join(thumbnail(picture, f"image of row {number}", 56) for picture in prompt.images)
        answer = "" if prompt.answer is None else prompt.answer
        rows.append((number, Markup(pictures), prompt.question, answer, end - first, first, len(spans["image"])))
    head = ("row", "image", "question", "answer", "positions", "padding before", "image tokens")
    length = batch.inputs["input_ids"].shape[1]
    return box(heading(f"Batch: {len(batch)} prompts, padded on the left to {length} positions"), table(head, rows))


def spans_html(spans: Spans) -> str:
    """The text in the colours of its spans, and the table."""
    return box(chips(spans), span_table(spans))


def span_html(span: Span, name: str | None = None) -> str:
    """A row: name, positions, count, of how many images."""
    row = (swatch(span_color(span.name), name or span.name), ranges(span.positions), len(span), len(span.images))
    return box(table(("span", "positions", "count", "images it may hold tokens of"), [row]))


def span_table(spans: Spans) -> str:
    """Name, positions, count, first and last token of each span."""
    rows = []
    for name, where, count, first, last in spans.table():
        color = "#ffffff" if name == "all" else span_color(name)
        rows.append((swatch(color, name), where, count, repr(first), repr(last)))
    return table(HEAD, rows)


def chips(spans: Spans) -> str:
    """The prompt from left to right: a chip for each stretch of one span, an image's with the number of its tokens."""
    drawn = "".join(_chip(spans, name, held) for name, held in stretches(spans))
    return f'<div style="{INK};line-height:2.1;margin:4px 0">{drawn}</div>'


def stretches(spans: Spans) -> list[tuple[str, list[int]]]:
    """(span, positions) from left to right; "last" is a stretch of its own, an image is one with what stands in it."""
    part = {position: name for name in PARTS for position in spans[name]}
    inside = {
        position: f"image[{image.number}]" if len(spans["image"].images) > 1 else "image"
        for image in spans["image"].images
        for position in range(min(image.positions), max(image.positions) + 1)
    }
    last = spans["last"].positions[0]
    runs: list[tuple[str, list[int]]] = []
    for position in spans["all"]:
        name = "last" if position == last else inside.get(position, part.get(position, "prefix"))
        if not runs or runs[-1][0] != name:
            runs.append((name, []))
        runs[-1][1].append(position)
    return runs


def _chip(spans: Spans, name: str, held: list[int]) -> str:
    """One stretch: its span's name, and its text."""
    base = name.partition("[")[0]
    inside = f"{len(held)} tokens" if base == "image" else _text(spans, held)
    color = SPAN_COLORS[base]
    style = (
        f"color:#111;background:{PALE[base]};border-bottom:3px solid {color};border-radius:3px;padding:1px 5px;"
        "margin-right:3px;white-space:pre-wrap"
    )
    where = f"{name}: positions {ranges(tuple(held))}"
    label = f'<span style="color:#444;background:{PALE[base]};font-size:10px">{escape(name)} </span>'
    return f'<span title="{escape(where)}" style="{style}">{label}{escape(inside)}</span>'


def _text(spans: Spans, held: list[int]) -> str:
    """The characters under some positions; the tokens themselves where they stand for none."""
    offsets = [spans.offsets[position] for position in held]
    real = [(start, end) for start, end in offsets if end > start]
    written = spans.prompt_text[real[0][0] : real[-1][1]] if real else ""
    if not written.strip():
        written = "".join(spans.tokens[position] for position in held)
    return written.replace("\n", "⏎").strip(" ") or "␣"
