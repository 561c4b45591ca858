"""Pictures as users have them (a file, a PIL image, an array), as the RGB that the model's own processor would see.

One reading for all forms, so that `prompt.images`, boxes and pixel_values speak of the same picture:

- EXIF orientation is applied, to files and PIL images alike. transformers applies it to paths and in chat templates,
  but not where a processor is handed the PIL image itself; a photo that lies on its side is never what was meant.
- Transparency is laid on white, as transformers' processors do from 5.23 on, with a PIL image or an array;
  its `load_image` drops it instead, which shows whatever colour was left below, mostly black.
- Of several frames the first one counts (of an open PIL image, the one it stands at).
- Numbers outside 0 to 255 (16 bits, 32 bits, floats) are refused: a conversion would cut them off without a word.

Two limits keep a small file from taking all memory: Pillow's own on pixels, and one on how long a picture may be.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from nnsight_mmflow._errors import DataError, MMFlowError, PromptError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image as Picture

    OnePicture: TypeAlias = str | PathLike[str] | Picture | np.ndarray
    Pictures: TypeAlias = OnePicture | list[OnePicture] | None

LONGEST = 200.0  # times as long as wide; what Qwen's processors take at most
# Pillow's modes whose values are bytes. RGBa and La (premultiplied) and LAB cannot be converted by all its versions.
BYTES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")


def open_pictures(images: Pictures, max_aspect_ratio: int | float = LONGEST) -> list[Picture]:
    """The pictures upright and in RGB, opened if a path came; no picture gives an empty list.

    Raises:
        DataError: a file that is missing or is no picture, values that are no bytes, or a picture above a limit.
        PromptError: something that is neither path, picture nor array.
    """
    if isinstance(max_aspect_ratio, bool) or not isinstance(max_aspect_ratio, Real) or not max_aspect_ratio >= 1:
        raise PromptError(f"max_aspect_ratio is a number from 1, times as long as wide, not {max_aspect_ratio!r}.")
    if images is None:
        return []
    return [_open(image, max_aspect_ratio) for image in (images if isinstance(images, list | tuple) else [images])]


def as_square(picture: Picture, mean: Sequence[float]) -> Picture:
    """The picture centred on a square of its longer side, filled with the processor's mean colour.

    Raises:
        DataError: the square would have more pixels than the limit.

    Source: Cross-modal Information Flow; CLIP's mean gives (122, 116, 104).
    """
    from PIL import Image

    width, height = picture.size
    if width == height:
        return picture
    side = max(picture.size)
    _check_pixels(side, side, f"a picture of {width}x{height} padded to a square")
    square = Image.new("RGB", (side, side), tuple(int(channel * 255) for channel in mean))
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square


def _open(image: object, max_aspect_ratio: int | float) -> Picture:
    import numpy as np
    from PIL import Image

    if isinstance(image, Image.Image):
        try:
            return _shown(image, f"a PIL image of {image.width}x{image.height}", max_aspect_ratio)
        except MMFlowError:
            raise
        except Exception as error:  # it may be a file that is read only now; Pillow's readers raise anything
            raise DataError(f"the PIL image cannot be read ({type(error).__name__}: {error}).") from None
    if isinstance(image, np.ndarray):
        return _from_array(image, max_aspect_ratio)
    if isinstance(image, str | PathLike):
        return _from_file(image, max_aspect_ratio)
    raise PromptError(
        f"an image is a path, a PIL image or an array, not {type(image).__name__}."
        + {
            "Tensor": " Pass tensor.permute(1, 2, 0).numpy(), as uint8.",
            "bytes": " Pass PIL.Image.open(io.BytesIO(...)).",
            "list": " Several pictures are one flat list.",
        }.get(type(image).__name__, " Pass PIL.Image.open(...) of a file object." * hasattr(image, "read"))
    )


def _from_array(array: np.ndarray, max_aspect_ratio: int | float) -> Picture:
    import numpy as np
    from PIL import Image

    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))
    if array.dtype != np.uint8 or not shaped or 0 in array.shape or isinstance(array, np.ma.MaskedArray):
        raise PromptError(
            f"{type(array).__name__} of shape {array.shape} and type {array.dtype} came as an image; expected uint8 of"
            " shape (height, width, 3). Multiply by 255 and cast if it holds 0 to 1; divide by 256 and cast if 16 bits;"
            " np.moveaxis(array, 0, -1) if channels come first; list(array) if it holds several."
        )
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        raise PromptError(
            f"an array of shape {array.shape} may have its channels first or last; pass PIL.Image.fromarray(array) if"
            f" it is {array.shape[0]} pixels high."
        )
    _check_size(array.shape[1], array.shape[0], "the array", max_aspect_ratio)
    three = array[..., None] if array.ndim == 2 else array
    return Image.fromarray(on_white(three))


def _from_file(name: str | PathLike[str], max_aspect_ratio: int | float) -> Picture:
    from PIL import Image

    check_is_file(name)
    try:
        with Image.open(name) as opened:
            return _shown(opened, repr(str(name)), max_aspect_ratio)
    except Exception as error:  # Pillow's readers raise whatever a broken file makes of them
        raise _no_picture(name, error) from None


def check_picture(path: Path) -> None:
    """Refuses a file whose start is no picture's; quick, so a file that is cut short is found when it is read.

    Raises:
        DataError: what it is instead.
    """
    from PIL import Image

    try:
        check_is_file(path)
        with Image.open(path) as opened:
            opened.verify()
    except Exception as error:  # as above
        raise DataError(f"image {_no_picture(path, error)}") from None


def _no_picture(name: str | PathLike[str], error: Exception) -> MMFlowError:
    """The error of a file that Pillow cannot read, in words."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, MMFlowError):
        return error
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return DataError(f"{str(name)!r} has too many pixels: {error} {_raised(Image.MAX_IMAGE_PIXELS)}")
    if isinstance(error, UnidentifiedImageError):
        return DataError(
            f"{str(name)!r} cannot be read as an image: Pillow does not know its format. Convert it to PNG or JPEG"
            " (SVG is a drawing; HEIC needs pillow-heif)."
        )
    return DataError(f"{str(name)!r} cannot be read as an image ({type(error).__name__}: {error}).")


