"""Tokens coloured by a number each, drawn by CircuitsVis; and the knockout of one token after another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.patterns.attention.result import AttentionResult
from nnsight_mmflow.patterns.lens import LensResult
from nnsight_mmflow.prompts.continued import in_row
from nnsight_mmflow.show.generated import by_token
from nnsight_mmflow.show.pages.circuits import LIGHT_BLUE, ORANGE, circuits, circuits_page
from nnsight_mmflow.show.pages.slides import pages_slider
from nnsight_mmflow.show.token_values import values_of
from nnsight_mmflow.spans.span import Span

if TYPE_CHECKING:
    from nnsight_mmflow._page import Page
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.show.token_values import Values

MOST_TOKENS = 500
STARTS = {"\u2581": " ", "\u0120": " ", "\u010a": "\n"}  # how tokenizers write a space and a line's end


@checked
def tokens(
    prompt: Prompt,
    values: Values,
    *,
    at: str | Span = "question",
    label: str = "",
    layer: int | None = None,
    column: str | None = None,
    max_value: float | int | None = None,
) -> Page:
    """A page on which CircuitsVis shows the tokens of a span, each coloured by its value; notebooks show it.

    Values of both signs get orange (below 0) and blue (above), values of one sign that colour alone; white is 0. The
    scale is stated, every number stands in a table below. `page.save(file)` writes a file that opens anywhere. Of
    attention and contributions with generated tokens a slider goes from one to the next, on one scale.

    Args:
        prompt: the prompt whose words are coloured.
        values: numbers by position, or one per token of the span (list, array, tensor); or a result that holds them:
            what `mmf.attention`, `mmf.contributions`, `mmf.lens` and `mmf.knockout_by_token` return.
        at: the span whose tokens are shown.
        label: what the values are; told by the result if one is given.
        layer: of a result; None: summed over layers (contributions), mean over layers (attention), the lowest of all
            layers (knockout).
        column: of a result's table: "norm" (contributions), "answer_lower" (lens), "change_percent" (knockout) unless
            given.
        max_value: the size that has the full colour; the largest one shown unless given.

    Raises:
        MMFlowError: values that do not fit the tokens, or CircuitsVis is missing.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> prompt = mmf.nano.prompts(graph, 1)[0]
        >>> taken = mmf.contributions(graph, prompt, "question", "last", progress=False)
        >>> print(str(mmf.show.tokens(prompt, taken)).splitlines()[0])
        question: contributions, norm, summed over layers
    """
    circuits()
    if isinstance(values, AttentionResult) and values.is_of(prompt):
        prompt = values.whole(prompt)
    here = in_row(at, prompt.continues or prompt, prompt)
    span = here if isinstance(here, Span) else prompt.spans[here]
    parts = [] if isinstance(values, LensResult) else by_token(values, prompt)
    if not parts:
        return _page(prompt, span, values, layer, column, label, max_value)
    drawn = [(name, values_of(prompt, span, part, layer, column)[0]) for name, part in parts]
    ends = max_value or max(abs(one) for _, numbers in drawn for one in numbers) or None
    pages = [(name, _page(prompt, span, part, layer, column, label, max_value, ends)) for name, part in parts]
    return pages_slider(pages, f"{span.name}: generated tokens")


def _page(
    prompt: Prompt,
    span: Span,
    values: Values,
    layer: int | None,
    column: str | None,
    label: str,
    max_value: float | int | None,
    common: float | int | None = None,
) -> Page:
    """One picture of the tokens; `common` is where a scale ends that several share."""
    from circuitsvis.tokens import colored_tokens

    if not len(span):
        raise NoEffectError(f"{span.name!r} holds no position of this prompt: there is nothing to show.")
    if len(span) > MOST_TOKENS:
        raise MMFlowError(
            f"{span.name!r} has {len(span)} tokens; at most {MOST_TOKENS} are shown as text. For image tokens draw on"
            " the picture; or name a part: at=."
        )
    numbers, told = values_of(prompt, span, values, layer, column)
    label = label or told
    ends = common if max_value is None else max_value
    largest = max(map(abs, numbers)) if ends is None else float(ends)
    if not 0 < largest < float("inf"):
        raise MMFlowError(f"every value is 0, or max_value={max_value}: no colour can be told from another.")
    tokens = [_readable(prompt.spans.tokens[position]) for position in span]
    drawn = colored_tokens(
        [_as_text(token) for token in tokens],
        numbers,
        min_value=-largest,
        max_value=largest,
        negative_color=ORANGE,
        positive_color=LIGHT_BLUE,
    )
    title = f"{span.name}: {label}"
    rows = list(zip(span, tokens, numbers, strict=True))
    below = "".join(f'<p class="note">{escape(line)}</p>' for line in _scale(numbers, largest, max_value)) + _table(
        rows
    )
    text = "\n".join([title, *(f"{number:12.4g}  {token!r} ({position})" for position, token, number in rows)])
    return circuits_page(drawn, title, f"<h1>{escape(title)}</h1>", below, text)


def _readable(token: str) -> str:
    return re.sub("[\u2581\u0120\u010a]", lambda match: STARTS[match[0]], token)


def _as_text(token: str) -> str:
    """The token such that it shows as itself: CircuitsVis writes tokens as HTML.

    An invisible word joiner behind "<" and "&" makes neither a tag nor an entity of them; in the token's tooltip, which
    is written as text, entities would show as they are.
    """
    return re.sub("[<&]", "\\g<0>\u2060", token)


def _scale(numbers: Sequence[float], largest: float, asked: float | int | None) -> list[str]:
    low, high = min(numbers), max(numbers)
    full = f"{largest:.3g}{'' if asked is None else ', as asked for'}"
    if low < 0 < high:
        scale = f"Full orange is -{full}, full blue +{full}; white is 0."
    else:
        scale = f"Full {'orange is -' if low < 0 else 'blue is '}{full}; white is 0."
    shown = [scale, f"{len(numbers)} tokens, from {low:.3g} to {high:.3g}; hover over one for its number."]
    beyond = sum(abs(number) > largest for number in numbers)
    return [*shown, f"{beyond} lie beyond the scale."] if beyond else shown


def _table(rows: Sequence[tuple[int, str, float]]) -> str:
    cells = "".join(
        f"<tr><td class='number'>{position}</td><td><code>{escape(repr(token)[1:-1])}</code></td>"
        f"<td class='number'>{number:.4g}</td></tr>"
        for position, token, number in rows
    )
    head = "<tr><th class='number'>position</th><th>token</th><th class='number'>value</th></tr>"
    return f"<table>{head}{cells}</table>"
