"""Pixels come back bit by bit, in less; what has no such form travels as it is."""

import pickle

import numpy as np
import pytest
import torch
from kit.families import EAGER_ONLY, FAMILIES, family
from PIL import Image

from nnsight_mmflow.remote.pixels import packed, sent_bytes, travelling, unpacked


def back(tensor):
    return pickle.loads(pickle.dumps(travelling({"pixel_values": tensor})["pixel_values"]))


def same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()


def smooth(width, height):
    """A picture with every shade and some noise, as photographs have."""
    down, right = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 6, (height, width, 3))
    shades = np.stack([right * 250 / width, down * 250 / height, (right + down) * 250 / (width + height)], -1)
    return Image.fromarray((shades + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_familys_pixels_come_back(name):
    graph = family(name, "eager" if name in EAGER_ONLY else "sdpa")
    inputs = graph.prompt(smooth(120, 80), "what color is the circle ?").inputs
    pixels = {key: value for key, value in inputs.items() if value.is_floating_point()}
    assert pixels
    for value in pixels.values():
        assert packed(value) is not None
        assert same(back(value), value)
    assert sent_bytes(pixels) < 0.6 * sum(value.nbytes for value in pixels.values())


def test_five_tiles_are_below_one_mebibyte():
    """A LLaVA-NeXT's, compressed as nnsight's client does: the floats are not."""
    import zstandard

    picture = np.asarray(smooth(672, 672)).transpose(2, 0, 1)
    tiles = [picture[:, ::2, ::2], *(picture[:, y : y + 336, x : x + 336] for y in (0, 336) for x in (0, 336))]
    pixels = torch.from_numpy((np.stack(tiles)[None] / np.float32(255) - np.float32(0.45)) / np.float32(0.27)).float()
    kept = travelling({"pixel_values": pixels})["pixel_values"]
    small, whole = (len(zstandard.ZstdCompressor(level=6).compress(pickle.dumps(one))) for one in (kept, pixels))
    assert same(back(pixels), pixels)
    assert small < 1 << 20 < whole


def test_rows_that_repeat_are_sent_once():
    one = torch.rand(1, 3, 8, 8).mul(200).round() / 255
    four = one.repeat(4, 1, 1, 1)
    assert same(back(four), four)
    assert len(packed(four)[0]) == 1
    assert packed(torch.cat([four, -one]))[2].tolist() == [0, 0, 0, 0, 1]


def test_odd_numbers_keep_their_bits():
    few = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, 0.1])
    odd = few[torch.randint(0, 7, (2, 3, 5, 5), generator=torch.Generator().manual_seed(0))]
    for kind in (torch.float32, torch.bfloat16, torch.float64):
        value = odd.to(kind)
        found = unpacked(*packed(value))
        assert found.view(torch.uint8).equal(value.view(torch.uint8))


def test_what_has_no_small_form_travels_as_it_is():
    many = torch.rand(2, 3, 40, 40)
    assert packed(many) is None
    assert same(back(many), many)
    assert packed(torch.rand(4, 10)) is None
    assert type(back(many)) is torch.Tensor
    ids = torch.arange(6)[None]
    assert travelling({"input_ids": ids})["input_ids"] is ids
