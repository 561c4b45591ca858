"""Results with generated tokens, one token after another: what a slider goes over."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nnsight_mmflow.patterns.attention.result import AttentionResult
from nnsight_mmflow.patterns.contributions.result import ContributionsResult
from nnsight_mmflow.patterns.lens import LensResult
from nnsight_mmflow.runs.results import Result
from nnsight_mmflow.show.pages.explore_parts import shown

if TYPE_CHECKING:
    from nnsight_mmflow.prompts.prompt import Prompt


def by_token(result: object, prompt: Prompt | None = None) -> list[tuple[str, Result]]:
    """(label, the result of that generated token) each; [] where a result has none, or is of one alone.

    Contributions and lenses have rows of what was asked for too: these come first. With `prompt` the tokens of that
    prompt's answer alone, with its words: others may have written more.
    """
    if isinstance(result, AttentionResult):
        return [(token_label(result, number), result.token(number)) for number in result.tokens_read]
    if isinstance(result, ContributionsResult | LensResult) and result.n_generated:
        mine = result.header["written"].get((prompt.key or "0") if prompt else None)
        count = result.n_generated if mine is None else len(mine)
        each = [(token_label(result, number, mine), result.token(number)) for number in range(count)]
        asked = result.table[result.table["generated"] == -1].drop(columns="generated")
        name = result.header["target" if isinstance(result, ContributionsResult) else "at"]
        return [(str(name), replace(result, table=asked)), *each]
    return []


def token_label(
    result: AttentionResult | ContributionsResult | LensResult, number: int, mine: list[str] | None = None
) -> str:
    """What a generated token is called: its number, and its word where the result, or `mine`, is of one prompt."""
    if isinstance(result, AttentionResult):
        words = [result.header["tokens"][result.generated[number]]]
    elif mine is not None:
        words = [mine[number]]
    else:
        words = [told[number] for told in result.header["written"].values() if number < len(told)]
    word = f" \u201c{shown(words[0])}\u201d" if len(words) == 1 else ""
    return f"generated[{number}]{word}"
