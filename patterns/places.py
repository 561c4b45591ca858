"""Image tokens with their places, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow.prompts.prompt import Prompt

WHOLE = ("tile", "row", "column")  # none where a token ends a row, say


def places_of(prompt: Prompt, tokens: Sequence[int]) -> pd.DataFrame:
    """A row per image token: token, position, image, view, tile, row, column.

    Args:
        prompt: the prompt that the tokens are of.
        tokens: numbers among all its image tokens, counted from 0.
    """
    import pandas as pd

    image = prompt.spans["image"]
    every = image.places()
    rows = [
        {
            "token": token,
            "position": image.positions[token],
            "image": place.image,
            "view": place.view,
            "tile": place.tile,
            "row": place.row,
            "column": place.column,
        }
        for token in tokens
        for place in (every[token],)
    ]
    names = ["token", "position", "image", "view", *WHOLE]
    return pd.DataFrame(rows, columns=names).astype({"token": int, "position": int, **dict.fromkeys(WHOLE, "Int64")})
