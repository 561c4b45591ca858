"""What a heat map cannot show, in words: tokens without pixels, tokens under others, and what the scale leaves out."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from nnsight_mmflow.show.boxes import image_tokens

if TYPE_CHECKING:
    import numpy as np

    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.show.boxes import DrawnBoxes

KINDS = {"newline": "end a row of patches", "class": "the tower's class token", "patch": "show padding"}
FAINT = 0.05  # of the scale: where most tokens lie below this, it is worth cutting


def notes_of(
    prompt: Prompt,
    numbers: np.ndarray,
    drawn: DrawnBoxes,
    image: int,
    ends: tuple[float, float],
    view: str | None,
    shares: bool = True,
) -> list[str]:
    """Lines for below the figure.

    Args:
        prompt: the prompt that holds the picture.
        numbers: (panels, tokens of the image), NaN where there is none.
        drawn: the tokens that are drawn.
        image: which of the prompt's images, counted from 0.
        ends: where the scale starts and ends.
        view: the one that was asked for.
        shares: whether a sum of the numbers means something, so that what is left out has a share of it.
    """
    import numpy as np

    low, high = ends
    tokens = image_tokens(prompt, image)
    geometry, every = tokens.geometry, range(len(tokens.positions))
    places = [geometry.place(token) for token in every]
    views = Counter(places[token].view for token in drawn.tokens)
    ranges = " and ".join(
        f"{count} patches" + ("" if name == "image" else f" of view {name}") for name, count in views.items()
    )
    notes = [f"Drawn: {ranges}; {len(places)} image tokens in all."]
    for kind, words in KINDS.items():
        left = [token for token in every if places[token].kind == kind and places[token].box is None]
        if left:
            notes.append(f"No pixels: {len(left)} ({words}){_share(numbers, left, shares)}.")
    hidden = sorted({token for token in every if places[token].box is not None} - set(drawn.tokens))
    for name in dict.fromkeys(places[token].view for token in hidden):
        left = [token for token in hidden if places[token].view == name]
        why = "finer ones lie over them" if view is None or name == view else f'view="{view}" was asked for'
        notes.append(f"Not drawn: {len(left)} patches of view {name} ({why}){_share(numbers, left, shares)}.")
    shown = numbers[:, list(drawn.tokens)]
    if np.isnan(shown).any():
        notes.append(f"{int(np.isnan(shown).any(0).sum())} patches have no value and stay plain.")
    sizes = np.abs(shown[~np.isnan(shown)])
    beyond = int((sizes > high * (1 + 1e-9)).sum())
    if beyond:
        notes.append(f"{beyond} lie beyond the scale, up to {sizes.max():.3g}.")
    elif low in (0, -high) and np.median(sizes) < FAINT * high and sizes.any():
        notes.append(f"Half of the patches lie below {np.median(sizes):.2g}; max_value= ends the scale earlier.")
    return notes


def _share(numbers: np.ndarray, tokens: list[int], wanted: bool) -> str:
    """What these tokens have of all tokens' values, over the panels."""
    import numpy as np

    if np.isnan(numbers[:, tokens]).all():
        return ", without values"
    if not wanted:
        return ""
    whole = np.nansum(np.abs(numbers), 1)
    shares = np.nansum(np.abs(numbers[:, tokens]), 1) / np.where(whole > 0, whole, 1)
    low, high = f"{shares.min():.0%}", f"{shares.max():.0%}"
    return f", {low if low == high else f'{low} to {high}'} of the sum of absolute values"
