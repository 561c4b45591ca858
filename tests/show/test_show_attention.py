"""Pages that CircuitsVis draws: pooled maps and coloured tokens, safe against any token, and nothing is fetched."""

import re
import sys
import urllib.request
from dataclasses import replace

import pytest
import torch
from kit.browsing import opened

import nnsight_mmflow as mmf
from nnsight_mmflow.show.attention_blocks import MOST_CELLS, axis_name
from nnsight_mmflow.show.pages.circuits import parts_of

EVIL = '</script><img src=x onerror="document.title=1"> &lt; <image>'


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def asked(nano):
    return mmf.nano.prompts(nano, 1)[0]


@pytest.fixture(scope="module")
def maps(nano, asked):
    return mmf.attention(nano, asked)


def renamed(prompt, position, token):
    tokens = list(prompt.spans.tokens)
    tokens[position] = token
    return replace(prompt, spans=replace(prompt.spans, tokens=tuple(tokens)))


def by_box(prompt):
    box = prompt.spans["image"].box(*prompt.boxes)
    return {"object": box, "rest of image": prompt.spans["image"] - box, EVIL: "~image"}


def test_what_is_drawn_is_the_pool(maps, asked):
    page = mmf.show.attention(maps, 4, by=by_box(asked))
    props, pooled = page.data["props"], maps.by_span(by_box(asked)).weights[4]
    assert props["attentionHeadNames"] == ["mean", "head 0", "head 1", "head 2", "head 3"]
    drawn = torch.tensor(props["attention"])
    assert torch.allclose(drawn[1:], pooled)
    assert torch.allclose(drawn[0], pooled.mean(0))
    assert props["maxValue"] == pytest.approx(float(drawn.max()))
    assert f"Full colour is {float(drawn.max()):.3g}, the largest cell of rows" in page.body
    assert "<td>object</td><td>39-40, 47-48</td><td class='number'>4</td><td class='number'>4</td>" in page.body
    assert "0.5, as asked for" in mmf.show.attention(maps, 4, max_value=0.5).body


def test_the_first_token_does_not_set_the_scale(maps):
    """It can but give all to itself, so every other cell would be pale."""
    props = mmf.show.attention(maps, 6, by="token", heads=[1]).data["props"]
    drawn = torch.tensor(props["attention"])
    assert float(drawn[0, 0, 0]) == 1
    assert props["maxValue"] == pytest.approx(float(drawn[:, 1:].max()))
    assert props["tokens"][67] == "'\\n'"


def test_rows_without_targets_stay_empty_and_square(nano, asked):
    cut = mmf.attention(nano, asked, layers=[4], target="last", source="image | question", heads=[1, 3])
    page = mmf.show.attention(cut, 4)
    drawn = torch.tensor(page.data["props"]["attention"])
    assert drawn.shape == (3, 3, 3)  # image, question, suffix (of which only `last` reads)
    assert float(drawn[:, :2].abs().max()) == 0
    assert page.data["props"]["attentionHeadNames"] == ["mean", "head 1", "head 3"]
    assert "2 row(s) are empty" in page.body
    assert f"only 70 of {len(asked)} positions are drawn as sources" in page.body
    assert str(page).splitlines()[2].split() == ["image", "-", "-", "-"]


def test_a_tensor_a_span_cache_and_maps_agree(maps, asked):
    weights = maps.at(4)
    one, other = mmf.show.attention(maps, 4), mmf.show.attention(weights, 4, prompt=asked)
    assert one.data == other.data
    cache = mmf.bridge.cache_by_span(
        {"blocks.4.attn.hook_pattern": weights[None]}, asked, ["prefix", "image", "question"]
    )
    pooled = mmf.show.attention(cache, 4, prompt=asked)
    drawn = torch.tensor(one.data["props"]["attention"])[:, :3, :3]
    assert torch.allclose(torch.tensor(pooled.data["props"]["attention"]), drawn, atol=1e-6)
    assert "cannot be told from pooled weights" in pooled.body
    assert "<td class='number'>64</td>" in pooled.body
    overlapping = mmf.bridge.cache_by_span({"blocks.4.attn.hook_pattern": weights[None]}, asked)
    assert "spans overlap" in mmf.show.attention(overlapping, 4).body


