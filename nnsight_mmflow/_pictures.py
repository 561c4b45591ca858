"""Pictures as users have them (a path, a PIL image, an array), as RGB; and the paper's padding to a square."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, TypeAlias

from nnsight_mmflow._errors import DataError, PromptError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as Picture

    OnePicture: TypeAlias = str | PathLike[str] | Picture | np.ndarray
    Pictures: TypeAlias = OnePicture | list[OnePicture] | None


def open_pictures(images: Pictures) -> list[Picture]:
    """The pictures in RGB, opened if a path came; no picture gives an empty list.

    Raises:
        DataError: a file that is missing or is no picture.
        PromptError: something that is neither path, picture nor array.
    """
    if images is None:
        return []
    return [_open(image) for image in (images if isinstance(images, list | tuple) else [images])]


def as_square(picture: Picture, mean: Sequence[float]) -> Picture:
    """The picture centred on a square of its longer side, filled with the processor's mean colour.

    Source: Cross-modal Information Flow, spec section 1.4; CLIP's mean gives (122, 116, 104).
    """
    from PIL import Image

    width, height = picture.size
    if width == height:
        return picture
    side = max(picture.size)
    square = Image.new("RGB", (side, side), tuple(int(channel * 255) for channel in mean))
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square


def _open(image: object) -> Picture:
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, np.ndarray):
        shaped = image.ndim == 2 or (image.ndim == 3 and image.shape[-1] in (3, 4))
        if image.dtype != np.uint8 or not shaped or 0 in image.shape:
            raise PromptError(
                f"an array of shape {image.shape} and type {image.dtype} came as an image; expected uint8 of shape"
                " (height, width, 3). Multiply by 255 and cast if it holds 0 to 1."
            )
        return Image.fromarray(image).convert("RGB")
    if isinstance(image, str | PathLike):
        try:
            with Image.open(image) as opened:
                return opened.convert("RGB")
        except FileNotFoundError:
            raise DataError(f"there is no image file {str(image)!r}.") from None
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{str(image)!r} cannot be read as an image: {error}.") from None
    raise PromptError(f"an image is a path, a PIL image or an array, not {type(image).__name__}.")
