"""Intervals of shares."""

from __future__ import annotations


def wilson(right: int | float, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The 95% interval of a share of `total` independent trials, `right` of which are.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.

    Example:
        >>> [round(end, 3) for end in wilson(8, 10)]
        [0.49, 0.943]
    """
    if not total:
        return 0.0, 1.0
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / total + spread / (4 * total)) ** 0.5
    return (max(0.0, middle - half) if right else 0.0), (min(1.0, middle + half) if right < total else 1.0)
