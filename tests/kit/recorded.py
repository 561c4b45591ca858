"""Numbers of a run as plain lists, and what differs between two runs; imports nothing, so that it goes anywhere.

Whole numbers, words and token ids must be equal. Other numbers may differ by 1e-5 of the largest of their column, and
by 1e-6 where all of a column are small: other releases choose other kernels, and those round in another order.
"""

RELATIVE, ABSOLUTE = 1e-5, 1e-6


def recorded(value):
    """Frames, tensors, arrays, results and what holds them, as lists, dictionaries, words and numbers."""
    if hasattr(value, "tolist"):  # a tensor, array or column
        value = value.tolist()
    elif hasattr(value, "to_frame"):
        value = value.to_frame()
    if hasattr(value, "columns"):
        return {str(name): recorded(value[name]) for name in value.columns}
    if isinstance(value, dict):
        return {str(name): recorded(one) for name, one in value.items()}
    if isinstance(value, list | tuple | range):
        return [recorded(one) for one in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    return float(f"{value:.9g}") if isinstance(value, float) else str(value)


def flat(value, place=""):
    """Each number or word with its place."""
    if isinstance(value, dict):
        parts = [(f"{place}.{name}" if place else name, one) for name, one in value.items()]
    elif isinstance(value, list):
        parts = [(f"{place}[{number}]", one) for number, one in enumerate(value)]
    else:
        return [(place, value)]
    return [found for name, one in parts for found in flat(one, name)]


def column(place):
    """What numbers are compared in size with: all those under the same names."""
    return place.split("[", 1)[0]


def missing(value):
    """Whether a table has nothing there: None in one release of pandas, NaN in another."""
    return value is None or value != value


def compared(found, wanted):
    """What differs, by name, and the largest difference of a number, as a share of its column."""
    mine, theirs = dict(flat(found)), dict(flat(wanted))
    sizes, largest, told = {}, 0.0, {}
    for place, value in theirs.items():
        if isinstance(value, float) and value == value and abs(value) != float("inf"):
            sizes[column(place)] = max(sizes.get(column(place), 0.0), abs(value))
    for place in mine | theirs:
        if place not in mine or place not in theirs:
            there = mine.get(place, theirs.get(place))
            told[place] = f"{there!r} is {'missing' if place in theirs else 'more than under the tested set'}"
            continue
        one, other = mine[place], theirs[place]
        if one == other or (missing(one) and missing(other)):
            continue
        if not (isinstance(one, float) and isinstance(other, float)):
            told[place] = f"{one!r}, under the tested set {other!r}"
            continue
        size = sizes.get(column(place), 0.0)
        away = abs(one - other)
        largest = max(largest, away / max(size, ABSOLUTE / RELATIVE))
        if not away <= max(RELATIVE * size, ABSOLUTE):
            told[place] = f"{one!r}, under the tested set {other!r}: off by {away:.2g}, the column reaches {size:.2g}"
    return told, largest