def test_sinks_are_marked(maps, asked):
    received = maps.received.clone()
    received[4, [0, 9]] = 11
    page = mmf.show.attention(replace(maps, received=received), 4)
    assert page.data["props"]["tokens"] == ["prefix*", "image*", "question", "suffix"]
    assert "* holds attention sinks: most later positions give them more than 10 times" in page.body
    assert "<td>9</td>" in page.body
    assert "No position is an attention sink" in mmf.show.attention(replace(maps, received=received), 3).body


def test_what_is_refused(maps, asked, nano):
    weights = maps.at(4)
    for wrong, message in (
        (
            weights[None],
            r"expected \(heads, queries, keys\) = \(heads, 76, 76\) .*, but \(1, 4, 76, 76\) came.*batch's",
        ),
        (weights[0], r"but \(76, 76\) came. Of one head: take weights\[None\]"),
        (weights[:, -3:], r"but \(4, 3, 76\) came: rows and columns would be misnamed"),
        (weights[:, :70, :70], r"but \(4, 70, 70\) came"),
        (weights.log(), "are they scores before the softmax"),
    ):
        with pytest.raises(mmf.MMFlowError, match=message):
            mmf.show.attention(wrong, 4, prompt=asked)
    with pytest.raises(mmf.MMFlowError, match=r"a tensor \(4, 76, 76\) came without its prompt"):
        mmf.show.attention(weights, 4)
    with pytest.raises(mmf.MMFlowError, match="prompt= is another prompt"):
        mmf.show.attention(maps, 4, prompt=mmf.nano.prompts(nano, 2)[1])
    many = weights.repeat(3, 1, 1)
    with pytest.raises(mmf.MMFlowError, match=f'12 heads x 76 x 76 groups .* {MOST_CELLS} cells.*by="image_row"'):
        mmf.show.attention(many, 4, prompt=asked, by="token")
    assert mmf.show.attention(many, 4, prompt=asked, by="token", heads=[11]).data["props"]["tokens"][0] == "<s>"
    with pytest.raises(mmf.MMFlowError, match=r"heads \[7\] were asked for; there are 0, 1, 2, 3"):
        mmf.show.attention(maps, 4, heads=[7])
    cache = mmf.bridge.cache_by_span({"blocks.4.attn.hook_pattern": weights[None]}, asked)
    with pytest.raises(mmf.MMFlowError, match="pooled already, by prefix, image, question, suffix, last"):
        mmf.show.attention(cache, 4, by="image_row")
    with pytest.raises(mmf.MMFlowError, match="holds no blocks.5.attn.hook_pattern; it holds blocks.4"):
        mmf.show.attention(cache, 5)


def test_nothing_is_asked_of_the_network(maps, asked, monkeypatch):
    """CircuitsVis' own display opens google.com and may import its script from a CDN."""

    def refused(*given, **named):
        raise AssertionError(f"the network was asked: {given}")

    monkeypatch.setattr(urllib.request, "urlopen", refused)
    for page in (mmf.show.attention(maps, 4), mmf.show.tokens(asked, [1.0] * 6)):
        shown = page._repr_html_() + page.html()
        assert not re.search("unpkg|google|sourceMappingURL", shown)
        assert len(page.html()) < 600_000


def test_without_circuitsvis_it_says_what_to_type(maps, asked, monkeypatch):
    monkeypatch.setitem(sys.modules, "circuitsvis", None)
    for show in (lambda: mmf.show.attention(maps, 4), lambda: mmf.show.tokens(asked, [1.0] * 6)):
        with pytest.raises(mmf.MMFlowError, match=r"not installed: pip install 'nnsight-mmflow\[circuitsvis\]'"):
            show()


