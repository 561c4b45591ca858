"""Numbers of image tokens on the picture, layer by layer: contributions, kept tokens, arrays, words on patches."""

import numpy as np
import pandas as pd
import pytest
import torch
from kit.browsing import opened
from kit.families import QUESTION, family
from kit.tiny import picture

import nnsight_mmflow as mmf
from nnsight_mmflow.show.pages.explore_parts import palette

EVIL = "</script><script>document.title = 'taken'</script>"


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def asked(nano):
    return mmf.nano.prompts(nano, 2)[1]


def colours(tab, place=".overlay"):
    """The middle of each patch of nano's 8 x 8."""
    code = "(canvas, at) => at.map(([x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data])"
    return tab.locator(place).evaluate(code, [[28 + 56 * (i % 8), 28 + 56 * (i // 8)] for i in range(64)])


def check_colours(tab, numbers, low, high, table):
    steps = np.rint(255 * (numbers - low) / (high - low)).astype(int)
    near = np.stack([table[np.clip(steps + by, 0, 255)] for by in (-1, 0, 1)])
    assert (abs(near - np.array(colours(tab))[:, :3]).max(-1).min(0) == 0).all()


@pytest.mark.browser
def test_contributions(chromium, nano, asked, tmp_path):
    prompts = mmf.nano.prompts(nano, 2)
    found = mmf.contributions(nano, prompts, progress=False)
    table = found.to_frame().query(f"head == -1 and prompt == '{asked.key}'").sort_values(["layer", "position"])
    norms = table["norm"].to_numpy().reshape(10, 64)
    with opened(chromium, mmf.explore(found, prompt=asked, layer=7).save(tmp_path / "page.html")) as tab:
        check_colours(tab, norms[7], 0, norms.max(), palette(signed=False).astype(int))
        tab.locator("#scale").select_option("one")
        check_colours(tab, norms[7], 0, norms[7].max(), palette(signed=False).astype(int))
        best = int(norms[7].argmax())
        told = tab.locator("#largest li").first.text_content()
        assert told == f"row {best // 8}, column {best % 8} ({best + 3}): {float(f'{norms[7, best]:.3g}'):g}"
        tab.locator("#layer").focus()
        tab.keyboard.press("ArrowLeft")
        assert tab.text_content("#state").startswith("Layer 6. Selected: row 0, column 0 (3): ")
        check_colours(tab, norms[6], 0, norms[6].max(), palette(signed=False).astype(int))
        tab.locator(".frame").press("ArrowDown")
        assert "row 1, column 0 (11)" in tab.text_content("#state")
        buttons = tab.locator("#words button").all_text_contents()
        assert [float(text.split(": ")[1]) for text in buttons] == pytest.approx(norms[:, 8].tolist(), rel=5e-3)
        tab.locator("#words button").nth(2).click()
        assert tab.text_content("#state").startswith("Layer 2.")


@pytest.mark.browser
def test_kept_tokens(chromium, nano, asked, tmp_path):
    kept = mmf.kept_tokens(nano, asked, mmf.HiMAP(k1=2, k2=4))
    with opened(chromium, mmf.explore(kept).save(tmp_path / "page.html")) as tab:
        for layer in (9, 3, 0):
            tab.locator("#layer").fill(str(layer))
            shown = colours(tab)
            assert [alpha == 0 for *_, alpha in shown] == [token in kept.layers[layer] for token in range(64)]
            assert f"{kept.counts[layer]} of 64 image tokens kept" in tab.text_content("#largest")
        gone = next(token for token in range(64) if token not in kept.layers[9])
        tab.locator(".frame").click(position={"x": 56 * (gone % 8) + 20, "y": 56 * (gone // 8) + 20})
        words = tab.locator("#words button").all_text_contents()
        assert [text.split(": ")[1] for text in words] == [
            "kept" if gone in layer else "dropped" for layer in kept.layers
        ]


@pytest.mark.browser
def test_arrays_with_labels_and_words(chromium, asked, tmp_path):
    random = torch.Generator().manual_seed(0)
    numbers = torch.randn(2, 64, generator=random)
    words = [[[(EVIL, 0.5), (f"word {layer} {token}", 0.25)] for token in range(64)] for layer in range(2)]
    page = mmf.explore(
        numbers, prompt=asked, labels=["embeddings", EVIL], words=words, layer="embeddings", title="mine"
    )
    with opened(chromium, page.save(tmp_path / "page.html"), 600) as tab:
        far = float(numbers.abs().max())
        check_colours(tab, numbers[0].numpy(), -far, far, palette(signed=True).astype(int))
        assert tab.title() == "values on the image"
        assert tab.text_content("h1") == "mine"
        tab.locator(".frame").hover(position={"x": 60, "y": 5})
        assert tab.text_content("#reading").endswith(f"{EVIL} 0.5, word 0 1 0.25")
        tab.locator(".frame").click(position={"x": 60, "y": 5})
        assert tab.locator("#said li").all_text_contents() == [f"{EVIL} 0.5", "word 0 1 0.25"]
        tab.locator("#layer").press("ArrowRight")
        assert tab.text_content("#state").startswith(f"Layer {EVIL}.")
        assert tab.locator("#said li").last.text_content() == "word 1 1 0.25"


class Found:
    """A result of another module, known by its kind."""

    def __init__(self, kind, table):
        self.kind, self.table = kind, table

    def to_frame(self):
        return self.table


@pytest.mark.browser
def test_words_and_knockouts_by_patch(chromium, asked, tmp_path):
    rows = [
        {
            "layer": layer,
            "token": token,
            "rank": rank,
            "word": f"{layer}-{token}-{rank}",
            "probability": 0.5 / (rank + 1),
        }
        for layer in (-1, 4)
        for token in range(64)
        for rank in (1, 0)
    ]
    lens = Found("lens_by_patch", pd.DataFrame(rows))
    with opened(chromium, mmf.explore(lens, prompt=asked).save(tmp_path / "page.html")) as tab:
        assert tab.locator("#words button").all_text_contents() == ["-1: -1-0-0 0.5", "4: 4-0-0 0.5"]
        assert tab.locator("#said li").all_text_contents() == ["4-0-0 0.5", "4-0-1 0.25"]
    closed = pd.DataFrame({"layer": [0, 0], "positions": [[3, 4], [66]], "change_percent": [-50.0, 5.0]})
    page = mmf.explore(Found("knockout_by_patch", closed), prompt=asked, words=pd.DataFrame(rows).assign(layer=0))
    with opened(chromium, page.save(tmp_path / "page.html")) as tab:
        assert [alpha for *_, alpha in colours(tab)] == [255, 255, *[0] * 61, 255]
        assert tab.locator("#largest li").first.text_content() == "row 0, column 0 (3): -50"
        assert tab.locator("#layers").is_hidden()
        assert tab.locator("#said li").count() == 4


@pytest.mark.browser
def test_two_pictures(chromium, tmp_path):
    graph = family("llava_next")
    prompt = graph.prompt([picture(0, 80, 48), picture(1, 48, 80)], QUESTION)
    numbers = np.arange(len(prompt.spans["image"]), dtype=float)
    with opened(chromium, mmf.explore(numbers, prompt=prompt).save(tmp_path / "page.html")) as tab:
        assert tab.locator(".frame").count() == 2
        last = prompt.spans["image"][1].base.positions[-1]
        tab.locator("#position").fill(str(last))
        tab.locator("#position").press("Enter")
        index = prompt.spans["image"].positions.index(last)
        assert tab.text_content("#state").endswith(f"picture 1, base, row 3, column 3 ({last}): {index}.")
        assert tab.locator("#view").input_value() == "base"


def test_what_is_refused(nano, asked):
    with pytest.raises(mmf.MMFlowError, match="a list does not hold the picture it is of: mmf.explore"):
        mmf.explore([[1.0]])
    with pytest.raises(
        mmf.MMFlowError, match=r"numbers \(layers, 64\) for the 64 image tokens .* shape \(2, 76\) came"
    ):
        mmf.explore(np.zeros((2, 76)), prompt=asked)
    with pytest.raises(mmf.MMFlowError, match="1 of 64 values are infinite"):
        mmf.explore([float("inf"), *[0.0] * 63], prompt=asked)
    with pytest.raises(mmf.MMFlowError, match="1 labels came for 2 layers"):
        mmf.explore(np.ones((2, 64)), prompt=asked, labels=["a"])
    with pytest.raises(mmf.MMFlowError, match=r"words must be \(layers, image tokens\) = \(2, 64\) .* \(1, 1\) came"):
        mmf.explore(np.ones((2, 64)), prompt=asked, words=[[[]]])
    with pytest.raises(mmf.MMFlowError, match="layer 3 is not among the values; they have 0, 1"):
        mmf.explore(np.ones((2, 64)), prompt=asked, layer=3)
    with pytest.raises(mmf.MMFlowError, match="layers= and heads= choose among attention maps"):
        mmf.explore(np.ones((2, 64)), prompt=asked, layers=[0])
    text = mmf.contributions(nano, asked, "question", "last", progress=False)
    with pytest.raises(mmf.MMFlowError, match="is of no image token: make it with source='image'"):
        mmf.explore(text, prompt=asked)
    with pytest.raises(mmf.MMFlowError, match="holds no number per layer and image token that is known here"):
        mmf.explore(pd.DataFrame({"a": [1]}), prompt=asked)
    with pytest.raises(mmf.MMFlowError, match="the result is of 2 prompt.* is none of them by its key"):
        mmf.explore(
            mmf.contributions(nano, mmf.nano.prompts(nano, 2), progress=False), prompt=mmf.nano.prompts(nano, 3)[2]
        )
