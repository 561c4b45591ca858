"""Words in place of positions, where the edges of a result are the tokens of one prompt."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from nnsight_mmflow.prompts.prompt import Prompt


def add_words(table: pd.DataFrame, prompt: Prompt) -> None:
    """A column `token` beside the edges token_N->target: what stands at N."""
    words = [prompt.spans.tokens[int(number)] for number in table["edge"].str.extract(r"^token_(\d+)->")[0]]
    table.insert(list(table.columns).index("edge") + 1, "token", words)


def write_words(figure: Figure, prompt: Prompt) -> None:
    """The words in the legend of such edges."""
    for legend in figure.legends:
        for text in legend.get_texts():
            token = re.match(r"token (\d+) ", text.get_text())
            if token:
                text.set_text(f"{prompt.spans.tokens[int(token[1])]} ({token[1]}) {text.get_text()[token.end() :]}")
