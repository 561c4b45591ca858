"""Attention on the image, in a browser: what is drawn and told is what the weights say; mouse and keys change it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from kit.browsing import opened
from kit.explored import made_up_maps
from kit.families import QUESTION, family
from kit.tiny import picture

import nnsight_mmflow as mmf
from nnsight_mmflow.show.pages.explore_attention import POWERS, furthest, packed_weights
from nnsight_mmflow.show.pages.explore_parts import palette

EVIL = "</script><img src=x onerror=alert(1)>"
CIVIDIS = palette(signed=False).astype(int)


@pytest.fixture(scope="module")
def maps():
    """Three layers of nano; in layer 5 the first token and the image token at 20 pass for sinks, "what" has a name."""
    graph = mmf.load("nano")
    asked = mmf.nano.prompts(graph, 1)[0]
    found = mmf.attention(graph, asked, layers=[2, 5, 8])
    received = found.received.clone()
    received[1, [0, 20]] = 50.0
    tokens = list(asked.spans.tokens)
    tokens[68] = EVIL
    return replace(found, received=received, prompt=replace(asked, spans=replace(asked.spans, tokens=tuple(tokens))))


@pytest.fixture(scope="module")
def file(maps, tmp_path_factory):
    return mmf.explore(maps, layer=5).save(tmp_path_factory.mktemp("explored") / "page.html")


def kept(weights, causal=True):
    """(heads, targets, sources) as the page has them; NaN where a source comes later."""
    largest = weights.amax((1, 2), keepdim=True)
    held = largest * ((weights / largest).sqrt() * 255).round().div(255) ** 2
    return held.masked_fill(torch.ones_like(held).triu(1) > 0, torch.nan) if causal else held


def pixels(tab, place, points):
    """Red, green, blue and alpha of a canvas at pixels of its own."""
    code = "(canvas, at) => at.map(([x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data])"
    return tab.locator(place).evaluate(code, points)


def edge(tab, position):
    """How much of an outline is at the upper edge of a patch of nano's 8 x 8."""
    row, column = divmod(position - 3, 8)
    return pixels(tab, ".frame canvas:last-child", [[56 * column + 20, 56 * row]])[0][3]


def patches(tab):
    return tab.evaluate("page.data.pictures[0].views[0].patches")


