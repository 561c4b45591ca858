"""Span expressions before there is a prompt: can it be read, and does it name what prompts have?"""

from __future__ import annotations

import ast
from collections.abc import Collection

from nnsight_mmflow._errors import SpanError

NAMES = ("prefix", "image", "question", "suffix", "last", "all")
PARTS = ("base", "newline", "separator")
JOINS = (ast.BitOr, ast.BitAnd, ast.Sub)


def check_name(name: str) -> None:
    """Refuses a name that a span cannot be given.

    Raises:
        SpanError: every prompt has a span of that name, or it could not be written in an edge.
    """
    if name in NAMES:
        raise SpanError(
            f"{name!r} is the name of a span that every prompt has ({', '.join(NAMES)}): give yours another name."
        )
    if not name or name != name.strip() or "->" in name:
        raise SpanError(f"{name!r} is no name of a span: one is not empty, has no space around it, and no '->' in it.")


def check_expression(expression: str, names: Collection[str] = NAMES) -> None:
    """Refuses an expression that no prompt's spans can answer; how many images, tiles or words there are, they know.

    Raises:
        SpanError: it cannot be read, or names a span that there never is.
    """
    if expression in names:
        return
    there = f"There are: {', '.join(names)}; joined by |, &, -, ~, and text('...')."
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise SpanError(f"{expression!r} is no span expression ({error}). {there}") from None
    unknown = _unknown(tree, names)
    if unknown is not None:
        raise SpanError(f"{expression!r} is no span: {ast.unparse(unknown)!r} is not known. {there}")


def _unknown(tree: ast.expr, names: Collection[str]) -> ast.expr | None:
    """The part that is not known; None if all is."""
    if isinstance(tree, ast.Name) and tree.id in names:
        return None
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, JOINS):
        return _unknown(tree.left, names) or _unknown(tree.right, names)
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Invert):
        return _unknown(tree.operand, names)
    if isinstance(tree, ast.Subscript) and isinstance(tree.slice, ast.Constant) and type(tree.slice.value) is int:
        tiles = isinstance(tree.value, ast.Attribute) and tree.value.attr == "tile"
        return _unknown(tree.value.value if tiles else tree.value, names)  # type: ignore[attr-defined]
    if isinstance(tree, ast.Attribute) and tree.attr in PARTS:
        return _unknown(tree.value, names)
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Attribute) and tree.func.attr == "box":
        return _unknown(tree.func.value, names)
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "text":
        return None  # its arguments are read where the words are
    return tree
