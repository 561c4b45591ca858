"""Pictures of every kind and form, in every family: the model is given what its own processor shows, or a refusal.

The reference of a row is the family's own processor, called by hand: with `load_image` for a path, as transformers
itself does, and with the PIL image or the array itself otherwise. Where transformers' ways differ, the module's choice
is taken: upright (`load_image`), transparency on white (the processor).
"""

import io
import struct
import warnings
import zlib
from functools import cache

import numpy as np
import pytest
import torch
from kit.families import QUESTION, family
from kit.tiny import picture
from PIL import Image
from transformers import BatchFeature
from transformers.image_utils import load_image

import nnsight_mmflow as mmf
from nnsight_mmflow.prompts import pictures as _pictures

FAMILIES = (
    "llava llava_pixtral llava_next llava_onevision qwen2_vl gemma3 gemma3_pan_and_scan paligemma idefics3 smolvlm"
    " internvl"
).split()
WIDE = (56, 40)
ORIENTED = {  # EXIF orientation: how a picture lies in such a file (the EXIF standard, table of the tag 0x0112)
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def alpha(seed=1):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, WIDE[::-1], dtype=np.uint8))


def of_mode(mode):
    """A picture of that mode; where it can be transparent, it is, each pixel as much as chance will have it."""
    made = picture(3, *WIDE)
    if mode in ("LA", "PA", "RGBA"):
        made = made.convert("L" if mode == "LA" else "RGB")
        made.putalpha(alpha())
        return made.quantize(32).convert("PA") if mode == "PA" else made
    return made.convert(mode)


def keyed(mode):
    """A picture one of whose colours stands for transparency (PNG's tRNS)."""
    made = of_mode(mode)
    colour = made.getpixel((0, 0))
    made.info["transparency"] = colour
    return made


def lying(number, upright):
    """The picture as it lies in a file with that EXIF orientation."""
    stored = upright.copy() if ORIENTED[number] is None else upright.transpose(ORIENTED[number])
    exif = Image.Exif()
    exif[0x0112] = number
    stored.info["exif"] = exif.tobytes()
    return stored


def frames(mode="RGB"):
    return [picture(seed, *WIDE).convert(mode) for seed in (3, 4, 5)]


def saved(made, ending, **options):
    target = io.BytesIO()
    made.save(target, ending, **options)
    return target.getvalue()


def animated(ending, **options):
    first, *others = frames()
    return saved(first, ending, save_all=True, append_images=others, **options)


