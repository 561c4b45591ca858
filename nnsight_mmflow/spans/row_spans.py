"""The spans of one row, found by name, by expression and by text; prints itself as a table."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from nnsight_mmflow._errors import SpanError
from nnsight_mmflow._kinds import came
from nnsight_mmflow._later import later
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
    """

    named: dict[str, Span]
    tokens: tuple[str, ...] = field(repr=False)
    offsets: tuple[tuple[int, int], ...] = field(repr=False)
    prompt_text: str = ""
    question: tuple[int, int] = (0, 0)
    after_images: int = 0
    boxes: tuple[Box, ...] = field(default=(), repr=False, compare=False, metadata={"identity": False})
    options: tuple[str, str] | None = field(default=None, repr=False, compare=False, metadata={"identity": False})

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
        try:
            tree = ast.parse(expression.strip(), mode="eval").body
        except (SyntaxError, AttributeError, TypeError) as error:
            raise SpanError(f"{expression!r} is no span expression ({error}). {self._there_are()}") from None
        return self._evaluate(tree, expression)

    def __iter__(self) -> Iterator[str]:
        return iter(self.named)

    def __contains__(self, name: object) -> bool:
        return name in self.named

    def having(self, **spans: Span) -> Spans:
        """The same spans and these beside them, under the names given."""
        for name, span in spans.items():
            if not isinstance(span, Span):
                raise SpanError(f"{name} is to be a Span, such as spans['image'], but {came(span)} came.")
        return replace(self, named={**self.named, **spans})

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
        if NEEDS[name] == "boxes":
            if not self.boxes or not self.named["image"]:
                raise SpanError("the prompt has no boxes: graph.prompt(..., boxes=((x0, y0, x1, y1),))")
            inside = self["image[0]"].box(*self.boxes)
            return replace(inside if name == "object" else self.named["image"] - inside, name=name)
        if not self.options:
            raise SpanError("the prompt has no options: graph.prompt(..., options=(true, false))")
        true, false = (self._option(option) for option in self.options)
        spans = {"true_option": true, "false_option": false}
        return replace(spans.get(name) or self.named["question"] - true - false, name=name)

    def _option(self, option: str) -> Span:
        """The option's tokens in the question: whole words, the first of several."""
        start, end = self.question
        option_span = self.text(option, 0)
        if not set(option_span) & set(self.named["question"]):
            raise SpanError(f"option {option!r} does not stand in the question {self.prompt_text[start:end]!r}.")
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

    def _there_are(self) -> str:
        return f"There are: {', '.join(self.named)}; joined by |, &, -, ~, and text('...')."

    def _occurrences(self, substring: str, start: int, end: int) -> list[int]:
        """Where it occurs in that part of the prompt: whole words if there are any, else every hit."""
        part, plain = self.prompt_text[start:end], re.escape(substring)
        whole = [hit.start() + start for hit in re.finditer(rf"(?<!\w){plain}(?!\w)", part)]
        return whole or [hit.start() + start for hit in re.finditer(plain, part)]

    def _text_call(self, call: ast.Call) -> Span:
        """A text(...) inside an expression, its arguments checked."""
        form = "text takes a substring, and perhaps index= (a number) and match=: text('red'), text('the', 1)"
        try:
            values = [ast.literal_eval(argument) for argument in call.args]
            named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        except ValueError:
            raise SpanError(f"{ast.unparse(call)!r} cannot be read: {form}.") from None
        given = {**dict(zip(("substring", "index"), values, strict=False)), **named}
        index = given.get("index")
        fits = (
            len(values) <= 2
            and len(given) == len(values) + len(named)
            and set(given) <= {"substring", "index", "match"}
            and isinstance(given.get("substring"), str)
            and (index is None or type(index) is int)
            and isinstance(given.get("match", "word"), str)
        )
        if not fits:
            raise SpanError(f"{ast.unparse(call)!r} cannot be read: {form}.")
        return self.text(given["substring"], index, match=given.get("match", "word"))

    def _box_call(self, call: ast.Call, called: ast.Attribute, expression: str) -> Span:
        """A .box(...) inside an expression: boxes in pixels, (x0, y0, x1, y1) each."""
        try:
            boxes = [ast.literal_eval(argument) for argument in call.args]
            named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        except ValueError:
            boxes, named = [], {}
        if not boxes or set(named) - {"rule"}:
            raise SpanError(f"{ast.unparse(call)!r} cannot be read: boxes are numbers: image.box((0, 0, 9, 9)).")
        return self._evaluate(called.value, expression).box(*boxes, **named)

    def _tile(self, tree: ast.Attribute, expression: str, number: int) -> Span:
        image = self._evaluate(tree.value, expression)
        tiles = image.tile
        if not 0 <= number < len(tiles):
            raise SpanError(f"{image.name}.tile[{number}] was asked for, but it has {len(tiles)}, counted from 0.")
        return tiles[number]

    def _evaluate(self, tree: ast.expr, expression: str) -> Span:
        if isinstance(tree, ast.Name) and tree.id in self.named:
            return self.named[tree.id]
        if isinstance(tree, ast.BinOp):
            left, right = self._evaluate(tree.left, expression), self._evaluate(tree.right, expression)
            if isinstance(tree.op, ast.BitOr):
                return left | right
            if isinstance(tree.op, ast.BitAnd):
                return left & right
            if isinstance(tree.op, ast.Sub):
                return left - right
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Invert):
            return ~self._evaluate(tree.operand, expression)
        if (
            isinstance(tree, ast.Subscript)
            and isinstance(tree.slice, ast.Constant)
            and isinstance(tree.slice.value, int)
        ):
            if isinstance(tree.value, ast.Attribute) and tree.value.attr == "tile":
                return self._tile(tree.value, expression, tree.slice.value)
            return self._evaluate(tree.value, expression)[tree.slice.value]
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "text":
            return self._text_call(tree)
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Attribute) and tree.func.attr == "box":
            return self._box_call(tree, tree.func, expression)
        if isinstance(tree, ast.Name) and tree.id in NEEDS:
            return self.about(tree.id)
        if isinstance(tree, ast.Attribute) and tree.attr in ("base", "newline", "separator"):
            return getattr(self._evaluate(tree.value, expression), tree.attr)
        raise SpanError(f"{expression!r} is no span: {ast.unparse(tree)!r} is not known. {self._there_are()}")