def test_another_circuitsvis_is_noticed():
    with pytest.raises(mmf.MMFlowError, match="circuitsvis .* writes its pages in a way that is not known here"):
        parts_of('<div id="circuits-vis-1"/><script>CircuitsVis.mount({"a": 1})</script>')


def test_labels_have_no_spaces_and_fit():
    assert axis_name("image row 3") == "image_row_3"
    assert axis_name("a" * 40, marked=True) == "a" * 17 + "\u2026*"


@pytest.mark.browser
def test_a_saved_map_opens_and_the_head_under_the_mouse_is_shown(chromium, maps, asked, tmp_path):
    page = mmf.show.attention(maps, 4, by=by_box(asked))
    with opened(chromium, page.save(tmp_path / "map.html"), 900, 1000) as tab:
        assert tab.title() == "attention, nano, layer 4"
        assert tab.locator("canvas").count() == 4 + 1 + 1
        assert tab.locator("td", has_text="</script>").text_content() == EVIL
        large = "document.querySelectorAll('canvas')[5].toDataURL()"
        before = tab.evaluate(large)
        tab.locator("canvas").nth(3).hover()
        tab.get_by_text("head 2 Zoomed").wait_for()
        tab.wait_for_timeout(100)
        assert tab.evaluate(large) != before
        tab.locator("canvas").nth(2).click()
        tab.mouse.move(5, 5)
        tab.get_by_text("head 1 Zoomed").wait_for()
        assert tab.locator("canvas").nth(5).bounding_box()["height"] > 200


@pytest.mark.browser
def test_a_notebook_shows_both_in_frames_of_their_height(chromium, maps, asked, tmp_path):
    pages = mmf.show.attention(maps, 4), mmf.show.tokens(asked, [1.0, -2, 3, 0, 5, 6])
    shown = "".join(page._repr_html_() for page in pages)
    (tmp_path / "notebook.html").write_text(f"<!doctype html><html data-ready='yes'><body>{shown}</body></html>")
    with opened(chromium, tmp_path / "notebook.html", 900, 1500) as tab:
        first, second = (tab.frame_locator("iframe").nth(at) for at in (0, 1))
        first.locator("html[data-ready=yes]").wait_for(state="attached")
        second.locator("html[data-ready=yes]").wait_for(state="attached")
        assert first.locator("canvas").count() == 6
        for at, frame in ((0, first), (1, second)):
            inside = frame.locator("table").last.bounding_box()
            around = tab.locator("iframe").nth(at).bounding_box()
            assert 0 < around["y"] + around["height"] - inside["y"] - inside["height"] < 40


@pytest.mark.browser
def test_any_token_shows_as_itself(chromium, asked, tmp_path):
    """Planted: CircuitsVis writes tokens as HTML, so this one would be an image whose error handler runs."""
    prompt = renamed(asked, asked.spans["question"].positions[2], EVIL)
    page = mmf.show.tokens(prompt, [1.0, -2, 3, 0, 5, 6], label="planted")
    with opened(chromium, page.save(tmp_path / "tokens.html")) as tab:
        assert tab.title() == "question: planted"
        assert tab.locator("img").count() == 0
        token = tab.locator(".colored-tokens > span").nth(2)
        assert token.text_content().replace("\u2060", "").replace("\u00a0", " ") == EVIL
        token.hover()
        tip = tab.locator(".colored-tokens strong")
        assert tip.text_content().replace("\u2060", "") == EVIL
        color = "getComputedStyle(document.querySelectorAll('.colored-tokens > span > span')[{}]).backgroundColor"
        assert tab.evaluate(color.format(5)) == "rgb(86, 180, 233)"
        assert tab.evaluate(color.format(3)) == "rgb(255, 255, 255)"
        assert tab.locator("td", has_text="</script>").count() == 1


