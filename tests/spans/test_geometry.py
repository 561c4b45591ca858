"""Boxes to image tokens and back: the paper's golden table, real processors as the reference, and properties."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kit.geometry import CLIP, WAYS, geometry, process
from PIL import Image, ImageDraw
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import nnsight_mmflow as mmf
from nnsight_mmflow.adapters.processing import steps_of
from nnsight_mmflow.prompts.pictures import as_square
from nnsight_mmflow.spans.geometry import CLASS, ImageGeometry, whole
from nnsight_mmflow.spans.views import Step, View

GOLDEN = [  # spec section 1.4, v1.5: size, boxes (x, y, w, h), how many tokens, first, last, sum
    ((375, 500), [(253, 291, 60, 105)], 15, 351, 449, 6000),
    ((500, 349), [(1, 0, 497, 348)], 432, 72, 503, 124200),
    ((500, 333), [(4, 211, 496, 121)], 144, 336, 479, 58680),
    ((405, 500), [(111, 71, 198, 323)], 176, 79, 449, 46464),
    ((500, 375), [(258, 157, 43, 22), (290, 77, 74, 110)], 32, 157, 281, 7098),
    ((500, 375), [(158, 221, 47, 51), (427, 170, 19, 74)], 20, 284, 393, 6836),
    ((334, 500), [(32, 312, 214, 147)], 88, 365, 543, 39952),
    ((500, 333), [(337, 23, 162, 310)], 120, 136, 479, 36900),
]


@pytest.mark.parametrize(("size", "boxes", "count", "first", "last", "total"), GOLDEN)
def test_golden_table(size, boxes, count, first, last, total):
    tokens = geometry(size).tokens([(x, y, x + w, y + h) for x, y, w, h in boxes])
    assert (len(tokens), tokens[0], tokens[-1], sum(tokens)) == (count, first, last, total)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [(500, 333), (120, 400), (336, 336), (71, 64)])
def test_raster_rule_is_the_real_processors(size, way):
    """The canvas pushed through the processor itself: every patch with a pixel that kept the exact colour."""
    width, height = size
    box = (width // 5, height // 3, width // 2, height // 2)
    canvas = Image.new("RGB", size, (0, 255, 0))
    ImageDraw.Draw(canvas).rectangle(box, fill=(255, 0, 0))
    red = (process(canvas, way) == (255, 0, 0)).all(-1)
    expected = red.reshape(24, 14, 24, 14).any((1, 3)).ravel().nonzero()[0]
    assert geometry(size, way).tokens([box], "raster") == tuple(expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [(500, 333), (120, 400), (640, 480)])
def test_token_boxes_are_where_the_processor_puts_those_pixels(size, way):
    """Paint one token's own box: in the processed picture its patch is the one that is filled."""
    shape = geometry(size, way)
    boxes = {token: shape.token_box(token) for token in range(576)}
    whole = max((box[2] - box[0]) * (box[3] - box[1]) for box in boxes.values() if box)
    shown = [i for i, box in boxes.items() if box and (box[2] - box[0]) * (box[3] - box[1]) > whole / 2]  # no slivers
    for token in shown[:: len(shown) // 7]:
        left, top, right, bottom = shape.token_box(token)
        canvas = np.zeros((size[1], size[0], 3), np.uint8)
        canvas[round(top) : round(bottom), round(left) : round(right)] = 255
        filled = (
            process(Image.fromarray(canvas), way)[..., 0].astype(float).reshape(24, 14, 24, 14).mean((1, 3)).ravel()
        )
        background = process(Image.fromarray(np.zeros_like(canvas)), way)[..., 0].reshape(24, 14, 24, 14).mean((1, 3))
        assert (filled - background.ravel()).argmax() == token


sides = st.integers(20, 900)


@hypothesis_settings(deadline=None, max_examples=60)
@given(sides, sides, st.sampled_from(sorted(WAYS)))
def test_a_tokens_box_mapped_back_gives_that_token(width, height, way):
    shape = geometry((width, height), way, patch=56)
    for token in range(36):
        box = shape.token_box(token)
        if box is None:
            assert way in ("square", "processor pads")  # only padding shows no pixel of the picture
            continue
        assert 0 <= box[0] < box[2] <= width
        assert 0 <= box[1] < box[3] <= height
        # slivers thinner than the tolerance (1e-6 processed pixels) at the picture's edge aside
        if min((box[2] - box[0]) * 336 / width, (box[3] - box[1]) * 336 / height) > 1e-3:
            assert shape.tokens([box], "meets") == (token,)


@hypothesis_settings(deadline=None, max_examples=100)
@given(sides, sides, st.sampled_from(sorted(WAYS)), st.data())
def test_every_pixel_that_is_kept_has_a_token_and_others_are_refused(width, height, way, data):
    shape = geometry((width, height), way)
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    left, top, right, bottom = shape.views[0].kept()
    if x + 1 <= left or x >= right or y + 1 <= top or y >= bottom:
        with pytest.raises(mmf.SpanError, match="pad_to_square=True"):
            shape.tokens([(x, y, x + 1, y + 1)], "meets")
    elif min(right - x, x + 1 - left, bottom - y, y + 1 - top) > 1e-3:
        assert shape.tokens([(x, y, x + 1, y + 1)], "meets")


def test_a_class_token_has_no_box():
    view = View((64, 64), (Step("resize", 64, 64),), 8, (8, 8))
    shape = ImageGeometry((64, 64), (view,), (CLASS, *whole((8, 8))))
    assert shape.token_box(0) is None
    assert shape.token_box(1) == (0, 0, 8, 8)
    assert shape.tokens([(0, 0, 8, 8)]) == (1,)


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ((10, 10, 10, 20), "has no area: (x0, y0, x1, y1) needs x0 < x1"),
        ((600, 10, 700, 20), "lies outside the picture, which is 500x333 pixels"),
        ((1, 2, 3), "a box is (x0, y0, x1, y1) in pixels"),
        ((0, 100, 40, 200), "of the 500x333 picture the model sees x 83.3 to 416.7 and y 0.0 to 333.0"),
    ],
)
def test_bad_boxes(box, text):
    with pytest.raises(mmf.SpanError, match=re.escape(text)):
        geometry((500, 333), "crop").tokens([box])


def test_other_errors():
    with pytest.raises(mmf.SpanError, match="no box was given"):
        geometry((500, 333)).tokens([])
    with pytest.raises(mmf.SpanError, match='rule must be "meets" or "raster"'):
        geometry((500, 333)).tokens([(0, 0, 5, 5)], "nearest")
    odd = CLIPImageProcessorPil(size={"shortest_edge": 336, "longest_edge": 400})
    with pytest.raises(mmf.ModelError, match="shortest_edge alone, or width and height"):
        steps_of(odd, (10, 20), False, (336, 336))
    with pytest.raises(mmf.ModelError, match="its settings hold a step that this package does not know"):
        steps_of(CLIP, (500, 333), False, (300, 336))


def test_square_padding_is_the_papers():
    square = np.asarray(as_square(Image.new("RGB", (4, 10), (255, 0, 0)), CLIP.image_mean))
    assert square.shape == (10, 10, 3)
    assert (square[:, :3] == (122, 116, 104)).all()
    assert (square[:, 3:7] == (255, 0, 0)).all()
