"""The spans of one row, found by name, by expression and by text; prints itself as a table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from nnsight_mmflow._errors import SpanError
from nnsight_mmflow._kinds import came
from nnsight_mmflow._later import later
from nnsight_mmflow.spans.expressions import Expression
from nnsight_mmflow.spans.grammar import check_expression, check_name
from nnsight_mmflow.spans.in_pixels import SHARE, InPixels, in_pixels
from nnsight_mmflow.spans.span import Span, ranges
from nnsight_mmflow.spans.views import Box

NEEDS = {  # spans that are there where the prompt was given these
    **dict.fromkeys(("object", "other"), "boxes"),
    **dict.fromkeys(("true_option", "false_option", "question_without_options"), "options"),
}


@dataclass(frozen=True)
class Spans:
    """All spans of one row.

    `prefix`, `image`, `question` and `suffix` partition the real positions; `last` is the last one, `all` is all.
    An expression works wherever a name does: "image[0]", "question | suffix", "~image", "question - text('red')",
    "image[0].tile[2]", "image.base".

    Attributes:
        named: the spans by name.
        tokens: the token at each position of the row, padding included.
        offsets: (start, end) of each token in `prompt_text`; equal numbers for padding and added tokens.
        prompt_text: the prompt, its images as placeholders.
        question: (start, end) of the question in `prompt_text`.
        after_images: where the text after the last image starts in `prompt_text`.
        boxes: what the question is about; with them `object` and `other` (the rest of the image) are spans too.
        options: (true, false); with them `true_option`, `false_option` and `question_without_options` are.
        given: by name what a span was named by, if not as a Span: boxes and masks, or text.
    """

    named: dict[str, Span]
    tokens: tuple[str, ...] = field(repr=False)
    offsets: tuple[tuple[int, int], ...] = field(repr=False)
    prompt_text: str = ""
    question: tuple[int, int] = (0, 0)
    after_images: int = 0
    boxes: tuple[Box, ...] = field(default=(), repr=False, compare=False, metadata={"identity": False})
    options: tuple[str, str] | None = field(default=None, repr=False, compare=False, metadata={"identity": False})
    given: Mapping[str, InPixels | str] = field(
        default_factory=dict, repr=False, compare=False, metadata={"identity": False}
    )

    def __getitem__(self, expression: str) -> Span:
        """The span of that name or expression.

        Raises:
            SpanError: there is no such name, or the expression cannot be read; the names there are, are listed.
        """
        if not isinstance(expression, str):
            raise SpanError(
                f"a span is named by text, such as 'image', but {came(expression)} came. {self._there_are()}"
            )
        if expression in self.named:
            return self.named[expression]
        if expression in NEEDS:
            return self.about(expression)
        return Expression(expression, self._by_name, self.text, self._there_are()).span()

    def _by_name(self, name: str) -> Span | None:
        """The span of that name alone; None if there is none."""
        if name in self.named:
            return self.named[name]
        return self.about(name) if name in NEEDS else None

    def __iter__(self) -> Iterator[str]:
        return iter(self.named)

    def __contains__(self, name: object) -> bool:
        return name in self.named

    def having(self, *, share: object = SHARE, **spans: object) -> Spans:
        """The same spans and these beside them, under the names given, which every experiment and pattern then takes.

        A span is named by

        - a Span, or an expression: `rest="image - sky"`;
        - words: `object="red circle"`, the tokens of the words, as `spans.text` finds them;
        - a box (x0, y0, x1, y1) in pixels of the picture, or a list of boxes;
        - a mask: a boolean picture (height, width), as a numpy array, a torch tensor or a PIL picture, such as a
          segmenter gives it;
        - with several pictures, boxes or a mask by the picture's number: `object={1: box}`; else it is the first.

        What is named in pixels is found again in a copy of the prompt about another picture of the same size.

        Args:
            share: how much of a token's own pixel box a mask must cover for the token to count.
            **spans: by name; an expression may use those before it.

        Raises:
            SpanError: a name that every prompt has already, or that cannot be written in an edge; or no token is found.

        Example:
            >>> import nnsight_mmflow as mmf
            >>> graph = mmf.load("nano")
            >>> spans = mmf.nano.prompts(graph, 1)[0].spans
            >>> spans = spans.having(corner=(0, 0, 16, 16), word="color", rest="image - corner")
            >>> len(spans["corner"]), len(spans["word"]), len(spans["rest"])
            (4, 1, 60)
        """
        made = self
        for name, value in spans.items():
            check_name(name)
            named = made.named
            if isinstance(value, Span):
                if value.row != named["all"].row:
                    raise SpanError(
                        f"{name} is the Span {value.name!r} of a row at {value.row}, this row is at {named['all'].row}:"
                        " take it from these spans."
                    )
                given = {other: how for other, how in made.given.items() if other != name}
                made = replace(made, named={**named, name: value}, given=given)
            else:
                how = value if isinstance(value, InPixels | str) else None
                if how is None:
                    how = in_pixels(name, value, named["image"], share)
                found = made._by_text(name, how) if isinstance(how, str) else how.found(name, named["image"])
                made = replace(made, named={**named, name: found}, given={**made.given, name: how})
        return made

    def _by_text(self, name: str, text: str) -> Span:
        """The span that a text names: an expression if it reads as one, else words."""
        try:
            check_expression(text, (*self.named, *NEEDS))
        except SpanError:
            try:
                return replace(self.text(text), name=name)
            except SpanError as error:
                raise SpanError(f"{name}={text!r} is no span's name or expression, and as words: {error}") from None
        return replace(self[text], name=name)

    def text(self, substring: str, index: int | None = None, *, match: str = "word") -> Span:
        """The tokens that cover a substring: of the question if it stands there, else of the whole prompt.

        Args:
            substring: the exact characters.
            index: which one, counted from 0, where it occurs more than once.
            match: "word" takes whole words where there are any; "first" takes the first hit after the images, even
                inside another word (the rule of the Cross-modal Information Flow code).

        Raises:
            SpanError: it does not occur, or occurs more than once and no index was given.
        """
        if not isinstance(substring, str) or not (index is None or type(index) is int):
            raise SpanError(f"spans.text takes a substring and a number, but {came(substring)}, {came(index)} came.")
        if not substring:
            raise SpanError("spans.text needs a substring, but got an empty one.")
        if match not in ("word", "first"):
            raise SpanError(f'match must be "word" or "first", not {match!r}.')
        if match == "first":
            starts = [self.prompt_text.find(substring, self.after_images)]
            starts = [start for start in starts if start >= 0]
        else:
            starts = self._occurrences(substring, *self.question) or self._occurrences(
                substring, 0, len(self.prompt_text)
            )
        if not starts:
            raise SpanError(f"{substring!r} does not occur in the prompt {self.prompt_text!r} (case counts).")
        if index is None and len(starts) > 1:
            near = [self.prompt_text[max(0, start - 12) : start + len(substring) + 12] for start in starts]
            raise SpanError(
                f"{substring!r} occurs {len(starts)} times: {near}. Say which, counted from 0: text({substring!r}, 0)."
            )
        if not 0 <= (index or 0) < len(starts):
            raise SpanError(f"text({substring!r}, {index}): it occurs {len(starts)} time(s), counted from 0.")
        start = starts[index or 0]
        asked = [repr(substring), *([] if index is None else [str(index)])]
        asked += [f"match={match!r}"] if match != "word" else []
        return self.covering(start, start + len(substring), f"text({', '.join(asked)})")

    def about(self, name: str) -> Span:
        """A span that the prompt's boxes or options name, whichever of NEEDS it is.

        Raises:
            SpanError: the prompt has none, or they are not found in it.

        Source: Cross-modal Information Flow in MLLMs (arXiv 2411.18620): object and other patches, the options.
        """
        if name == "other" and "object" in self.named:
            return replace(self.named["image"] - self.named["object"], name=name)
        if NEEDS[name] == "boxes":
            if not self.boxes or not self.named["image"]:
                raise SpanError(
                    f"{name!r}: the prompt {self._asked()} has no boxes: graph.prompt(..., boxes=((x0, y0, x1, y1),))"
                )
            inside = self["image[0]"].box(*self.boxes)
            return replace(inside if name == "object" else self.named["image"] - inside, name=name)
        if not self.options:
            raise SpanError(
                f"{name!r}: the prompt {self._asked()} has no options: graph.prompt(..., options=(true, false))"
            )
        true, false = (self._option(option) for option in self.options)
        spans = {"true_option": true, "false_option": false}
        return replace(spans.get(name) or self.named["question"] - true - false, name=name)

    def _option(self, option: str) -> Span:
        """The option's tokens in the question: whole words, the first of several."""
        option_span = self.text(option, 0)
        if not set(option_span) & set(self.named["question"]):
            raise SpanError(f"option {option!r} does not stand in the question {self._asked()}.")
        return option_span

    def covering(self, start: int, end: int, name: str) -> Span:
        """The tokens that overlap characters start to end of the prompt's text (image tokens never do)."""
        image, everything = self.named["image"], self.named["all"]
        positions = tuple(
            position
            for position in everything
            if max(start, self.offsets[position][0]) < min(end, self.offsets[position][1]) and position not in image
        )
        if not positions:
            raise SpanError(f"no token covers {self.prompt_text[start:end]!r} (characters {start} to {end}).")
        return Span(name, positions, everything.row)

    def table(self) -> list[tuple[str, str, int, str, str]]:
        """(name, positions, count, first token, last token) of each span."""
        rows = []
        for name, span in self.named.items():
            ends = (self.tokens[span.positions[0]], self.tokens[span.positions[-1]]) if span.positions else ("", "")
            rows.append((name, ranges(span.positions), len(span), *ends))
        return rows

    def __str__(self) -> str:
        rows = [("span", "positions", "count", "first token", "last token")]
        rows += [(name, where, str(count), repr(a), repr(b)) for name, where, count, a, b in self.table()]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:

        return later("spans_html")(self)

    def _asked(self) -> str:
        """The question, as a message quotes it: among many prompts it tells which."""
        start, end = self.question
        return repr(self.prompt_text[start:end])

    def _there_are(self) -> str:
        named = f"There are: {', '.join(self.named)}; joined by |, &, -, ~, and text('...')"
        return f"{named}. (In the prompt {self._asked()}.)"

    def _occurrences(self, substring: str, start: int, end: int) -> list[int]:
        """Where it occurs in that part of the prompt: whole words if there are any, else every hit."""
        part, plain = self.prompt_text[start:end], re.escape(substring)
        whole = [hit.start() + start for hit in re.finditer(rf"(?<!\w){plain}(?!\w)", part)]
        return whole or [hit.start() + start for hit in re.finditer(plain, part)]
