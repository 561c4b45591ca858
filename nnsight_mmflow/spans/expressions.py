"""Expressions over spans: "question | suffix", "image[0].tile[2]", "image - text('red')", "image.box((0, 0, 9, 9))"."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass

from nnsight_mmflow._errors import SpanError
from nnsight_mmflow.spans.span import Span


@dataclass(frozen=True)
class Expression:
    """An expression, and what it is read by.

    Attributes:
        written: as it came.
        by_name: the span of a name; None where there is none.
        text: the tokens of words, as `Spans.text`.
        there_are: which names there are, for messages.
    """

    written: str
    by_name: Callable[[str], Span | None]
    text: Callable[..., Span]
    there_are: str

    def span(self) -> Span:
        """What it means.

        Raises:
            SpanError: it cannot be read, or names what is not there.
        """
        try:
            tree = ast.parse(self.written.strip(), mode="eval").body
        except (SyntaxError, AttributeError, TypeError) as error:
            raise SpanError(f"{self.written!r} is no span expression ({error}). {self.there_are}") from None
        return self._evaluate(tree)

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

    def _box_call(self, call: ast.Call, called: ast.Attribute) -> Span:
        """A .box(...) inside an expression: boxes in pixels, (x0, y0, x1, y1) each."""
        try:
            boxes = [ast.literal_eval(argument) for argument in call.args]
            named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        except ValueError:
            boxes, named = [], {}
        if not boxes or set(named) - {"rule"}:
            raise SpanError(f"{ast.unparse(call)!r} cannot be read: boxes are numbers: image.box((0, 0, 9, 9)).")
        return self._evaluate(called.value).box(*boxes, **named)

    def _tile(self, tree: ast.Attribute, number: int) -> Span:
        image = self._evaluate(tree.value)
        tiles = image.tile
        if not 0 <= number < len(tiles):
            raise SpanError(f"{image.name}.tile[{number}] was asked for, but it has {len(tiles)}, counted from 0.")
        return tiles[number]

    def _evaluate(self, tree: ast.expr) -> Span:
        if isinstance(tree, ast.Name):
            found = self.by_name(tree.id)
            if found is not None:
                return found
        if isinstance(tree, ast.BinOp):
            left, right = self._evaluate(tree.left), self._evaluate(tree.right)
            if isinstance(tree.op, ast.BitOr):
                return left | right
            if isinstance(tree.op, ast.BitAnd):
                return left & right
            if isinstance(tree.op, ast.Sub):
                return left - right
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Invert):
            return ~self._evaluate(tree.operand)
        if (
            isinstance(tree, ast.Subscript)
            and isinstance(tree.slice, ast.Constant)
            and isinstance(tree.slice.value, int)
        ):
            if isinstance(tree.value, ast.Attribute) and tree.value.attr == "tile":
                return self._tile(tree.value, tree.slice.value)
            return self._evaluate(tree.value)[tree.slice.value]
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "text":
            return self._text_call(tree)
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Attribute) and tree.func.attr == "box":
            return self._box_call(tree, tree.func)
        if isinstance(tree, ast.Attribute) and tree.attr in ("base", "newline", "separator"):
            return getattr(self._evaluate(tree.value), tree.attr)
        raise SpanError(f"{self.written!r} is no span: {ast.unparse(tree)!r} is not known. {self.there_are}")
