"""What an image processor does to a picture's shape, read from its settings and checked against what came out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nnsight_mmflow._errors import ModelError
from nnsight_mmflow.spans.views import Step, View

if TYPE_CHECKING:
    from transformers import ProcessorMixin
    from transformers.image_processing_utils import BaseImageProcessor


def squared_first(size: tuple[int, int], squared: bool) -> tuple[list[Step], tuple[int, int]]:
    """The package's own padding to a square, where asked for, and the (width, height) after it."""
    if squared and size[0] != size[1]:
        return [Step("pad", max(size), max(size))], (max(size), max(size))
    return [], size


def resized_view(size: tuple[int, int], squared: bool, to: tuple[int, int], patch: int, name: str = "image") -> View:
    """The view of a picture that is resized as a whole to (width, height) `to`, and no more."""
    steps, _ = squared_first(size, squared)
    return View(size, (*steps, Step("resize", *to)), patch, (to[1] // patch, to[0] // patch), name)


def settings(processor: BaseImageProcessor, squared: bool) -> dict[str, Any]:
    """What ImageGeometry needs of a processor's settings for the raster rule."""
    fill = tuple(int(channel * 255) for channel in processor.image_mean)
    return {"raster": squared, "resample": int(processor.resample), "fill": fill}


def image_defaults(processor: ProcessorMixin) -> dict[str, Any]:
    """What a processor hands its image processor unless a call says otherwise.

    Attributes of the processor say so, and the defaults of its keyword arguments, which are all that releases before
    5.23 have.
    """
    own = processor.images_kwargs if hasattr(type(processor), "images_kwargs") else {}
    kinds = getattr(processor, "valid_processor_kwargs", None)
    return {**own, **getattr(kinds, "_defaults", {}).get("images_kwargs", {})}


def steps_of(
    processor: BaseImageProcessor, size: tuple[int, int], squared: bool, result: tuple[int, int]
) -> tuple[Step, ...]:
    """The pad, resize and crop steps of one picture, each with the (width, height) after it.

    Args:
        processor: its settings say what it does.
        size: (width, height) of the original picture.
        squared: whether the package padded the picture to a square first.
        result: (width, height) that came out of the processor.

    Raises:
        ModelError: the steps read from the settings do not lead to `result`.
    """
    pads = getattr(processor, "do_pad", None) and hasattr(processor, "pad_to_square")  # others do not heed do_pad
    steps, (width, height) = squared_first(size, squared or bool(pads))
    if processor.do_resize:
        width, height = _resized(dict(processor.size), width, height)
        steps.append(Step("resize", width, height))
    if getattr(processor, "do_center_crop", None):
        width, height = processor.crop_size["width"], processor.crop_size["height"]
        steps.append(Step("crop", width, height))
    if (width, height) != result:
        raise ModelError(
            f"{type(processor).__name__} should turn a picture of {size[0]}x{size[1]} into {width}x{height} by"
            f" {[tuple(step[:3]) for step in steps]}, but made {result[0]}x{result[1]}: its settings hold a step that"
            " this package does not know."
        )
    return tuple(steps)


def _resized(size: dict[str, int | None], width: int, height: int) -> tuple[int, int]:
    shortest = size.get("shortest_edge")
    if shortest and not size.get("longest_edge"):
        # Hugging Face's rule: the short side exactly, the long side rounded down.
        if width <= height:
            return shortest, int(shortest * height / width)
        return int(shortest * width / height), shortest
    if size.get("width") and size.get("height"):
        return int(size["width"] or 0), int(size["height"] or 0)
    raise ModelError(f"the processor resizes by {size}; shortest_edge alone, or width and height, are handled.")
