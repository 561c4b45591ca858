"""Numbers of image tokens in panels: what a heat map draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nnsight_mmflow.show.boxes import image_tokens

if TYPE_CHECKING:
    import numpy as np

    from nnsight_mmflow.prompts.prompt import Prompt


@dataclass(frozen=True)
class Panels:
    """What is drawn on copies of one picture.

    Attributes:
        numbers: (panels, tokens of the image); NaN where a token has none.
        titles: one for each panel.
        label: what the numbers are, with their unit.
        ticks: (number, word) each for the colour bar; as numbers come unless given.
    """

    numbers: np.ndarray = field(repr=False)
    titles: tuple[str, ...]
    label: str
    ticks: tuple[tuple[float, str], ...] = ()


def by_position(prompt: Prompt, image: int, numbers: Mapping[int, float]) -> np.ndarray:
    """(tokens of the image,): the number at each token's position, NaN where there is none."""
    import numpy as np

    return np.array([numbers.get(position, np.nan) for position in image_tokens(prompt, image).positions], float)
