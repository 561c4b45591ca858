"""Results with generated tokens, one token after another: what a slider goes over."""

from __future__ import annotations

from dataclasses import replace

from nnsight_mmflow.patterns.attention.result import AttentionResult
from nnsight_mmflow.patterns.contributions.result import ContributionsResult
from nnsight_mmflow.patterns.lens import LensResult
from nnsight_mmflow.runs.results import Result
from nnsight_mmflow.show.pages.explore_parts import shown


def by_token(result: object) -> list[tuple[str, Result]]:
    """(label, the result of that generated token) each; [] where a result has none, or is of one alone.

    Contributions and lenses have rows of what was asked for too: these come first.
    """
    if isinstance(result, AttentionResult):
        return [(token_label(result, number), result.token(number)) for number in result.tokens_read]
    if isinstance(result, ContributionsResult | LensResult) and result.n_generated:
        each = [(token_label(result, number), result.token(number)) for number in range(result.n_generated)]
        asked = result.table[result.table["generated"] == -1].drop(columns="generated")
        name = result.header["target" if isinstance(result, ContributionsResult) else "at"]
        return [(str(name), replace(result, table=asked)), *each]
    return []


def token_label(result: AttentionResult | ContributionsResult | LensResult, number: int) -> str:
    """What a generated token is called: its number, and its word where the result is of one prompt."""
    if isinstance(result, AttentionResult):
        words = [result.header["tokens"][result.generated[number]]]
    else:
        words = [told[number] for told in result.header["written"].values() if number < len(told)]
    word = f" \u201c{shown(words[0])}\u201d" if len(words) == 1 else ""
    return f"generated[{number}]{word}"
