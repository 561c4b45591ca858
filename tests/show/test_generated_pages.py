"""Sliders over generated tokens: each place shows that token's own numbers, by keys too, and nothing is fetched."""

import json

import pytest
from kit.browsing import opened

import nnsight_mmflow as mmf


def quiet(text: str) -> None:
    """No cost is told."""


@pytest.fixture(scope="module")
def prompt():
    return mmf.nano.prompts(mmf.load("nano"), 1)[0]


@pytest.fixture(scope="module")
def maps(prompt):
    return mmf.attention(mmf.load("nano"), prompt, layers=[5, 6], generated=3, report=quiet)


@pytest.fixture(scope="module")
def taken(prompt):
    return mmf.contributions(mmf.load("nano"), prompt, "question", generated=3, progress=False, report=quiet)


def labels(page):
    return [slide["label"] for slide in page.data["slides"]]


def test_each_place_is_that_tokens_own(prompt, maps, taken):
    page = mmf.show.attention(maps, 6)
    assert labels(page) == ["all", "generated[0] “orange”", "generated[1] “</s>”"]
    for number, slide in enumerate(page.data["slides"][1:]):
        last = slide["props"]["attention"][0][-1]  # the mean over heads, the row of what was generated
        weights = maps.at(6)[:, 76 + number].mean(0)
        assert last[1] == pytest.approx(float(weights[3:67].sum()), abs=1e-6)
        assert last[-1] == pytest.approx(float(weights[76:].sum()), abs=1e-6)
    assert len({slide["props"]["maxValue"] for slide in page.data["slides"]}) == 1
    words = mmf.show.tokens(prompt, maps, layer=6)
    assert labels(words) == ["generated[0] “orange”", "generated[1] “</s>”"]
    shown = [slide["props"]["values"] for slide in words.data["slides"]]
    assert shown[1] == pytest.approx(maps.at(6)[:, 77, 68:74].mean(0).tolist(), abs=1e-6)
    assert labels(mmf.show.tokens(prompt, taken)) == ["last", "generated[0] “orange”", "generated[1] “</s>”"]
    written = mmf.show.tokens(prompt, maps, at="generated", layer=6).data["slides"][0]["props"]
    assert written["tokens"][0].startswith("orange")


def test_pictures(prompt, maps):
    page = mmf.show.on_image(prompt, maps)
    assert isinstance(page, type(mmf.explore(maps)))
    assert len(set(slide["body"] for slide in page.data["slides"])) == 2
    assert hasattr(mmf.show.on_image(prompt, maps.token(0)), "axes")  # one token is a figure
    own = mmf.contributions(mmf.load("nano"), prompt, generated=1, progress=False, report=quiet)
    assert labels(own.on_image(prompt, 6)) == ["last", "generated[0] “orange”"]
    with pytest.raises(mmf.MMFlowError, match="another prompt"):
        mmf.show.on_image(mmf.nano.prompts(mmf.load("nano"), 2)[1], maps)


@pytest.mark.browser
def test_sliders_in_a_browser(chromium, prompt, maps, tmp_path):
    pages = {
        "attention": mmf.show.attention(maps, 6),
        "words": mmf.show.tokens(prompt, maps, layer=6),
        "pictures": mmf.show.on_image(prompt, maps),
    }
    for name, page in pages.items():
        with opened(chromium, page.save(tmp_path / f"{name}.html")) as tab:
            before = tab.locator("#slide").inner_html()
            assert tab.text_content("#token-name") == page.data["slides"][0]["label"]
            tab.locator("#token").focus()
            tab.keyboard.press("ArrowRight")
            tab.get_by_text(page.data["slides"][1]["label"]).wait_for()
            tab.wait_for_timeout(150)
            assert tab.locator("#slide").inner_html() != before
            assert tab.locator("#slide img" if name == "pictures" else "#drawn > *").count() >= 1