EXIF = {number: lying(number, picture(3, *WIDE)) for number in ORIENTED}
FILES = {
    "png RGB": saved(picture(3, *WIDE), "PNG"),
    "png L": saved(of_mode("L"), "PNG"),
    "png 1": saved(of_mode("1"), "PNG"),
    "png P": saved(of_mode("P"), "PNG"),
    "png LA": saved(of_mode("LA"), "PNG"),
    "png RGBA": saved(of_mode("RGBA"), "PNG"),
    "png P transparent": saved(of_mode("RGBA").quantize(32), "PNG"),
    "png RGB key": saved(keyed("RGB"), "PNG", transparency=keyed("RGB").info["transparency"]),
    "png L key": saved(keyed("L"), "PNG", transparency=keyed("L").info["transparency"]),
    "png interlaced": saved(picture(3, *WIDE), "PNG", interlace=1),
    "png animated": animated("PNG"),
    "jpeg RGB": saved(picture(3, *WIDE), "JPEG"),
    "jpeg L": saved(of_mode("L"), "JPEG"),
    "jpeg CMYK": saved(of_mode("CMYK"), "JPEG"),
    "jpeg progressive": saved(picture(3, *WIDE), "JPEG", progressive=True),
    "gif": saved(of_mode("P"), "GIF"),
    "gif transparent": saved(of_mode("RGBA"), "GIF"),
    "gif animated": animated("GIF"),
    "webp": saved(picture(3, *WIDE), "WEBP", lossless=True),
    "webp transparent": saved(of_mode("RGBA"), "WEBP", lossless=True),
    "webp animated": animated("WEBP", lossless=True),
    "bmp": saved(picture(3, *WIDE), "BMP"),
    "tiff": saved(picture(3, *WIDE), "TIFF"),
    "tiff transparent": saved(of_mode("RGBA"), "TIFF"),
    "tiff CMYK": saved(of_mode("CMYK"), "TIFF"),
    "tiff pages": animated("TIFF"),
    "ppm": saved(picture(3, *WIDE), "PPM"),
    "tga transparent": saved(of_mode("RGBA"), "TGA"),
    **{f"jpeg orientation {n}": saved(made, "JPEG", exif=made.info["exif"]) for n, made in EXIF.items()},
    **{f"png orientation {n}": saved(EXIF[n], "PNG", exif=EXIF[n].info["exif"]) for n in (3, 6, 8)},
    **{f"webp orientation {n}": saved(EXIF[n], "WEBP", exif=EXIF[n].info["exif"]) for n in (6,)},
    "tiff orientation 6": saved(EXIF[6], "TIFF", exif=EXIF[6].info["exif"]),
}
# The file's name decides nothing: Pillow reads the content.
PIL_IMAGES = {
    **{f"mode {mode}": of_mode(mode) for mode in "1 L LA P PA RGB RGBA RGBX CMYK YCbCr HSV".split()},
    "key RGB": keyed("RGB"),
    "key L": keyed("L"),
    **{f"orientation {n}": made for n, made in EXIF.items()},
    "one pixel": Image.new("RGB", (1, 1), (255, 0, 0)),
    "three by three": picture(3, 3, 3),
}
ARRAYS = {
    "RGB": np.asarray(picture(3, *WIDE)),
    "RGBA": np.asarray(of_mode("RGBA")),
    "reversed": np.asarray(picture(3, *WIDE))[:, ::-1],
    "every second": np.asarray(picture(3, WIDE[0] * 2, WIDE[1] * 2))[::2, ::2],
    "Fortran": np.asfortranarray(np.asarray(picture(3, *WIDE))),
    "read only": np.frombuffer(picture(3, *WIDE).tobytes(), np.uint8).reshape(*WIDE[::-1], 3),
}
SEEN = ("pixel_values", "image_grid_thw", "image_sizes", "pixel_attention_mask", "num_crops")


@cache
def text_of(graph):
    return graph.prompt(picture(0), QUESTION).text


def by_hand(graph, shown):
    """What the family's own processor makes of a picture."""
    nested = [[shown]] if graph.family in ("gemma3", "idefics3", "smolvlm") else [shown]
    made = graph.processor(text=text_of(graph), images=nested)  # PaliGemma's return_tensors is deprecated in numpy
    return BatchFeature({name: made[name] for name in SEEN if name in made}, tensor_type="pt").data


def transparent(shown):
    return "A" in shown.getbands() or shown.info.get("transparency") is not None


def reference(graph, shown):
    """By hand, with transformers' own reading: a path by load_image, unless that would drop transparency."""
    if isinstance(shown, np.ndarray):
        return by_hand(graph, shown)
    if isinstance(shown, Image.Image):
        return by_hand(graph, shown if transparent(shown) else load_image(shown))
    with Image.open(shown) as opened:  # load_image(path) opens it the same, but leaves the file open
        return by_hand(graph, opened if transparent(opened) else load_image(opened))


def differs(graph, shown):
    """What is wrong with one row: '' where pixels are the reference's, and prompt.images shows the same picture."""
    try:
        prompt, expected = graph.prompt(shown, QUESTION), reference(graph, shown)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    for name, value in expected.items():
        if not torch.equal(prompt.inputs[name], value):
            return f"{name} is another"
    again = by_hand(graph, prompt.images[0])
    if not all(torch.equal(again[name], value) for name, value in expected.items()):
        return "prompt.images shows another picture"
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pictures")
    for name, content in FILES.items():
        (made / name).write_bytes(content)
    return made


def rows(folder, families=FAMILIES):
    """(family, kind, picture) of the table; every family sees every kind once, and a few in every form."""
    for name in families:
        yield from ((name, f"path {kind}", folder / kind) for kind in FILES)
        yield from ((name, f"PIL {kind}", made) for kind, made in PIL_IMAGES.items())
        yield from ((name, f"array {kind}", made) for kind, made in ARRAYS.items())


