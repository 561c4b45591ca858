"""What both kinds of figure on the image share: the pictures with their patches, names of positions, palettes, markup.

Palettes are told apart by colour-blind readers and in grey print: cividis for numbers of one sign; blue to orange
through white for both signs.
"""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import PromptError
from nnsight_mmflow.show.boxes import drawn_boxes

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as Picture

    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.spans.geometry import Place

MOST_PIXELS = 448  # of the longer side of a picture and of what is drawn on it
STARTS = {"\u2581": " ", "\u0120": " ", "\u010a": "\n"}  # how tokenizers write a space and a line's end
BLUE_ORANGE = ("#08306b", "#2f7fbf", "#b8d6ea", "#f7f7f7", "#fdd0a2", "#ee7f1d", "#7f2704")
LEGEND = (
    '<p class="bar"><span class="low"></span><canvas width="256" height="1"></canvas><span class="high"></span></p>'
)


def check_picture(prompt: Prompt) -> None:
    """Refuses a prompt without a picture.

    Raises:
        PromptError: it is text only; the message says what draws text.
    """
    if not prompt.images or not len(prompt.spans["image"]):
        raise PromptError(
            "explore draws on the prompt's picture, but this prompt has no image: graph.prompt(image, question). For"
            " text alone, mmf.show.attention(maps, layer, by='token') and mmf.show.tokens(prompt, values) draw words."
        )


def pictures_of(prompt: Prompt) -> list[dict]:
    """For each image its pixels, the size of what is drawn on it, and its views with their patches.

    A patch is [position, row, column, left, top, right, bottom, view], in pixels of what is drawn. The first view shows
    at each pixel the finest patch there is; where the processor divided the picture, each view follows by itself.
    """
    pictures = []
    for number, (image, picture) in enumerate(zip(prompt.spans["image"].images, prompt.images, strict=True)):
        scale = MOST_PIXELS / max(image.geometry.size)
        width, height = (max(1, round(side * scale)) for side in image.geometry.size)
        names = list(dict.fromkeys(view.name for view in image.geometry.views))
        views = []
        for name in [None, *(names if len(names) > 1 else [])]:
            drawn = drawn_boxes(prompt, number, name)
            patches: list[list[int | str | None]] = []
            for token, box in zip(drawn.tokens, drawn.boxes, strict=True):
                place = image.geometry.place(token)
                edges = [round(float(edge) * scale) for edge in box]
                patches.append([image.positions[token], place.row, place.column, *edges, place.view])
            views.append({"name": name or "finest", "patches": patches})
        label = "picture" if len(prompt.images) == 1 else f"picture {number}"
        about = [[round(float(edge) * scale, 1) for edge in box] for box in (prompt.boxes if number == 0 else ())]
        seen = {"width": width, "height": height, "views": views, "boxes": about}
        pictures.append({"label": label, "source": _embedded(picture), **seen})
    return pictures


def names_of(prompt: Prompt) -> list[str]:
    """What each position is called: a word in quotes, or a patch by its row and column."""
    names = [f"“{shown(token)}”" for token in prompt.spans.tokens]
    several = len(prompt.spans["image"].images) > 1
    for image in prompt.spans["image"].images:
        which = f"picture {image.number}, " if several else ""
        for token, position in enumerate(image.positions):
            names[position] = which + _place_name(image.geometry.place(token))
        for position in image.separators:
            names[position] = f"{which}{names[position]}"
    return names


def shown(token: str) -> str:
    """A token as it is read: no marks of a tokenizer, line ends and lone spaces made visible."""
    for mark, meant in STARTS.items():
        token = token.replace(mark, meant)
    text = token.strip(" ").replace("\n", "↵").replace("\t", "⇥")
    return text or "␣"


def palette(signed: bool) -> np.ndarray:
    """(256, 3) uint8: the colours, lowest first."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    table = LinearSegmentedColormap.from_list("blue_orange", BLUE_ORANGE) if signed else colormaps["cividis"]
    return np.rint(table(np.arange(256))[:, :3] * 255).astype(np.uint8)


def script(*names: str) -> str:
    """The text of files beside this one."""
    return "\n".join((files("nnsight_mmflow.show.pages") / name).read_text() for name in names)


def _place_name(place: Place) -> str:
    if place.kind != "patch":
        return {"newline": "end of a row of patches", "class": "class token"}[place.kind]
    where = f"row {place.row}, column {place.column}"
    return where if place.view == "image" else f"{place.view}, {where}"


def _embedded(picture: Picture) -> str:
    """A picture of at most 448 pixels as an address that holds it, in the shorter of two formats."""
    small = picture.convert("RGB")
    small.thumbnail((MOST_PIXELS, MOST_PIXELS))
    written = []
    for kind, settings in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):
        buffer = io.BytesIO()
        small.save(buffer, kind, **settings)
        written.append((len(buffer.getvalue()), kind, buffer.getvalue()))
    _, kind, content = min(written)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