def check_overlay(tab, shown, sinks, selected):
    """Every patch has the colour of its value; what is left out of the scale may lie beyond it."""
    drawn = patches(tab)
    known = [float(shown[one[0]]) for one in drawn if one[0] not in {*sinks, selected}]
    high = max(value for value in known if value == value)
    middles = [[(one[3] + one[5]) // 2, (one[4] + one[6]) // 2] for one in drawn]
    found = pixels(tab, ".overlay", middles)
    for (x, y), colours in zip(middles, found, strict=True):
        on_top = [one[0] for one in drawn if one[3] <= x < one[5] and one[4] <= y < one[6]][-1]
        value = float(shown[on_top])
        assert colours[3] == (255 if value == value else 0)
        if value == value:
            step = round(255 * min(1.0, value / high))
            near = CIVIDIS[max(0, step - 1) : step + 2]  # one step: a product rounded at the edge of two
            assert (abs(near - colours[:3]).max(1) == 0).any(), (on_top, step, colours)
    assert len(set(map(tuple, found))) > 8
    return high


@pytest.mark.browser
def test_colours_and_top_fives_are_the_weights(chromium, file, maps):
    mean = kept(maps.at(5)).mean(0)
    with opened(chromium, file) as tab:
        high = check_overlay(tab, mean[75], [0, 20], 75)
        assert float(tab.text_content("#picture-bar .high").removesuffix(" and more")) == pytest.approx(high, rel=0.05)
        tab.locator("#position").fill("40")
        tab.locator("#position").press("Enter")
        assert "row 4, column 5 (40)" in tab.text_content("#state")
        for which, line in (("receives", mean[40]), ("sends", mean[:, 40])):
            order = sorted(range(76), key=lambda position: (-float(line[position]), position))
            order = [position for position in order if line[position] > 0][:5]
            told = tab.locator(f"#{which} li").all_text_contents()
            assert [int(text.split("(")[-1].split(")")[0]) for text in told] == order
            exact = maps.at(5).mean(0)[40] if which == "receives" else maps.at(5).mean(0)[:, 40]
            for text, position in zip(told, order, strict=True):
                number = float(text.split(": ")[-1].split(",")[0])
                assert number == pytest.approx(float(line[position]), rel=0.06)  # two digits
                assert abs(float(exact[position]) - float(line[position])) <= furthest(float(line[position]), 1.0, 0.5)
                assert text.endswith(", sink") == (position in (0, 20))
        tab.locator("#direction").select_option("sends")
        check_overlay(tab, mean[:, 40], [0, 20], 40)
        mass = float(maps.at(5)[:, 75, 3:67].sum(-1).mean())
        tab.locator("#direction").select_option("receives")
        tab.get_by_role("button", name=":", exact=False).last.click()
        words = tab.locator("#words button", has_text="64 tokens").text_content()
        assert float(words.split(", ")[1].split(" ")[0]) == pytest.approx(mass, abs=0.008)


@pytest.mark.browser
def test_mouse_and_keys_reach_everything(chromium, file, maps):
    with opened(chromium, file) as tab:
        frame = tab.locator(".frame")
        box = frame.bounding_box()
        tab.mouse.move(box["x"] + 1, box["y"] + 1)
        tab.mouse.move(box["x"] + box["width"] * 0.55, box["y"] + box["height"] * 0.3)  # row 2, column 4
        assert tab.text_content("#reading").startswith("row 2, column 4 (23): “:” receives from it 0.")
        tab.mouse.click(box["x"] + box["width"] * 0.55, box["y"] + box["height"] * 0.3)
        assert "Selected: row 2, column 4 (23)" in tab.text_content("#state")
        frame.focus()
        for key, position in (("ArrowRight", 24), ("ArrowDown", 32), ("ArrowLeft", 31), ("ArrowUp", 23)):
            tab.keyboard.press(key)
            assert f"({position})" in tab.text_content("#state")
            assert edge(tab, position) == 255
        before = pixels(tab, ".overlay", [[30, 30]])
        tab.locator("#layer").focus()
        tab.keyboard.press("ArrowRight")
        tab.get_by_text("Layer 8, mean of 4 heads.").wait_for()
        assert pixels(tab, ".overlay", [[30, 30]]) != before
        check_overlay(tab, kept(maps.at(8)).mean(0)[23], [], 23)
        tab.locator("#head").select_option("2")
        tab.get_by_text("Layer 8, head 2.").wait_for()
        check_overlay(tab, kept(maps.at(8))[2][23], [], 23)
        tab.locator("#head").select_option("max")
        tab.get_by_text("largest of 4 heads").last.wait_for()
        check_overlay(tab, kept(maps.at(8)).amax(0)[23], [], 23)
        tab.locator("#words button", has_text="color").click()
        tab.keyboard.press("ArrowLeft")
        assert f"Selected: “{EVIL}” (68)" in tab.text_content("#state")
        assert tab.locator("#words button[aria-pressed=true]").text_content() == EVIL
        assert tab.locator("#words button").first.get_attribute("tabindex") == "-1"
        tab.locator("#matrix").focus()
        for key in ("ArrowUp", "ArrowUp", "ArrowLeft"):
            tab.keyboard.press(key)
        assert tab.text_content("#reading").startswith(
            "“?” (73) receives from “ASSISTANT” (74): cannot, it comes later"
        )
        tab.keyboard.press("Enter")
        assert "Selected: “?” (73)" in tab.text_content("#state")


@pytest.mark.browser
def test_tab_goes_to_every_control(chromium, file):
    with opened(chromium, file) as tab:
        reached = []
        for _ in range(9):
            tab.keyboard.press("Tab")
            reached.append(
                tab.evaluate(
                    "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
                )
            )
        assert reached == ["layer", "head", "direction", "position", "opacity", "sinks", "frame", "matrix", "BUTTON"]


@pytest.mark.browser
def test_sinks_are_marked_and_leave_the_scale(chromium, maps, tmp_path):
    weights = maps.weights.clone()
    weights[1, :, 75] *= 0.1
    weights[1, :, 75, 20] = 0.9
    with opened(chromium, mmf.explore(replace(maps, weights=weights), layer=5).save(tmp_path / "page.html")) as tab:
        assert tab.text_content("#words small") == "sink"
        low, at = tab.text_content("#picture-bar .high"), next(one for one in patches(tab) if one[0] == 20)
        assert float(low.removesuffix(" and more")) < 0.1
        assert low.endswith("and more")
        ring = (at[3] + at[5]) // 2 + round(0.34 * (at[5] - at[3])), (at[4] + at[6]) // 2
        assert pixels(tab, ".frame canvas:last-child", [ring])[0][3] == 255
        cells = [[10, 60], [75, 10]]
        before = pixels(tab, "#weights", cells)
        tab.locator("#sinks").uncheck()
        assert float(tab.text_content("#picture-bar .high")) == pytest.approx(0.9)
        after = pixels(tab, "#weights", cells)
        assert before[1] == after[1] == [255] * 4  # cannot be read
        assert before[0] != after[0]
        tab.locator("#layer").fill("0")
        tab.get_by_text("Layer 2, mean").wait_for()
        assert tab.locator("#words small").count() == 0


@pytest.mark.browser
def test_in_an_exported_notebook(chromium, maps, tmp_path):
    """Twice in one document, as a notebook with two cells is exported: each in its own frame."""
    shown = "".join(f"<div class='output'>{mmf.explore(maps, layer=layer)._repr_html_()}</div>" for layer in (2, 8))
    (tmp_path / "notebook.html").write_text(f"<!doctype html><html data-ready='yes'><body>{shown}</body></html>")
    with opened(chromium, tmp_path / "notebook.html") as tab:
        for number, layer in enumerate((2, 8)):
            frame = tab.frame_locator("iframe").nth(number)
            frame.get_by_text(f"Layer {layer}, mean of 4 heads").wait_for()
            frame.locator(".frame").click(position={"x": 5, "y": 5})
            frame.get_by_text("Selected: row 0, column 0 (3)").wait_for()
            height = tab.locator("iframe").nth(number).bounding_box()["height"]
            assert height > frame.locator("#kept").evaluate("one => one.offsetTop + one.offsetHeight")


@pytest.mark.browser
@pytest.mark.parametrize("name", ["llava_next", "idefics3"])
def test_divided_pictures(chromium, name, tmp_path):
    graph = family(name)
    prompt = graph.prompt([picture(0, 80, 48)], QUESTION)
    maps = mmf.attention(graph, prompt, layers=[1], target="question | suffix")
    shown = kept(maps.at(1), causal=False).mean(0)[-1]
    with opened(chromium, mmf.explore(maps).save(tmp_path / "page.html"), 600) as tab:
        assert tab.locator("#view option").all_text_contents()[0] == "finest"
        check_overlay(tab, dict(zip(maps.sources, shown.tolist(), strict=True)), [], maps.targets[-1])
        base = prompt.spans["image"].base.positions[-1]
        tab.locator("#position").fill(str(base))
        tab.locator("#position").press("Enter")
        assert tab.locator("#view").input_value() == "base"
        assert f"base, row {1 if name == 'idefics3' else 3}" in tab.text_content("#state")
        assert "unknown: it is not among the targets read" in tab.text_content("#receives")
        assert tab.locator("#sends li").count() == 5
        tab.locator(".frame").press("ArrowLeft")
        assert f"({base - 1})" in tab.text_content("#state")
        assert tab.locator(".frame").bounding_box()["width"] <= 448


@pytest.mark.browser
def test_two_pictures_and_a_prompt_that_reads_ahead(chromium, tmp_path):
    graph = family("qwen2_vl")
    prompt = graph.prompt([picture(0, 80, 48), picture(1, 48, 80)], QUESTION)
    maps = mmf.attention(graph, prompt, layers=[0])
    with opened(chromium, mmf.explore(maps).save(tmp_path / "page.html")) as tab:
        assert tab.locator(".frame img").count() == 2
        assert tab.locator("#words button", has_text="picture 1: 15 tokens").count() == 1
        tab.locator(".frame").nth(1).click(position={"x": 9, "y": 9})
        assert "Selected: picture 1, row 0, column 0" in tab.text_content("#state")
    ahead = family("paligemma")
    maps = mmf.attention(ahead, ahead.prompt(picture(0, 80, 48), QUESTION), layers=[0])
    assert bool(maps.weights.triu(1).any())
    with opened(chromium, mmf.explore(maps).save(tmp_path / "page.html")) as tab:
        assert tab.evaluate("page.data.lower") is False
        check_overlay(tab, kept(maps.at(0), causal=False).mean(0)[-1], maps.sinks(0), maps.targets[-1])


def test_how_exact_bytes_are():
    random = torch.Generator().manual_seed(0)
    weights = (torch.randn(3, 40, 40, generator=random) * 2).tril().exp().tril()
    weights = (weights / weights.sum(-1, keepdim=True)).numpy()
    for power in (0.5, 0.74, 1.0):
        held = np.rint((weights / weights.max((1, 2), keepdims=True)) ** power * 255)
        back = weights.max((1, 2), keepdims=True) * (held / 255) ** (1 / power)
        for head, one in enumerate(weights):
            far = np.array([furthest(float(w), float(one.max()), power) for w in one.ravel()])
            assert (abs(back[head] - one).ravel() <= far + 1e-6).all()
            assert far.max() <= one.max() / 255 * 1.0001
    packed, power, largest = packed_weights(weights, lower=True)
    assert power == POWERS[0] == 0.5
    assert largest == pytest.approx(weights.max((1, 2)).tolist())
    assert len(packed) < 3 * 820 * 4 / 3


def test_sizes():
    maps = made_up_maps(32, 600)
    page = mmf.explore(maps)
    assert len(page.html().encode()) < 2_000_000
    assert page.data["powers"][0] > 0.5
    assert "With fewer heads" in page.data["kept"]
    assert mmf.explore(maps, heads=range(8)).data["powers"] == [0.5]
    twice = replace(maps, weights=maps.weights.repeat(2, 1, 1, 1), layers=(3, 4), received=maps.received.repeat(2, 1))
    with pytest.raises(
        mmf.MMFlowError, match=r"2 layers x 32 heads x 600 targets x 600 sources would take about [34] MB"
    ):
        mmf.explore(twice, most_bytes=1_000_000)


@pytest.mark.slow
@pytest.mark.browser
def test_a_large_page_opens(chromium, tmp_path):
    """Under 3 s by itself (benchmarks/pages.py); here other tests run beside it."""
    import time

    file = mmf.explore(made_up_maps(32, 600)).save(tmp_path / "page.html")
    started = time.perf_counter()
    with opened(chromium, file) as tab:
        assert time.perf_counter() - started < 9
        assert tab.text_content("#words small") == "sink"


def test_what_is_refused(maps):
    graph = mmf.load("nano")
    text = graph.prompt(None, "what color is the diamond ?")
    with pytest.raises(mmf.PromptError, match=r"this prompt has no image: graph.prompt\(image, question\)"):
        mmf.explore(mmf.attention(graph, text))
    with pytest.raises(mmf.PromptError, match="this prompt has no image"):
        mmf.explore([[1.0]], prompt=text)
    with pytest.raises(mmf.MMFlowError, match="layers \\[4\\] asked for; the maps hold 2, 5, 8"):
        mmf.explore(maps, layers=[2, 4])
    with pytest.raises(mmf.MMFlowError, match="layer 4 is not among those shown: 2, 5"):
        mmf.explore(maps, layers=[2, 5], layer=4)
    with pytest.raises(mmf.MMFlowError, match="words= belongs to numbers of image tokens"):
        mmf.explore(maps, words=[])
    with pytest.raises(mmf.MMFlowError, match="another prompt than the maps are of"):
        mmf.explore(maps, prompt=mmf.nano.prompts(graph, 2)[1])
    assert mmf.explore(maps, title="mine").data["title"] == "mine"