def test_the_model_is_given_what_its_own_processor_shows(folder):
    table = list(rows(folder))
    assert len(table) >= 600
    wrong = {f"{name}, {kind}": told for name, kind, made in table if (told := differs(family(name), made))}
    assert wrong == {}


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        ("orientation is ignored", {"path jpeg orientation 6", "PIL orientation 6", "path png orientation 8"}),
        ("alpha is dropped", {"path png RGBA", "PIL mode LA", "array RGBA", "path png P transparent"}),
        ("the size is another's", {"path png L", "PIL mode RGB"}),
    ],
)
def test_the_table_can_fail(folder, monkeypatch, fault, kinds):
    """Each fault is planted where the package reads, and its rows must be told."""
    if fault == "orientation is ignored":
        monkeypatch.setattr(_pictures, "upright", lambda shown: shown.copy())
    elif fault == "alpha is dropped":
        dropped = lambda image: image if isinstance(image, np.ndarray) else np.asarray(image.convert("RGB"))  # noqa: E731
        monkeypatch.setattr(_pictures, "on_white", lambda image: dropped(image)[..., :3])
    else:
        real = _pictures.open_pictures
        monkeypatch.setattr("nnsight_mmflow.model.graph.open_pictures", lambda *a: [p.resize((9, 9)) for p in real(*a)])
    told = {kind for _, kind, made in rows(folder, ["llava"]) if differs(family("llava"), made)}
    assert told >= kinds


@pytest.mark.parametrize("number", ORIENTED)
@pytest.mark.parametrize("form", ["path", "PIL"])
def test_boxes_point_at_the_upright_picture(tmp_path, number, form):
    """A marked patch in a photo that is stored sideways: its box, in upright pixels, gives the tokens that show it."""
    upright = Image.new("RGB", (64, 64))
    upright.paste((255, 0, 0), (8, 16, 32, 24))
    stored = lying(number, upright)
    stored.save(tmp_path / "photo.png", exif=stored.info["exif"])
    graph = family("llava")
    with Image.open(tmp_path / "photo.png") as opened:
        shown = tmp_path / "photo.png" if form == "path" else opened
        prompt = graph.prompt(shown, QUESTION, boxes=[(8, 16, 32, 24)])
    assert prompt.images[0].crop((8, 16, 32, 24)).getcolors() == [(24 * 8, (255, 0, 0))]
    red = prompt.inputs["pixel_values"][0, 0].unflatten(0, (8, 8)).unflatten(2, (8, 8)).amin((1, 3)) > 0
    assert int(red.sum()) == 3
    image = prompt.spans["image"]
    expected = [image.positions[i] for i in red.flatten().nonzero().flatten().tolist()]
    assert list(image.box(prompt.boxes[0])) == expected


def png(width, height, depth=8, colour=0):
    """A PNG of that size without its pixels: only its header speaks."""

    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def sixteen(mode="I;16"):
    return Image.fromarray(np.arange(WIDE[0] * WIDE[1], dtype=np.uint16).reshape(WIDE[::-1]) * 29).convert(mode)


def floats():
    return Image.fromarray(np.linspace(0, 1, WIDE[0] * WIDE[1], dtype=np.float32).reshape(WIDE[::-1]))


