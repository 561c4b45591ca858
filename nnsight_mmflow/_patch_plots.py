"""Pictures of experiments that go patch by patch: the effect of each, and the word on each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._image_values import Panels, by_position
from nnsight_mmflow._token_values import of_prompt

if TYPE_CHECKING:
    from nnsight_mmflow._prompt import Prompt
    from nnsight_mmflow.patterns.knockout_by_patch import KnockoutByPatch


def patch_panels(result: KnockoutByPatch, prompt: Prompt, image: int) -> Panels:
    """The change in percent at each image token, a panel for each window of layers."""
    import numpy as np

    numbers, titles = [], []
    for _, part in of_prompt(result.table, prompt).groupby("layer"):
        found = {
            int(position): change
            for positions, change in zip(part["positions"], part["change_percent"], strict=True)
            for position in positions
        }
        numbers.append(by_position(prompt, image, found))
        first, last = part["first_layer"].iloc[0], part["last_layer"].iloc[0]
        titles.append(f"layer {first}" if first == last else f"layers {first} to {last}")
    told = "" if result.header["size"] == 1 else f", squares of {result.header['size']} x {result.header['size']}"
    label = f"change of p({result.header['answer']}) (%), {result.header['target']} not reading the token{told}"
    return Panels(np.stack(numbers), tuple(titles), label)
