"""Numbers over layers and image tokens, from an array, a result or the tokens that a pruning method keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.patterns.prune.kept_tokens import KeptTokensResult

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from nnsight_mmflow.prompts.prompt import Prompt

    Words: TypeAlias = Sequence[Sequence[Sequence[tuple[str, float]]]]
    Array: TypeAlias = Sequence[Sequence[float]] | np.ndarray | torch.Tensor

COLUMNS = {"contributions": "norm", "lens_by_patch": "probability", "knockout_by_patch": "change_percent"}


@dataclass(frozen=True)
class LayerValues:
    """Numbers of image tokens, layer by layer.

    Attributes:
        numbers: (layers, image tokens), in the order of `prompt.spans["image"]`; NaN: none.
        labels: what each layer is called.
        what: what the numbers are.
        kept: they say which tokens a layer sees: 1, or 0.
        words: for each layer and token its (word, probability) pairs, the likeliest first.
    """

    numbers: np.ndarray = field(repr=False)
    labels: tuple[str, ...]
    what: str
    kept: bool = False
    words: Words | None = field(default=None, repr=False)


def layer_values(
    what: object, prompt: Prompt, column: str | None, labels: Sequence[str | int] | None, words: object
) -> LayerValues:
    """The numbers of what is shown, checked against the prompt's image tokens.

    Raises:
        MMFlowError: something that holds none, or as many as do not fit.
    """
    if isinstance(what, KeptTokensResult):
        by_layer = _of_kept(what, prompt)
    elif hasattr(what, "to_frame") or hasattr(what, "columns"):
        by_layer = _of_result(what, prompt, column)
    else:
        by_layer = _of_array(what, prompt)
    if labels is not None:
        if len(labels) != len(by_layer.numbers):
            raise MMFlowError(f"{len(labels)} labels came for {len(by_layer.numbers)} layers of values: one for each.")
        by_layer = replace(by_layer, labels=tuple(map(str, labels)))
    if words is not None:
        by_layer = replace(by_layer, words=_words(words, by_layer))
    return by_layer


def _of_kept(kept: KeptTokensResult, prompt: Prompt) -> LayerValues:
    import numpy as np

    if prompt.digest() != kept.header["prompt"]:
        raise MMFlowError(f"these tokens are of another prompt; its question was {kept.header['question']!r}.")
    layers = kept.layers
    numbers = np.zeros((len(layers), len(prompt.spans["image"])))
    for layer, held in enumerate(layers):
        numbers[layer, held] = 1
    return LayerValues(numbers, tuple(map(str, range(len(numbers)))), "image tokens that each layer sees", kept=True)


def _of_array(what: object, prompt: Prompt) -> LayerValues:
    import numpy as np
    import torch

    count = len(prompt.spans["image"])
    if isinstance(what, torch.Tensor):
        what = what.detach().float().cpu().numpy()
    try:
        numbers = np.atleast_2d(np.asarray(what, dtype=float))
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.ndim != 2 or numbers.shape[1] != count or not numbers.size:
        raise MMFlowError(
            f"explore takes an AttentionResult (mmf.attention), one by image token (mmf.contributions, mmf.kept_tokens)"
            f" or numbers (layers, {count}) for the {count} image tokens of this prompt, but a {type(what).__name__} of"
            f" shape {tuple(np.shape(what)) if numbers.size else '?'} came. Of all positions? Take"
            ' values[:, list(prompt.spans["image"])].'
        )
    if np.isinf(numbers).any() or np.isnan(numbers).all():
        raise MMFlowError(
            f"{int(np.isinf(numbers).sum())} of {numbers.size} values are infinite, {int(np.isnan(numbers).sum())} are"
            " none (NaN): they have no colour."
        )
    return LayerValues(numbers, tuple(map(str, range(len(numbers)))), "value")


def _of_result(what: object, prompt: Prompt, column: str | None) -> LayerValues:
    import numpy as np

    table, kind = _table(what), getattr(what, "kind", "")
    kind = kind or ("lens_by_patch" if {"rank", "word", "probability"} <= set(table.columns) else "")
    quantity = what.quantity if kind == "knockout_by_patch" and hasattr(what, "quantity") else None
    column = column or (COLUMNS.get(kind, "") if quantity is None else quantity.column)
    if column not in table or not {"position", "positions", "token"} & set(table.columns) or "layer" not in table:
        raise MMFlowError(
            f"a {type(what).__name__} with the columns {', '.join(map(str, table.columns))} holds no number per layer"
            " and image token that is known here. contributions does; of another table, give the numbers as an array"
            " (layers, image tokens) with prompt=."
        )
    if "prompt" in table:
        table = _of_prompt(table, prompt)
    if kind == "contributions":
        table = table[table["head"] == -1]
    if "generated" in table:  # rows of the target alone
        table = table[table["generated"] == -1]
    words = _word_lists(table, len(prompt.spans["image"])) if kind == "lens_by_patch" else None
    if "rank" in table:
        table = table[table["rank"] == table["rank"].min()]
    layers = sorted({int(layer) for layer in table["layer"]})
    numbers = np.full((len(layers), len(prompt.spans["image"])), np.nan)
    where = {position: index for index, position in enumerate(prompt.spans["image"])}
    for layer, tokens, number in zip(table["layer"], _tokens(table, where), table[column], strict=True):
        numbers[layers.index(int(layer)), tokens] = number
    if np.isnan(numbers).all():
        raise MMFlowError(
            f"this {kind or 'result'} is of no image token: make it with source='image', or show text with"
            " mmf.show.tokens(prompt, result)."
        )
    told = {"lens_by_patch": "probability of the likeliest word", "contributions": f"contributions, {column}"}
    told |= {"knockout_by_patch": "change of the answer's probability without the patch (%)"}
    if quantity is not None and quantity.column != COLUMNS["knockout_by_patch"]:
        told = {kind: quantity.label.replace("change of", "without the patch: change of")}
    return LayerValues(numbers, tuple(map(str, layers)), told.get(kind, column.replace("_", " ")), words=words)


def _tokens(table: pd.DataFrame, where: dict[int, int]) -> list[list[int]]:
    """For each row the image tokens that it is of; rows of other positions have none."""
    if "token" in table and "position" not in table and "positions" not in table:
        return [[int(token)] for token in table["token"]]
    held = table["positions"] if "positions" in table else [[position] for position in table["position"]]
    return [[where[int(position)] for position in positions if int(position) in where] for positions in held]


def _of_prompt(table: pd.DataFrame, prompt: Prompt) -> pd.DataFrame:
    names = list(dict.fromkeys(map(str, table["prompt"])))
    wanted = prompt.key or ("0" if len(names) == 1 else "")  # a lone prompt without a key is called 0
    if wanted not in names:
        raise MMFlowError(
            f"the result is of {len(names)} prompt(s) ({', '.join(names[:4])}), and prompt= is none of them by its key"
            f" ({prompt.key!r}): give the one it was made of."
        )
    return table[table["prompt"].astype(str) == wanted]


def _words(words: object, values: LayerValues) -> Words:
    """Word lists as they came, or those of a table, layer by layer."""
    layers, tokens = values.numbers.shape
    if hasattr(words, "to_frame") or hasattr(words, "columns"):
        table = _table(words)
        by_layer = {str(layer): part for layer, part in table.groupby("layer")}
        nothing: Words = [[[] for _ in range(tokens)]]
        lists = [_word_lists(by_layer[name], tokens) if name in by_layer else nothing for name in values.labels]
        return [row[0] for row in lists]
    listed: Words = list(words)  # type: ignore[call-overload]
    shape = (len(listed), len(listed[0]) if len(listed) else 0)
    if shape != (layers, tokens) or any(len(layer) != tokens for layer in listed):
        raise MMFlowError(
            f"words must be (layers, image tokens) = ({layers}, {tokens}) lists of (word, probability), but"
            f" {shape} came."
        )
    return [[[(str(word), float(p)) for word, p in held] for held in layer] for layer in listed]


def _word_lists(table: pd.DataFrame, count: int) -> Words:
    layers = sorted({int(layer) for layer in table["layer"]})
    lists: list[list[list[tuple[str, float]]]] = [[[] for _ in range(count)] for _ in layers]
    ordered = table.sort_values("rank")
    columns = (ordered[name] for name in ("layer", "token", "word", "probability"))
    for layer, token, word, probability in zip(*columns, strict=True):
        lists[layers.index(int(layer))][int(token)].append((str(word), float(probability)))
    return lists


def _table(what: object) -> pd.DataFrame:
    return what.to_frame() if hasattr(what, "to_frame") else what  # type: ignore[return-value]