def test_values_of_tokens_come_from_results(nano, asked):
    question = asked.spans["question"]
    taken = mmf.contributions(nano, asked, "question", "last", progress=False)
    table = taken.to_frame()
    props = mmf.show.tokens(asked, taken, layer=4).data["props"]
    expected = table[table["layer"] == 4].set_index("position")["norm"].loc[list(question)].tolist()
    assert props["values"] == pytest.approx(expected)
    summed = mmf.show.tokens(asked, taken).data["props"]["values"]
    assert summed == pytest.approx(table.groupby("position")["norm"].sum().loc[list(question)].tolist())
    read = mmf.lens(nano, asked, at="question", progress=False)
    page = mmf.show.tokens(asked, read, layer=9)
    assert str(page).startswith("question: lens, answer lower, layer 9")
    assert len(page.data["props"]["values"]) == 6
    with pytest.raises(mmf.MMFlowError, match="a lens reads each layer by itself: layer="):
        mmf.show.tokens(asked, read)
    with pytest.raises(mmf.MMFlowError, match="layer 12 is not in the result; it has -1 to 9"):
        mmf.show.tokens(asked, read, layer=12)
    with pytest.raises(mmf.MMFlowError, match="has no column 'nrom'; it has prompt"):
        mmf.show.tokens(asked, taken, column="nrom")
    with pytest.raises(mmf.MMFlowError, match="SaliencyResult holds no number per token of text"):
        mmf.show.tokens(asked, mmf.saliency(nano, asked, progress=False))
    other = renamed(asked, question.positions[0], "who")
    with pytest.raises(mmf.MMFlowError, match="the result has 'what' at position 68, this prompt 'who'"):
        mmf.show.tokens(other, taken)


def test_knockout_by_token_equals_knockouts_one_by_one(nano, asked):
    effects = mmf.knockout_by_token(nano, asked, progress=False)
    values = mmf.show.tokens(asked, effects, layer=3).data["props"]["values"]
    with torch.no_grad(), nano.trace(asked, use_cache=False) as _:
        base = nano.model.output.logits[0, -1].softmax(-1).save()
    token = int(base.argmax())
    for position, value in zip(asked.spans["question"], values, strict=True):
        one = asked.spans["question"].part([position], "one")
        pattern = mmf.Knockout(source=one, target="last", layers=[3])
        with torch.no_grad(), nano.trace(asked, pattern, use_cache=False) as _:
            after = nano.model.output.logits[0, -1].softmax(-1).save()
        assert abs((float(after[token]) / float(base[token]) - 1) * 100 - value) < 1e-2
    lowest = mmf.show.tokens(asked, effects).data["props"]["values"]
    assert lowest == pytest.approx(effects.to_frame().groupby("edge", sort=False)["change_percent"].min().tolist())
    named = mmf.flow(nano, asked, ["text('diamond')->last"], 1, progress=False, report=str)
    assert len(mmf.show.tokens(asked, named, at="text('diamond')").data["props"]["values"]) == 1
    with pytest.raises(mmf.MMFlowError, match="5 of the 6 tokens of 'question' have no value, .* 'what'"):
        mmf.show.tokens(asked, named)
    with pytest.raises(mmf.NoEffectError, match="are source and target swapped|Are source and target swapped"):
        mmf.knockout_by_token(nano, asked, "last", "question")


def test_values_that_do_not_fit_the_tokens(asked):
    with pytest.raises(mmf.MMFlowError, match="5 values came for the 6 tokens of 'question'"):
        mmf.show.tokens(asked, torch.ones(5))
    with pytest.raises(mmf.MMFlowError, match="2 of the 6 tokens .* no value, the first of them 'the' at position 71"):
        mmf.show.tokens(asked, {68: 1, 69: 2, 70: 0, 73: 4})
    with pytest.raises(mmf.MMFlowError, match="1 of 6 values are not finite"):
        mmf.show.tokens(asked, [0, 1, float("nan"), 2, 3, 4])
    with pytest.raises(mmf.MMFlowError, match="every value is 0"):
        mmf.show.tokens(asked, [0] * 6)
    scale = mmf.show.tokens(asked, [0, -1, -2, -3, 0, 0], max_value=2).body
    assert "Full orange is -2, as asked for; white is 0." in scale
    assert "1 lie beyond the scale." in scale