def check_is_file(name: str | PathLike[str]) -> None:
    """Refuses a path under which no ordinary file with content lies.

    Raises:
        DataError: addresses, folders, devices, empty files, names that cannot be.
    """
    text = str(name)
    shown = repr(text if len(text) <= 200 else f"{text[:80]}...")
    if text.startswith(("http://", "https://", "data:")):
        raise DataError(f"{shown} cannot be read as an image: it is no file. Download it first, and pass the file.")
    try:
        path = Path(text)
        there, whole = path.exists(), path.is_file()
        size = path.stat().st_size if whole else 0
    except (OSError, ValueError) as error:
        raise DataError(f"{shown} cannot be read as an image ({error}).") from None
    if not there:
        raise DataError(f"there is no image file {shown}.")
    if not whole or not size:
        kind = "a folder" if path.is_dir() else "an empty file" if whole else "no ordinary file"
        raise DataError(f"{shown} cannot be read as an image: it is {kind}.")


def _shown(picture: Picture, name: str, max_aspect_ratio: int | float) -> Picture:
    """The picture upright and in RGB, its size checked before its pixels are read."""
    from PIL import Image

    width, height = picture.size
    _check_size(width, height, name, max_aspect_ratio)
    if picture.mode not in BYTES:
        raise DataError(
            f"{name} is of mode {picture.mode}, whose values are not bytes or cannot be shown as they are: it would be"
            " cut off at 255. Scale it to 0 to 255 first, such as"
            ' PIL.Image.fromarray((np.asarray(picture) / 256).astype("uint8")) for 16 bits, and pass that.'
        )
    turned = upright(picture)
    if "A" in turned.getbands() or turned.info.get("transparency") is not None:
        return Image.fromarray(on_white(turned))
    turned = turned if turned.mode == "RGB" else turned.convert("RGB")
    turned.info = {}  # what a photo says besides, such as where it was taken, goes no further
    return turned


def upright(picture: Picture) -> Picture:
    """A copy of the picture, turned as its EXIF orientation says; the copy has none."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture)


def on_white(picture: Picture | np.ndarray) -> np.ndarray:
    """The picture, or array with its channels last, in RGB, on white where it is transparent.

    The same numbers as transformers' own function from 5.23 on; the one before lets transparency go.
    """
    import numpy as np
    from PIL import Image

    if isinstance(picture, Image.Image):
        clear = picture.convert("RGBA")
        return np.array(Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB"))
    if picture.shape[-1] == 1:
        return np.repeat(picture, 3, axis=-1)
    if picture.shape[-1] == 3:
        return picture
    alpha = picture[..., 3:] / 255
    return np.round(alpha * picture[..., :3] + (1 - alpha) * 255).astype(np.uint8)


def _check_size(width: int, height: int, name: str, max_aspect_ratio: int | float) -> None:
    if not width or not height:
        raise DataError(f"{name} is {width}x{height}: it has no pixel.")
    _check_pixels(width, height, name)
    if not max(width, height) <= max_aspect_ratio * min(width, height):
        raise DataError(
            f"{name} is {width}x{height}, {max(width, height) / min(width, height):,.1f} times as long as wide; the"
            f" limit is {max_aspect_ratio:g}. Crop it, or raise the limit: graph.prompt(..., max_aspect_ratio=...)."
        )


def _check_pixels(width: int, height: int, name: str) -> None:
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise DataError(f"{name} has {width * height:,} pixels ({width}x{height}). {_raised(Image.MAX_IMAGE_PIXELS)}")


def _raised(limit: int | None) -> str:
    return f"The limit is Pillow's, {limit or 0:,}: resize it, or raise PIL.Image.MAX_IMAGE_PIXELS."