WHOLE = {ending: saved(picture(3, 64, 64), ending) for ending in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")}
BAD_FILES = {
    "16 bits": (saved(sixteen(), "PNG"), "is of mode I;16.*cut off at 255.*16 bits"),
    "16 bits tiff": (saved(sixteen(), "TIFF"), "is of mode I;16"),
    "32 bits tiff": (saved(sixteen("I"), "TIFF"), "is of mode I,"),
    "float tiff": (saved(floats(), "TIFF"), "is of mode F,"),
    "LAB tiff": (saved(Image.new("LAB", WIDE), "TIFF"), "is of mode LAB"),
    "empty": (b"", "it is an empty file"),
    "text": (b"no picture at all, only words\n", "Pillow does not know its format"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG is a drawing"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "HEIC needs pillow-heif"),
    "pdf": (b"%PDF-1.4\n%", "cannot be read as an image"),
    "html": (b"<!doctype html><title>404</title>", "cannot be read as an image"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "cannot be read"),
    "long": (png(20000, 1), "20000x1, 20,000.0 times as long as wide; the limit is 200.*max_aspect_ratio"),
    "high": (png(1, 20000), "1x20000, 20,000.0 times"),
    "201": (png(201, 1), "201.0 times"),
    "bomb": (png(60000, 60000), "too many pixels.*89,478,485.*MAX_IMAGE_PIXELS"),
    "half a bomb": (png(10000, 10000), "pixels.*89,478,485.*raise PIL.Image.MAX_IMAGE_PIXELS"),
    "no width": (png(0, 5), "cannot be read as an image|has no pixel"),
    "no pixels": (png(8, 8), "cannot be read as an image"),
    **{f"half a {name}": (content[: len(content) * 2 // 3], "cannot be read") for name, content in WHOLE.items()},
    **{f"a head of {name}": (content[:20], "cannot be read as an image") for name, content in WHOLE.items()},
}
TENSOR = torch.zeros(3, 8, 8, dtype=torch.uint8)
ZEROS = np.zeros((8, 8, 3))
BAD = {
    "a folder": (".", "cannot be read as an image: it is a folder"),
    "missing": ("gone.png", "there is no image file"),
    "an address": ("https://example.org/a.png", "is no file. Download it first"),
    "data": ("data:image/png;base64,AAAA", "is no file"),
    "base64": ("iVBORw0KGgo" * 500, "cannot be read|there is no image file"),
    "NUL": ("a\0.png", "cannot be read|there is no image file"),
    "a surrogate": ("\udcff\ud800.png", "cannot be read|there is no image file"),
    "no text": ("", "cannot be read as an image: it is a folder|there is no image file"),
    "a device": ("/dev/zero", "it is no ordinary file"),
    "bytes": (WHOLE["PNG"], "not bytes. Pass PIL.Image.open"),
    "bytearray": (bytearray(WHOLE["PNG"]), "not bytearray"),
    "a file object": (io.BytesIO(WHOLE["PNG"]), "not BytesIO. Pass PIL.Image.open"),
    "a tensor": (TENSOR, "not Tensor. Pass tensor.permute"),
    "a number": (3, "not int"),
    "true": (True, "not bool"),
    "a dict": ({"image": "x.png"}, "not dict"),
    "nested": ([[picture(0)]], "not list. Several pictures are one flat list"),
    "a set": ({1}, "not set"),
    "None in a list": ([None], "not NoneType"),
    "two pictures": ([picture(0), 5], "not int"),
    "mode I": (sixteen("I"), "is of mode I,"),
    "mode I;16": (sixteen(), "is of mode I;16"),
    "mode I;16B": (Image.new("I;16B", WIDE), "is of mode I;16B"),
    "mode F": (floats(), "is of mode F,"),
    "mode La": (Image.new("La", WIDE), "is of mode La"),
    "mode RGBa": (Image.new("RGBa", WIDE), "is of mode RGBa"),
    "mode LAB": (Image.new("LAB", WIDE), "is of mode LAB"),
    "no pixel": (Image.new("RGB", (0, 7)), "is 0x7: it has no pixel"),
    "long PIL": (Image.new("RGB", (2010, 10)), "2010x10, 201.0 times"),
    "long grey PIL": (Image.new("L", (10, 2010)), "10x2010, 201.0 times"),
    "large PIL": (Image.new("1", (10000, 10000)), "100,000,000 pixels .10000x10000.*89,478,485"),
    "float 0..1": (ZEROS, "type float64 came.*Multiply by 255"),
    "float32": (ZEROS.astype(np.float32), "type float32 came"),
    "NaN": (ZEROS + np.nan, "type float64 came"),
    "float16": (ZEROS.astype(np.float16), "type float16 came"),
    "uint16": (ZEROS.astype(np.uint16), "type uint16 came.*divide by 256"),
    "int64": (ZEROS.astype(int), "type int64 came"),
    "int8": (ZEROS.astype(np.int8), "type int8 came"),
    "bool": (ZEROS[..., 0] > 0, "type bool came"),
    "complex": (ZEROS * 1j, "type complex128 came"),
    "objects": (np.array([["a"]], object), "type object came"),
    "channels first": (np.zeros((3, 8, 8), np.uint8), "channels come first"),
    "one channel": (np.zeros((8, 8, 1), np.uint8), "expected uint8 of shape"),
    "two channels": (np.zeros((8, 8, 2), np.uint8), "expected uint8 of shape"),
    "five channels": (np.zeros((8, 8, 5), np.uint8), "expected uint8 of shape"),
    "either": (np.zeros((3, 8, 3), np.uint8), "may have its channels first or last"),
    "either, RGBA": (np.zeros((4, 4, 4), np.uint8), "may have its channels first or last"),
    "several": (np.zeros((2, 8, 8, 3), np.uint8), "list.array. if it holds several"),
    "a row": (np.zeros(9, np.uint8), "expected uint8 of shape"),
    "a scalar": (np.zeros((), np.uint8), "expected uint8 of shape"),
    "no rows": (np.zeros((0, 8, 3), np.uint8), "expected uint8 of shape"),
    "masked": (np.ma.masked_array(np.zeros((8, 8, 3), np.uint8)), "MaskedArray of shape"),
    "long array": (np.zeros((1, 2010, 3)[:2], np.uint8), "2010x1, 2,010.0 times"),
    "large array": (np.broadcast_to(np.uint8(0), (10000, 10000, 3)), "100,000,000 pixels"),
}


def refusal(graph, shown, text, **options):
    """What is wrong with a row that must be refused: '' if it is, in the words expected."""
    import re

    try:
        graph.prompt(shown, QUESTION, **options)
    except mmf.MMFlowError as error:
        return "" if re.search(text, str(error), re.DOTALL) else f"told {error}"
    except Exception as error:
        return f"foreign {type(error).__name__}: {error}"
    return "was taken"


@pytest.mark.parametrize("warned", ["error", "ignore"])
def test_what_cannot_be_shown_is_refused_in_words(tmp_path, warned):
    """Whether Pillow's warnings are errors or not."""
    graph = family("llava")
    for name, (content, _) in BAD_FILES.items():
        (tmp_path / name).write_bytes(content)
    table = {name: (tmp_path / name, text) for name, (_, text) in BAD_FILES.items()} | BAD
    lazy = {f"{name}, as PIL": Image.open(tmp_path / name) for name in ("half a PNG", "half a JPEG", "16 bits")}
    table |= {name: (shown, "cannot be read|is of mode I;16") for name, shown in lazy.items()}
    closed = Image.open(tmp_path / "16 bits").convert("L")
    closed.close()
    table["closed"] = (closed, "cannot be read")
    with warnings.catch_warnings():
        warnings.simplefilter(warned)
        wrong = {name: told for name, (shown, text) in table.items() if (told := refusal(graph, shown, text))}
    for opened in lazy.values():
        opened.close()
    assert wrong == {}


def test_limits_are_raised_as_the_error_says(monkeypatch):
    graph = family("llava")
    strip = Image.new("RGB", (1000, 4))
    assert "max_aspect_ratio" in str(pytest.raises(mmf.DataError, graph.prompt, strip, QUESTION).value)
    prompt = graph.prompt(strip, QUESTION, max_aspect_ratio=250)
    assert prompt.images[0].size == (1000, 4)
    assert len(mmf.corruption.blank_image(graph, prompt).prompt) == len(prompt)  # made again under the same limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3999)
    with pytest.raises(mmf.DataError, match="4,000 pixels .1000x4.. The limit is Pillow's, 3,999"):
        graph.prompt(strip, QUESTION, max_aspect_ratio=250)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 999_999)
    with pytest.raises(mmf.DataError, match="padded to a square has 1,000,000 pixels"):
        graph.prompt(strip, QUESTION, max_aspect_ratio=250, pad_to_square=True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert graph.prompt(strip, QUESTION, max_aspect_ratio=250, pad_to_square=True)
    for odd in (0, -3, 0.5, float("nan")):
        with pytest.raises(mmf.PromptError, match="max_aspect_ratio is a number from 1"):
            graph.prompt(strip, QUESTION, max_aspect_ratio=odd)


def test_a_picture_read_once_is_read_the_same_again():
    """No orientation is applied twice, and the user's own picture stays as it was."""
    for number, made in EXIF.items():
        before = made.tobytes()
        (once,) = _pictures.open_pictures(made)
        (twice,) = _pictures.open_pictures(once)
        assert once.tobytes() == twice.tobytes() == picture(3, *WIDE).tobytes(), number
        assert made.tobytes() == before
        assert made.getexif()[0x0112] == number
