"""Boxes and tokens against real processors at drawn sizes: bright patches, boxes at the padded edge, odd settings."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kit.geometry import CLIP, WAYS, geometry, process
from PIL import Image, ImageDraw
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import nnsight_mmflow as mmf
from nnsight_mmflow.adapters.processing import steps_of
from nnsight_mmflow.spans.views import View

ways = st.sampled_from(sorted(WAYS))


def kept_box(data, shape, least):
    """A box of whole pixels inside the part that the model sees, at least `least` processed pixels each way."""
    view = shape.views[0]
    left, top, right, bottom = view.kept()
    scale_x = view.to_processed((0, 0, 1, 1))[2] - view.to_processed((0, 0, 0, 0))[2]
    scale_y = view.to_processed((0, 0, 1, 1))[3] - view.to_processed((0, 0, 0, 0))[3]
    edges = []
    for low, high, scale in ((left, right, scale_x), (top, bottom, scale_y)):
        low, high, side = int(np.ceil(low)), int(np.floor(high)), int(np.ceil(least / scale))
        assume(high - low >= side)
        start = data.draw(st.integers(low, high - side))
        edges.append((start, data.draw(st.integers(start + side, high))))
    (x0, x1), (y0, y1) = edges
    return (x0, y0, x1, y1), (scale_x, scale_y)


@hypothesis_settings(deadline=None, max_examples=60)
@given(st.integers(60, 400), st.integers(60, 400), ways, st.data())
def test_the_patches_that_light_up_are_those_of_the_box(width, height, way, data):
    """White on black through the real processor. A resized edge stays where its 50% point is, so:

    a pixel above 50% has its centre in the box (grown by half a pixel for rounding), and a pixel whose centre is a
    pixel inside the box is above 25% (50% in each direction).
    """
    shape = geometry((width, height), way)
    box, (scale_x, scale_y) = kept_box(data, shape, 5)
    left, top, right, bottom = box
    canvas = np.zeros((height, width, 3), np.uint8)
    dark = process(Image.fromarray(canvas), way)[..., 0].astype(int)
    canvas[top:bottom, left:right] = 255
    light = process(Image.fromarray(canvas), way)[..., 0].astype(int) - dark

    def patches(above):
        return set((light > above * 255).reshape(24, 14, 24, 14).any((1, 3)).ravel().nonzero()[0])

    def meets(by):
        x, y = by / scale_x, by / scale_y
        return set(shape.tokens([(left - x, top - y, right + x, bottom + y)], "meets"))

    assert patches(0.52) <= meets(0.5)
    assert meets(-1.5) <= patches(0.23)  # 1 pixel inside, and half a pixel to the next pixel's centre


@hypothesis_settings(deadline=None, max_examples=100)
@given(st.integers(20, 900), st.integers(20, 900), ways, st.data())
def test_a_box_gives_the_tokens_whose_own_boxes_it_overlaps(width, height, way, data):
    shape = geometry((width, height), way, patch=56)
    boxes = [kept_box(data, shape, 0.1)[0] for _ in range(2)]
    for left, top, right, bottom in boxes:
        overlapping = tuple(
            token
            for token in range(36)
            if (own := shape.token_box(token))
            # an overlap thinner than 1e-5 pixels is rounding
            and min(own[2], right) - max(own[0], left) > 1e-5
            and min(own[3], bottom) - max(own[1], top) > 1e-5
        )
        assert overlapping
        assert shape.tokens([(left, top, right, bottom)], "meets") == overlapping
    both = set(shape.tokens(boxes[:1], "meets")) | set(shape.tokens(boxes[1:], "meets"))
    assert set(shape.tokens(boxes, "meets")) == both


def painted(size, box, way):
    """Spec section 1.4 by the processor itself: the patches with a pixel of exactly (255, 0, 0)."""
    canvas = Image.new("RGB", size, (0, 255, 0))
    ImageDraw.Draw(canvas).rectangle(box, fill=(255, 0, 0))
    red = (process(canvas, way) == (255, 0, 0)).all(-1)
    return tuple(red.reshape(24, 14, 24, 14).any((1, 3)).ravel().nonzero()[0].tolist())


@hypothesis_settings(deadline=None, max_examples=60)
@given(st.integers(60, 500), st.integers(60, 500), ways, st.data())
def test_raster_rule_is_the_real_processors_at_any_size(width, height, way, data):
    shape = geometry((width, height), way)
    box, _ = kept_box(data, shape, 5)
    wanted = painted((width, height), box, way)
    if wanted:
        assert shape.tokens([box], "raster") == wanted
        return
    with pytest.raises(mmf.SpanError, match="no image token shows any of"):  # a pixel at the edge, mixed with padding
        shape.tokens([box], "raster")


@pytest.mark.parametrize("way", ["square", "processor pads"])
@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((334, 398), (0, 0, 334, 91)),
        ((358, 389), (0, 290, 45, 388)),
        ((158, 374), (0, 173, 158, 337)),
        ((360, 167), (301, 73, 315, 166)),
        ((116, 172), (14, 0, 116, 127)),
        ((500, 333), (0, 0, 500, 333)),
    ],
)
def test_raster_rule_at_the_padded_edge(size, box, way):
    """A box at the picture's edge mixes with the padding's colour (122, 116, 104), not with green."""
    assert geometry(size, way).tokens([box], "raster") == painted(size, box, way)


@pytest.mark.parametrize(("size", "way"), [((696, 233), "square"), ((696, 233), "processor pads")])
def test_a_patch_that_only_rounding_puts_in_the_picture_has_no_box(size, way):
    """Here a patch begins exactly where the picture ends: its box must be None, or lead back to it."""
    shape = geometry(size, way, patch=56)
    for token in range(36):
        box = shape.token_box(token)
        assert box is None or shape.tokens([box], "meets") == (token,)


def test_a_crop_larger_than_the_picture_pads_as_the_processor_does():
    """transformers' center_crop without torchvision puts the odd pixel of padding before the picture."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": 301}, crop_size={"height": 336, "width": 336})
    white = Image.new("RGB", (301, 301), (255, 255, 255))
    made = processor(white, do_normalize=False, do_rescale=False, return_tensors="np")["pixel_values"][0]
    columns = made[0].any(0).nonzero()[0]
    steps = steps_of(processor, (301, 301), False, (336, 336))
    shape = View((301, 301), steps, 14, (24, 24))
    assert shape.to_processed((0, 0, 301, 301))[::2] == (columns[0], columns[-1] + 1)


def test_do_pad_counts_only_where_the_processor_heeds_it():
    """CLIP's processor has no padding to a square: with do_pad set it still crops, and the map must say so."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, do_pad=True)
    picture = np.zeros((250, 500, 3), np.uint8)
    picture[:, 125:375] = 255  # what a centre crop keeps
    made = processor(Image.fromarray(picture), do_normalize=False, do_rescale=False, return_tensors="np")
    assert made["pixel_values"][0][:, :, 2:-2].min() == 255  # 2 columns: the resize blurs the edge
    steps = steps_of(processor, (500, 250), False, (336, 336))
    assert steps == steps_of(CLIP, (500, 250), False, (336, 336))


def test_an_edge_that_is_not_a_number_is_refused():
    with pytest.raises(mmf.SpanError, match="has no area"):
        geometry((500, 333)).tokens([(0, 0, float("nan"), 3)])
