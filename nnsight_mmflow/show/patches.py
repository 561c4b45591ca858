"""Pictures of experiments that go patch by patch: the effect of each, and the word on each."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._look import PLAIN, Look
from nnsight_mmflow.show.boxes import drawn_boxes, mosaic
from nnsight_mmflow.show.heat import PANEL, WIDE, WIDTH, drawn_words, heat_figure
from nnsight_mmflow.show.panels import Panels, by_position
from nnsight_mmflow.show.token_values import of_layer, of_prompt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nnsight_mmflow.patterns.knockout_by_patch_result import KnockoutByPatchResult
    from nnsight_mmflow.patterns.lens_by_patch import LensByPatchResult
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.show.boxes import DrawnBoxes

MOST_WORDS = 12  # a line: more cannot be read
SMALLEST, LARGEST = 6.0, 9.0  # points
LETTER = 0.66  # mean width of a letter, of its height in points


def patch_panels(result: KnockoutByPatchResult, prompt: Prompt, image: int) -> Panels:
    """The change at each image token, in percent or of the run's score, a panel for each window of layers."""
    import numpy as np

    numbers, titles, column = [], [], result.quantity.column
    for _, part in of_prompt(result.table, prompt).groupby("layer"):
        changes = {
            int(position): change
            for positions, change in zip(part["positions"], part[column], strict=True)
            for position in positions
        }
        numbers.append(by_position(prompt, image, changes))
        first, last = part["first_layer"].iloc[0], part["last_layer"].iloc[0]
        titles.append(f"layer {first}" if first == last else f"layers {first} to {last}")
    told = "" if result.header["size"] == 1 else f", squares of {result.header['size']} x {result.header['size']}"
    what = result.quantity.label if "score" in result.header else f"change of p({result.header['answer']}) (%)"
    label = f"{what}, {result.header['target']} not reading the token{told}"
    return Panels(np.stack(numbers), tuple(titles), label)


def words_figure(
    result: LensByPatchResult, prompt: Prompt, layer: int, image: int, view: str | None, look: Look = PLAIN
) -> Figure:
    """The most likely word on each patch, in the colour of its probability; of large grids a word per square."""
    table = of_layer(of_prompt(result.table, prompt), layer)
    first = table[table["rank"] == 0]
    sure = dict(zip(first["position"].tolist(), first["probability"].tolist(), strict=True))
    numbers = by_position(prompt, image, sure)
    if not (numbers >= 0).any():
        raise MMFlowError(
            f"no token of image {image} was read: mmf.lens_by_patch(graph, prompt, source='image[{image}]')."
        )
    panels = Panels(numbers[None], (f"after layer {layer}",), "probability of the most likely word")
    drawn, words = drawn_boxes(prompt, image, view), dict(zip(first["position"].tolist(), first["word"], strict=True))
    positions = [prompt.spans["image"].images[image].positions[token] for token in drawn.tokens]
    chosen, square = _chosen(drawn, numbers[list(drawn.tokens)].tolist())
    notes = [f"In each square of {square} x {square} patches the most probable of their words."] if square > 1 else []
    figure = heat_figure(prompt, panels, image=image, view=view, signed=False, wide=True, notes=notes, look=look)
    panel = [axes for axes in figure.axes if axes.get_gid() == PANEL][-1]
    share = 1.0 if look.figsize is None else float(look.figsize[0]) / WIDTH
    _write(panel, _patch_size(drawn)[0] * square, [(at, words[positions[one]]) for one, at in chosen.items()], share)
    return figure


def _chosen(drawn: DrawnBoxes, sure: Sequence[float]) -> tuple[dict[int, tuple[float, float]], int]:
    """(which drawn boxes get a word, and where it stands; the side of the squares in which each is the most probable).

    Of squares the word stands in the middle: at its own patch it would run into its neighbours.
    """
    width, height = _patch_size(drawn)
    right, bottom = max(box[2] for box in drawn.boxes), max(box[3] for box in drawn.boxes)
    square = max(1, math.ceil(round(max(right / width, bottom / height), 3) / MOST_WORDS))
    best: dict[tuple[int, int], int] = {}
    middles = _seen_middles(drawn)
    for number, middle in middles.items():
        where = int(middle[0] / width / square), int(middle[1] / height / square)
        key = where if square > 1 else (number, number)
        if sure[number] >= 0 and (key not in best or sure[number] > sure[best[key]]):  # NaN is neither
            best[key] = number
    if square == 1:
        return {number: middles[number] for number in best.values()}, square
    return {
        number: (_middle(column, square * width, right), _middle(row, square * height, bottom))
        for (column, row), number in best.items()
    }, square


def _middle(square: int, side: float, end: float) -> float:
    """The middle of a square along one side; the last one may be cut off where the picture ends."""
    return (square * side + min((square + 1) * side, end)) / 2


def _seen_middles(drawn: DrawnBoxes) -> dict[int, tuple[float, float]]:
    """The middle of each box over which no finer one lies."""
    cells, middles = mosaic(drawn.boxes), {}
    for number, box in enumerate(drawn.boxes):
        middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        row, column = bisect_right(cells.rows, middle[1]) - 1, bisect_right(cells.columns, middle[0]) - 1
        if cells.which[row][column] == number:
            middles[number] = middle
    return middles


def _patch_size(drawn: DrawnBoxes) -> tuple[float, float]:
    return median(box[2] - box[0] for box in drawn.boxes), median(box[3] - box[1] for box in drawn.boxes)


def _write(axis: Axes, room: float, words: Sequence[tuple[tuple[float, float], str]], share: float) -> None:
    """The words, each around its point, as large as `room` pixels of the picture allow, and cut where they do not."""
    from matplotlib.patheffects import withStroke

    inches = 0.87 * share * WIDE * room / axis.get_xlim()[1]
    shown = drawn_words([word.strip() or repr(word) for _, word in words])
    longest = max(map(len, shown), default=1)
    points = min(LARGEST, max(SMALLEST, 72 * inches / (LETTER * min(longest, 9))))
    letters = max(2, int(72 * inches / (LETTER * points)))
    for ((across, down), _), word in zip(words, shown, strict=True):
        axis.text(
            across,
            down,
            word if len(word) <= letters else word[: letters - 1] + "\u2026",
            ha="center",
            va="center",
            fontsize=points,
            parse_math=False,
            path_effects=[withStroke(linewidth=1.3, foreground="white")],
        )
