"""Windows of consecutive layers around a centre, cut off at both ends (not shifted).

Source: Cross-modal Information Flow. With an even size the window leans one layer towards the input.
"""

from __future__ import annotations

from nnsight_mmflow._errors import MMFlowError


def window_layers(centre: int, size: int, n_layers: int) -> range:
    """The layers of the window.

    Raises:
        MMFlowError: a size below 1, or a centre that is no layer.

    Example:
        >>> window_layers(5, 9, 40), window_layers(39, 9, 40), window_layers(3, 7, 32)
        (range(1, 10), range(35, 40), range(0, 7))
    """
    if size < 1:
        raise MMFlowError(f"a window holds at least 1 layer, but window={size} came.")
    if not 0 <= centre < n_layers:
        raise MMFlowError(f"centre layer {centre} does not exist; there are {n_layers}, counted from 0.")
    return range(max(0, centre - size // 2), min(n_layers, centre + (size + 1) // 2))
