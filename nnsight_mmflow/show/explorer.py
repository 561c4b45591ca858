"""explore: attention, or numbers of image tokens, on the picture itself: one page that notebooks show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.patterns.attention.result import AttentionResult
from nnsight_mmflow.patterns.contributions.result import ContributionsResult
from nnsight_mmflow.patterns.prune.kept_tokens import KeptTokensResult
from nnsight_mmflow.prompts.prompt import Prompt
from nnsight_mmflow.runs.results import Result
from nnsight_mmflow.show.generated import by_token
from nnsight_mmflow.show.layer_values import layer_values
from nnsight_mmflow.show.pages.explore_attention import attention_page
from nnsight_mmflow.show.pages.explore_parts import check_picture
from nnsight_mmflow.show.pages.explore_values import values_page

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow._page import Page
    from nnsight_mmflow.show.layer_values import Array, Words

MOST_BYTES = 20_000_000


@checked
def explore(
    what: AttentionResult | KeptTokensResult | Result | pd.DataFrame | Array,
    *,
    prompt: Prompt | None = None,
    layer: int | str | None = None,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    column: str | None = None,
    labels: Sequence[str | int] | None = None,
    words: Words | Result | pd.DataFrame | None = None,
    title: str = "",
    most_bytes: int = MOST_BYTES,
) -> Page:
    """A page on which attention, or a number per image token, lies over the picture; notebooks show it.

    One document that holds the picture, the numbers as compact bytes and its script, and fetches nothing. Attention:
    choose layer and head, click a patch or a word (or move with the arrow keys) to see what it receives and what it
    sends; of maps and contributions with generated tokens a slider goes from one to the next. 32 heads of 600 x 600
    take under 2 MB: a weight w of a head whose largest is m is kept as a byte, 255 * (w / m) ** p. What is shown
    differs from w by at most m / 255, and far less where w is small: p is 1/2 (the square root) unless a layer would
    take more room; then it is larger, and small weights are coarser. The page says how far its own are off.

    Args:
        what: `mmf.attention(...)`; what `mmf.contributions` and `mmf.kept_tokens` return; a lens or knockout by patch,
            or its table; or numbers (layers, image tokens) of `prompt`.
        prompt: the prompt that the numbers are of; attention maps and kept tokens hold it, and need none.
        layer: the layer that is shown first; the middle one unless given, of kept tokens the last.
        layers: which layers of attention maps the page holds; all unless given.
        heads: which heads of attention maps the page holds; all unless given.
        column: of a result's table: "norm" (contributions) unless given.
        labels: what each layer of numbers is called; 0, 1, ... unless given.
        words: for each layer and image token a list of (word, probability), shown where a patch is pointed at; or a
            table of them: layer, token, rank, word, probability.
        title: what stands above the figure.
        most_bytes: how many bytes a page of attention may have.

    Raises:
        PromptError: the prompt has no image.
        MMFlowError: numbers that do not fit the image's tokens, or a page larger than `most_bytes`.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> prompt = mmf.nano.prompts(graph, 1)[0]
        >>> page = mmf.explore(mmf.attention(graph, prompt, layers=[4, 5]))
        >>> print(str(page).splitlines()[1])
        2 layers, 4 heads, 76 targets, 76 sources: page.save('attention.html'), or show it in a notebook
    """
    if isinstance(what, AttentionResult):
        if prompt is not None and not what.is_of(prompt):
            raise MMFlowError("prompt= is another prompt than the maps are of: leave it out, the maps hold theirs.")
        given = {"column": column, "labels": labels, "words": words}
        strange = [f"{name}=" for name, value in given.items() if value is not None]
        if strange:
            raise MMFlowError(f"{', '.join(strange)} belongs to numbers of image tokens; attention maps take none.")
        chosen = _chosen(what, layers, heads)
        if layer is not None and layer not in chosen.layers:
            raise MMFlowError(f"layer {layer} is not among those shown: {', '.join(map(str, chosen.layers))}.")
        page = attention_page(chosen, most_bytes, None if layer is None else int(layer))
        return replace(page, data={**page.data, "title": title}) if title else page
    if layers is not None or heads is not None:
        raise MMFlowError("layers= and heads= choose among attention maps; cut numbers before: values[8:16].")
    if prompt is None:
        prompt = getattr(what, "prompt", None)
    if not isinstance(prompt, Prompt):
        raise MMFlowError(
            f"a {type(what).__name__} does not hold the picture it is of: mmf.explore(..., prompt=prompt)."
        )
    check_picture(prompt)
    parts: Sequence[tuple[str, object]] = by_token(what, prompt) if isinstance(what, ContributionsResult) else []
    drawn = [(name, layer_values(one, prompt, column, labels, words)) for name, one in parts or [("", what)]]
    return values_page(prompt, drawn, title, layer)


def _chosen(maps: AttentionResult, layers: Iterable[int] | None, heads: Iterable[int] | None) -> AttentionResult:
    """The maps of some layers and heads, each once and in order."""
    return maps.part(
        None if layers is None else sorted(set(layers)),
        None if heads is None else sorted(set(heads)),
    )