@pytest.mark.browser
def test_the_explorers_slider_selects_tokens(chromium, maps, tmp_path):
    with opened(chromium, mmf.explore(maps, layer=6).save(tmp_path / "page.html")) as tab:
        assert "Selected: “orange” (76)" in tab.text_content("#state")
        tab.locator("#token").focus()
        tab.keyboard.press("ArrowRight")
        assert "Selected: “</s>” (77)" in tab.text_content("#state")
        most = tab.locator("#receives li").first.text_content()
        best = int(maps.at(6).mean(0)[77].argmax())
        assert f"({best})" in most
        tab.locator("#words button", has_text="diamond").click()
        assert tab.text_content("#token-name") == "none selected"
        # the picture as it is stands beside the map, the box that the question is about on both
        bare = tab.locator(".bare img").bounding_box()
        frame = tab.locator(".frame").bounding_box()
        assert bare["width"] > 60
        assert bare["x"] >= frame["x"] + frame["width"]
        assert tab.locator(".bare i.box").count() == tab.locator(".frame i.box").count() == len(maps.prompt.boxes)
        x0, y0, x1, y1 = maps.prompt.boxes[0]
        box, side = tab.locator(".frame i.box").bounding_box(), maps.prompt.images[0].size[0]
        assert box["x"] - frame["x"] == pytest.approx(frame["width"] * x0 / side, abs=1)
        assert box["height"] == pytest.approx(frame["height"] * (y1 - y0) / side, abs=1)


def test_words_stay_words(maps):
    """What a model wrote reaches the document as data, never as markup."""
    held = json.dumps(mmf.show.attention(maps, 6).data)
    assert "</s>" in held
    assert "</s>" not in mmf.show.attention(maps, 6).html()


@pytest.mark.browser
def test_the_explorer_of_contributions_goes_over_tokens(chromium, tmp_path):
    nano = mmf.load("nano")
    prompts = mmf.nano.prompts(nano, 2)
    found = mmf.contributions(nano, prompts, generated=2, progress=False, report=quiet)
    page = mmf.explore(found, prompt=prompts[1], layer=4)
    assert page.data["tokens"] == ["last", "generated[0] “yellow”", "generated[1] “</s>”"]  # this prompt's words
    part = found.token(0).to_frame().query(f"prompt == '{prompts[1].key}' and layer == 4 and position == 39")
    with opened(chromium, page.save(tmp_path / "page.html")) as tab:
        assert tab.text_content("#state").startswith("Layer 4 of last. ")
        tab.locator("#token").focus()
        tab.keyboard.press("ArrowRight")
        assert tab.text_content("#token-name") == "generated[0] “yellow”"
        told = tab.locator("#largest li").first.text_content()
        assert told == f"row 4, column 4 (39): {float(f'{part.norm.item():.3g}'):g}"


def test_another_prompts_numbers_are_not_drawn(prompt):
    """Image tokens are called alike in all prompts: the key tells that these are another picture's."""
    found = mmf.contributions(mmf.load("nano"), prompt, progress=False, report=quiet)
    with pytest.raises(mmf.MMFlowError, match="none of this key"):
        mmf.show.on_image(mmf.nano.prompts(mmf.load("nano"), 2)[1], found)


def test_axes_are_no_place_for_a_page(prompt):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    own = mmf.contributions(mmf.load("nano"), prompt, generated=1, progress=False, report=quiet)
    with pytest.raises(mmf.MMFlowError, match=r"result\.token\(0\)"):
        own.on_image(prompt, 6, ax=axes)
    with pytest.raises(mmf.MMFlowError, match=r"result\.token\(0\)"):
        mmf.show.on_image(prompt, own, ax=axes)
    figure = own.token(0).on_image(prompt, [4, 6], figsize=(3.3, 2.4), rows=["layer 6"], labels=["six"], colors="magma")
    assert tuple(figure.get_size_inches()) == (3.3, 2.4)
    assert [one.get_title() for one in figure.axes[:2]] == ["picture", "six"]
    assert own.token(0).on_image(prompt, 6, ax=axes) is axes.figure
