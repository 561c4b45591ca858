"""Pictures with their image tokens drawn on them: the patch grid of each view, its tiles, a box, every position."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import PromptError
from nnsight_mmflow.files.output import write_figure
from nnsight_mmflow.spans.geometry import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image as Picture

    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.spans.span import ImageTokens, Span
    from nnsight_mmflow.spans.views import Number

INCHES_PER_PATCH = 0.34  # room for four digits
DOTS_PER_INCH = 200
LINE, TILE, CHOSEN = "#ffffff", "#ffd400", "#ff2d2d"


def draw_spans(prompt: Prompt, file: str | Path, boxes: Sequence[Sequence[Number]] = ()) -> list[Path]:
    """The files written: for each image one picture, its tokens' patches drawn on it with their positions.

    A panel per view: of tiles, their borders are yellow. The tokens that a box chooses are tinted, the box is red.

    Args:
        prompt: with at least one image.
        file: where to write; of several images, the second goes to `name-1.png`, and so on.
        boxes: (x0, y0, x1, y1) each, in pixels of the first picture.

    Raises:
        PromptError: the prompt has no image.
        SpanError: a box that no token shows.
    """
    if not prompt.images:
        raise PromptError("the prompt has no image, so there are no image tokens to draw.")
    written = []
    chosen = prompt.spans["image"][0].box(*boxes) if boxes else None
    for number, (image, picture) in enumerate(zip(prompt.spans["image"].images, prompt.images, strict=True)):
        place = Path(file) if number == 0 else Path(file).with_stem(f"{Path(file).stem}-{number}")
        _draw(image, picture, chosen if number == 0 else None, boxes if number == 0 else (), place)
        written.append(place)
    return written


def _draw(
    image: ImageTokens, picture: Picture, chosen: Span | None, boxes: Sequence[Sequence[Number]], file: Path
) -> None:
    from matplotlib.patches import Rectangle

    from nnsight_mmflow._figure import ShownFigure

    geometry = image.geometry
    width, height = geometry.size
    panels = _panels(image)
    columns = [max(6, geometry.views[panel[0]].grid[1]) for panel in panels]
    across = [INCHES_PER_PATCH * count for count in columns]
    tall = max(inches * height / width for inches in across) + 0.6
    figure = ShownFigure(figsize=(sum(across) + 0.3, tall), layout="constrained")
    axes = figure.subplots(1, len(panels), width_ratios=across, squeeze=False)
    for axis, (view, tokens) in zip(axes[0], panels, strict=True):
        axis.imshow(picture, extent=(0, width, height, 0), interpolation="nearest", alpha=0.75)
        axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], anchor="N")
        axis.set_title(_title(image, view, tokens), fontsize=9)
        for token in tokens:
            _patch(axis, image, token, chosen is not None and image.positions[token] in chosen)
        _tiles(axis, image, tokens)
        for left, top, right, bottom in boxes:
            axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=CHOSEN, lw=2))
    write_figure(file, figure, dpi=DOTS_PER_INCH)


def _panels(image: ImageTokens) -> list[tuple[int, list[int]]]:
    """(view, tokens) of each panel: the views that divide a picture share one, crops that overlap do not matter."""
    panels: dict[str, tuple[int, list[int]]] = {}
    for token, cell in enumerate(image.geometry.cells):
        if isinstance(cell, Cell):
            name = image.geometry.views[cell.view].name
            panels.setdefault(name, (cell.view, []))[1].append(token)
    return list(panels.values())


def _title(image: ImageTokens, view: int, tokens: list[int]) -> str:
    name = image.geometry.views[view].name
    first, last = image.positions[tokens[0]], image.positions[tokens[-1]]
    return f"{name}: {len(tokens)} tokens,\npositions {first} to {last}"


def _patch(axis: Axes, image: ImageTokens, token: int, chosen: bool) -> None:
    """One token's patch and position; a patch of padding shows nothing of the picture and is left out."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    box = image.geometry.token_box(token)
    if box is None:
        return
    left, top, right, bottom = box
    axis.add_patch(
        Rectangle(
            (left, top), right - left, bottom - top, facecolor=(1, 0.2, 0.2, 0.4 * chosen), edgecolor=LINE, lw=0.5
        )
    )
    axis.text(
        (left + right) / 2,
        (top + bottom) / 2,
        str(image.positions[token]),
        ha="center",
        va="center",
        fontsize=5.5,
        color="black",
        path_effects=[withStroke(linewidth=1.2, foreground="white")],
    )


def _tiles(axis: Axes, image: ImageTokens, tokens: list[int]) -> None:
    """The borders of the tiles, each with its number."""
    from matplotlib.patches import Rectangle

    held: dict[int, list[tuple[float, ...]]] = {}
    for token in tokens:
        cell, box = image.geometry.cells[token], image.geometry.token_box(token)
        if isinstance(cell, Cell) and cell.tile is not None and box is not None:
            held.setdefault(cell.tile, []).append(tuple(map(float, box)))
    for tile, boxes in held.items():
        left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
        right, bottom = max(box[2] for box in boxes), max(box[3] for box in boxes)
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=TILE, lw=2))
        label = {"boxstyle": "round,pad=0.15", "facecolor": TILE, "edgecolor": "none"}
        # on the border, where no position stands
        axis.text((left + right) / 2, top, f"tile {tile}", ha="center", va="center", fontsize=5.5, bbox=label)
