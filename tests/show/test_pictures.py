"""Numbers on the picture against a slow loop over boxes; knockout and lens by patch against plain forwards."""

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from kit.families import EAGER_ONLY, FAMILIES, QUESTION, family
from kit.tiny import picture

import nnsight_mmflow as mmf
from nnsight_mmflow.runs.plan import make_plan, sizes_of
from nnsight_mmflow.show.boxes import drawn_boxes, mosaic
from nnsight_mmflow.show.heat import drawn_words
from nnsight_mmflow.spans.regions import random_partners, regions_of


def graph_of(name):
    return family(name, "eager" if name in EAGER_ONLY else "sdpa")


def asked(graph, width=96, height=64):
    return graph.prompt(picture(0, width, height), QUESTION)


def seen_at(figure, panel, x, y):
    """The number that a panel shows at a point of the picture; None where it shows none."""
    mesh = figure.axes[1 + panel].collections[0]
    corners, numbers = mesh.get_coordinates(), mesh.get_array()
    column, row = np.searchsorted(corners[0, :, 0], x) - 1, np.searchsorted(corners[:, 0, 1], y) - 1
    if not (0 <= row < numbers.shape[0] and 0 <= column < numbers.shape[1]) or np.ma.is_masked(numbers[row, column]):
        return None
    return float(numbers[row, column])


def token_at(places, x, y, view=None):
    """The token that covers a point, found one by one: of several the one of the view with the smallest patches."""
    area = {}
    for place in places:
        if place.box:
            left, top, right, bottom = place.box
            area[place.view] = max(area.get(place.view, 0), round((right - left) * (bottom - top), 3))
    found = None
    for token, place in enumerate(places):
        if place.box and view in (None, place.view):
            left, top, right, bottom = place.box
            inside = left <= x < right and top <= y < bottom
            if inside and (found is None or area[place.view] <= area[places[found].view]):
                finer = found is not None and area[place.view] == area[places[found].view]
                if not (finer and place.view == "base"):
                    found = token
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pixel_has_the_value_of_the_token_that_covers_it(name):
    prompt = asked(graph_of(name), 100, 62)
    places = prompt.spans["image"].places()
    values = np.arange(1, len(places) + 1)
    views = {place.view for place in places if place.box}
    for view in [None, *(views if len(views) > 1 else ["base"])]:
        figure = mmf.show.on_image(prompt, values, view=view)
        for x in np.arange(0.37, 100, 2.9):
            for y in np.arange(0.37, 62, 2.9):
                token = token_at(places, x, y, "image" if views == {"image"} else view)
                assert seen_at(figure, 0, x, y) == (None if token is None else token + 1), (view, x, y)


@pytest.mark.parametrize("name", ["llava_next", "idefics3", "gemma3_pan_and_scan", "llava_onevision_shrunk"])
def test_boxes_that_are_drawn_are_the_tokens_own(name):
    prompt = asked(graph_of(name))
    geometry = prompt.spans["image"].images[0].geometry
    drawn = drawn_boxes(prompt)
    assert all(geometry.token_box(token) == box for token, box in zip(*drawn, strict=True))
    assert set(np.array(mosaic(drawn.boxes).which).flatten()) - {-1} == set(range(len(drawn.boxes)))
    assert set(drawn_boxes(prompt, view="base").tokens) == {
        token for token, place in enumerate(prompt.spans["image"].places()) if place.view == "base" and place.box
    }
    with pytest.raises(mmf.SpanError, match="view='crop' was asked for, but this picture's views are"):
        drawn_boxes(prompt, view="crop")


def caption(figure):
    return figure._supxlabel.get_text().replace("\n", " ")


def test_what_has_no_pixels_and_what_lies_below_is_told():
    prompt = asked(graph_of("llava_next"))
    places = prompt.spans["image"].places()
    values = np.array([3.0 if place.kind == "newline" else 1.0 for place in places])  # 6 newlines, 64 patches
    told = caption(mmf.show.on_image(prompt, values))
    assert "48 patches of view tiles; 70 image tokens in all" in told
    assert f"No pixels: 6 (end a row of patches), {18 / 82:.0%} of the sum" in told
    assert f"16 patches of view base (finer ones lie over them), {16 / 82:.0%}" in told
    assert '48 patches of view tiles (view="base" was asked for)' in caption(
        mmf.show.on_image(prompt, values, view="base")
    )


def test_scales(prompt):
    values = np.linspace(0, 1, 64)
    norm = mmf.show.on_image(prompt, values).axes[1].collections[0].norm
    assert (norm.vmin, norm.vmax) == (0, 1)
    signed = mmf.show.on_image(prompt, values - 0.25).axes[1].collections[0]
    assert (signed.norm.vmin, signed.norm.vmax) == (-0.75, 0.75)
    assert signed.cmap(0.5)[:3] == pytest.approx((1, 1, 1), abs=0.02)
    assert mmf.show.on_image(prompt, values, signed=True).axes[1].collections[0].norm.vmin == -1
    cut = mmf.show.on_image(prompt, values, max_value=0.5)
    assert cut.axes[1].collections[0].norm.vmax == 0.5
    assert "32 lie beyond the scale, up to 1." in caption(cut)
    assert mmf.show.on_image(prompt, np.zeros(64)).axes[1].collections[0].norm.vmax == 1


def test_values_of_every_kind(graph, prompt):
    image = list(prompt.spans["image"])
    maps = mmf.attention(graph, prompt, layers=[1, 3], target="question", source="all")
    figure = mmf.show.on_image(prompt, maps)
    expected = maps.weights[:, :, :, image].mean((1, 2))
    assert [axis.get_title() for axis in figure.axes[1:3]] == ["layer 1", "layer 3"]
    for layer in (0, 1):
        shown = figure.axes[1 + layer].collections[0].get_array()
        assert np.allclose(shown.flatten(), expected[layer])
    two = mmf.show.on_image(prompt, expected, titles=["a", "b"], label="weight $5 in a_b")
    assert np.allclose(two.axes[2].collections[0].get_array().flatten(), expected[1])
    assert len(two._repr_png_()) > 10_000
    part = mmf.show.on_image(prompt, {image[3]: 2.0, image[9]: 1.0}).axes[1].collections[0].get_array()
    assert part.count() == 2
    assert part[0, 3] == 2
    taken = mmf.contributions(graph, prompt, progress=False)
    table = taken.to_frame().query("head == -1")
    shown = mmf.show.on_image(prompt, taken).axes[1].collections[0].get_array()
    assert np.allclose(shown.flatten(), table.groupby("position")["norm"].sum())
    shown = taken.on_image(prompt, [0, 2]).axes[2].collections[0].get_array()
    assert np.allclose(shown.flatten(), table[table["layer"] == 2]["norm"])
    flows = mmf.saliency(graph, prompt, progress=False)
    shown = mmf.show.on_image(prompt, flows).axes[1].collections[0].get_array()
    assert np.allclose(shown.flatten(), flows.tokens().groupby("index")["saliency"].sum())


def test_several_images(graph):
    prompt = graph.prompt([picture(0), picture(1, 80, 64)], QUESTION)
    both = np.arange(128)
    for image in (0, 1):
        shown = mmf.show.on_image(prompt, both, image=image).axes[1].collections[0].get_array()
        assert shown.flatten().tolist() == list(range(64 * image, 64 * image + 64))
    with pytest.raises(mmf.PromptError, match="image=2 was asked for, but the prompt has 2"):
        mmf.show.on_image(prompt, both, image=2)


def test_what_is_refused(graph, prompt):
    with pytest.raises(mmf.MMFlowError, match="63 values came for the 64 tokens of image 0"):
        mmf.show.on_image(prompt, np.ones(63))
    with pytest.raises(mmf.MMFlowError, match=re.escape("have the shape (2, 3, 64). Take the mean")):
        mmf.show.on_image(prompt, np.ones((2, 3, 64)))
    with pytest.raises(mmf.MMFlowError, match="3 titles came for 2 panels"):
        mmf.show.on_image(prompt, np.ones((2, 64)), titles=["a", "b", "c"])
    with pytest.raises(mmf.MMFlowError, match="1 values are infinite"):
        mmf.show.on_image(prompt, [float("inf"), *[0.0] * 63])
    with pytest.raises(mmf.MMFlowError, match="41 panels were asked for"):
        mmf.show.on_image(prompt, np.ones((41, 64)))
    with pytest.raises(mmf.MMFlowError, match="which hold no token of this image"):
        mmf.show.on_image(prompt, {0: 1.0})
    with pytest.raises(mmf.SpanError, match='source="image"'):
        mmf.show.on_image(prompt, mmf.attention(graph, prompt, source="question"))
    with pytest.raises(mmf.MMFlowError, match="are of another prompt"):
        mmf.show.on_image(graph.prompt(picture(0), QUESTION), mmf.attention(graph, prompt))
    with pytest.raises(mmf.MMFlowError, match="max_value=0 must be above 0"):
        mmf.show.on_image(prompt, np.ones(64), max_value=0)
    with pytest.raises(mmf.SpanError, match="the processor did not divide it"):
        mmf.show.on_image(prompt, np.ones(64), view="tiles")
    with pytest.raises(mmf.PromptError, match="no image"):
        mmf.show.on_image(graph.prompt(None, QUESTION), np.ones(64))
    with pytest.raises(mmf.MMFlowError, match="a LensByPatchResult holds no number per image token"):
        mmf.show.on_image(prompt, mmf.lens_by_patch(graph, prompt, layers=1))


def test_kept_tokens_layer_by_layer(graph, prompt):
    found = mmf.kept_tokens(graph, prompt, mmf.FastV(k=2, r=0.5))
    figure = found.on_image(by_layer=True)
    assert [axis.get_title() for axis in figure.axes[1:3]] == ["layers 0 to 1: 64 tokens", "layers 2 to 4: 32 tokens"]
    shown = figure.axes[2].collections[0].get_array().flatten()
    assert np.flatnonzero(shown).tolist() == found.layers[2]
    counts = found.on_image().axes[1].collections[0].get_array().flatten()
    assert counts.tolist() == [5 if token in found.layers[2] else 2 for token in range(64)]


# Knockout by patch.


def by_hand(graph, prompt, positions, target, layers):
    """(log-probability of the clean answer, the same with the positions knocked out, whether the answer stays)."""
    span = prompt.spans["image"].part(positions, "patch")
    with torch.no_grad():
        with graph.trace(prompt, use_cache=False):
            clean = graph.model.output.logits[0, -1].save()
        with graph.trace(prompt, mmf.Knockout(source=span, target=target, layers=layers), use_cache=False):
            cut = graph.model.output.logits[0, -1].save()
    logs = [logits.double().log_softmax(-1) for logits in (clean, cut)]
    token = int(clean.argmax())
    return float(logs[0][token]), float(logs[1][token]), int(cut.argmax()) != token


@pytest.mark.parametrize(
    ("name", "attention", "target"),
    [
        ("llava", "sdpa", "last"),
        ("llava", "eager", "question"),
        ("llava_next", "sdpa", "last"),
        ("idefics3", "eager", "question | suffix"),
        ("paligemma", "sdpa", "last"),
    ],
)
def test_knockout_by_patch_is_a_knockout_of_each(name, attention, target):
    """Within 1e-5 nats: rows and forwards sum in another order."""
    graph = family(name, attention)
    prompt, layers = asked(graph), range(1, 3)
    result = mmf.knockout_by_patch(graph, prompt, target=target, layers=layers, progress=False)
    table = result.to_frame()
    assert table["positions"].map(lambda held: held[0]).tolist() == list(prompt.spans["image"])
    for row in table.iloc[:: max(1, len(table) // 8)].itertuples():
        base, cut, changed = by_hand(graph, prompt, row.positions, target, layers)
        assert abs(row.log_probability_change - (cut - base)) < 1e-5
        assert abs(row.base_probability - math.exp(base)) < 1e-5
        assert abs(row.change_percent - (math.exp(cut - base) - 1) * 100) < 2e-3
        assert row.answer_changed == changed
    assert table["log_probability_change"].abs().max() > 1e-4
    base, cut, _ = by_hand(graph, prompt, list(prompt.spans["image"]), target, layers)
    assert abs(result.header["whole_change_percent"][0] - math.expm1(cut - base) * 100) < 2e-3


def test_squares_windows_and_their_controls():
    graph = family("llava_next")
    prompt = asked(graph)
    result = mmf.knockout_by_patch(graph, prompt, size=2, layers=[1, 2], window=1, progress=False)
    table = result.to_frame()
    assert table["layer"].unique().tolist() == [1, 2]
    assert (table["first_layer"] == table["layer"]).all()
    held = [position for positions in table[table["layer"] == 1]["positions"] for position in positions]
    places = dict(zip(prompt.spans["image"], prompt.spans["image"].places(), strict=True))
    assert sorted(held) == [position for position, place in places.items() if place.kind == "patch"]
    assert result.header["left_out"] == {"tokens that show no patch": 6}
    regions = regions_of(prompt.spans["image"], 2)
    partners = random_partners(regions, 0)
    for number in (0, 5):
        row = table[(table["layer"] == 2) & (table["region"] == number)].iloc[0]
        square = {(places[position].row // 2, places[position].column // 2) for position in row["positions"]}
        assert square == {(row["row"] // 2, row["column"] // 2)}
        assert len(partners[number]) == row["n_tokens"]
        assert not set(partners[number]) & set(row["positions"])
        assert {places[position].view for position in partners[number]} == {row["view"]}
        for positions, found in ((row["positions"], "change_percent"), (partners[number], "control_change_percent")):
            base, cut, _ = by_hand(graph, prompt, list(positions), "last", [2])
            assert abs(row[found] - math.expm1(cut - base) * 100) < 2e-3
    spread = result.spread()
    part = table[table["layer"] == 2]
    assert spread["mean"][1] == pytest.approx(part["change_percent"].mean())
    assert spread["high"][1] == pytest.approx(np.percentile(part["change_percent"], 97.5))
    assert spread["control_low"][1] == pytest.approx(np.percentile(part["control_change_percent"], 2.5))
    assert "random patches, as many: mean" in result.summary()


def test_knockout_by_patch_is_drawn_saved_and_refused(graph, prompt, tmp_path, capsys):
    result = mmf.knockout_by_patch(graph, prompt, size=4)
    assert "4 regions, 1 window(s)" in capsys.readouterr().err
    figure = result.plot()
    shown = figure.axes[1].collections[0]
    assert shown.norm.vmin == -shown.norm.vmax
    for x, y in ((5.3, 40.1), (60.2, 3.3)):
        row = result.to_frame().query(f"row == {int(y // 32 * 4)} and column == {int(x // 32 * 4)}").iloc[0]
        assert seen_at(figure, 0, x, y) == row["change_percent"]
    assert "data:image/png" in result._repr_html_()
    again = mmf.results.KnockoutByPatchResult.load(result.save(tmp_path))
    assert again.to_frame()["change_percent"].equals(result.to_frame()["change_percent"])
    assert "data:image/png" not in again._repr_html_()
    with pytest.raises(mmf.MMFlowError, match="a loaded result holds no picture"):
        again.plot()
    assert len(again.plot(prompt)._repr_png_()) > 5_000
    quiet = {"progress": False}
    with pytest.raises(mmf.MMFlowError, match=re.escape("layers=[0, 2] have a gap")):
        mmf.knockout_by_patch(graph, prompt, layers=[0, 2], **quiet)
    with pytest.raises(mmf.NoEffectError, match="holds no image token"):
        mmf.knockout_by_patch(graph, prompt, source="question", **quiet)
    with pytest.raises(mmf.MMFlowError, match="more than half of its view"):
        mmf.knockout_by_patch(graph, prompt, size=8, **quiet)
    with pytest.raises(mmf.MMFlowError, match="size=0: a region"):
        mmf.knockout_by_patch(graph, prompt, size=0, **quiet)
    with pytest.raises(mmf.NoEffectError, match="swapped"):
        mmf.knockout_by_patch(graph, prompt, target="text('USER')", **quiet)


def test_a_plan_of_some_centres_is_part_of_the_whole(graph, prompt):
    sizes = sizes_of(graph, prompt)
    whole = make_plan(sizes, prompt.spans, ("image->last",), (3,))
    part = make_plan(sizes, prompt.spans, ("image->last",), (3,), centres=(1, 4))
    assert part.cells == (("image->last", 3, 1), ("image->last", 3, 4))
    assert set(part.chunks[0].windows) < set(whole.chunks[0].windows)


# The lens by patch.


@pytest.mark.parametrize("name", ["llava", "paligemma2", "llava_next"])
def test_lens_by_patch_reads_what_the_unembedding_finds(name, monkeypatch):
    """Within 1e-5 of the eager model's own hidden states; PaliGemma 2 squeezes its logits."""
    graph = family(name, "eager")
    prompt, model = asked(graph), graph.adapter.model
    monkeypatch.setattr(
        "nnsight_mmflow.patterns.lens_by_patch.BYTES_AT_ONCE", 4 * 7 * graph.unembed._module.out_features
    )
    result = mmf.lens_by_patch(graph, prompt, top=3)
    table = result.to_frame()
    image = list(prompt.spans["image"])
    assert len(table) == graph.n_layers * len(image) * 3
    with torch.no_grad():
        out = model(**prompt.inputs, output_hidden_states=True)
        decoder = model.get_decoder()
        for layer in range(graph.n_layers):
            states = out.hidden_states[layer + 1][0, image]  # the last ones are normed already
            states = states if layer == graph.n_layers - 1 else decoder.norm(states)
            logits = model.get_output_embeddings()(states)
            if graph.logit_cap is not None:
                logits = torch.tanh(logits / graph.logit_cap) * graph.logit_cap
            best = logits.float().softmax(-1).topk(3, -1).values.flatten()
            part = table[table["layer"] == layer]
            assert np.abs(part["probability"].to_numpy() - best.numpy()).max() < 1e-5
            for row in part.iloc[::17].itertuples():
                sure = logits.float().softmax(-1)[row.token, row.word_id]
                assert abs(float(sure) - row.probability) < 1e-5
                assert row.word == graph.processor.tokenizer.decode([row.word_id])
                assert row.position == image[row.token]
    assert (graph.logit_cap is not None) == (name == "paligemma2")
    place = prompt.spans["image"].places()[9]
    row = table[(table["token"] == 9) & (table["rank"] == 0)].iloc[0]
    assert (row["view"], row["row"], row["column"]) == (place.view, place.row, place.column)


def words_on(figure):
    return [
        (round(text.get_position()[0]), round(text.get_position()[1]), text.get_text()) for text in figure.axes[1].texts
    ]


def test_the_word_stands_on_its_patch(graph, prompt, tmp_path):
    result = mmf.lens_by_patch(graph, prompt, layers=[1, 3])
    figure = result.plot(3)
    first = result.to_frame().query("layer == 3 and rank == 0")
    assert seen_at(figure, 0, 20, 44) == first[(first["row"] == 5) & (first["column"] == 2)]["probability"].iloc[0]
    written = words_on(figure)
    assert len(written) == 64
    for x, y, word in written:
        (meant,) = first[(first["row"] == y // 8) & (first["column"] == x // 8)]["word"]
        assert meant.strip().startswith(word.rstrip("\u2026"))
    with pytest.raises(mmf.MMFlowError, match="layer 2 is not in the result"):
        result.plot(2)
    again = mmf.results.LensByPatchResult.load(result.save(tmp_path))
    with pytest.raises(mmf.MMFlowError, match="a loaded result holds no picture"):
        again.plot()
    assert len(again.plot(prompt=prompt)._repr_png_()) > 5_000
    assert "after layer 3: " in str(again)
    with pytest.raises(mmf.NoEffectError, match="holds no image token"):
        mmf.lens_by_patch(graph, prompt, source="question")


def test_large_grids_get_a_word_for_each_square(graph):
    """A made table: 16 x 16 patches would be 256 words; each 2 x 2 gets the most probable of its four."""
    from kit.families import real_llava

    made = real_llava()  # 24 x 24
    prompt = made.prompt(picture(0, 336, 336), QUESTION)
    table = mmf.lens_by_patch(made, prompt, top=1).to_frame()
    table["word"] = [f"w{token}" for token in table["token"]]
    table["probability"] = [(7 * token % 576) / 576 for token in table["token"]]
    result = mmf.results.LensByPatchResult(table, {"layers": [0]}, prompt)
    figure = result.plot()
    written = words_on(figure)
    assert len(written) == 144
    assert "In each square of 2 x 2 patches the most probable" in caption(figure)
    for x, y, word in written:
        column, row = x // 28 * 2, y // 28 * 2
        four = [24 * (row + down) + column + across for down in (0, 1) for across in (0, 1)]
        assert word == f"w{max(four, key=lambda token: 7 * token % 576)}"


def test_signs_that_the_font_lacks_become_squares():
    assert drawn_words(["caf\u00e9", "\u4e2d", "$a_b$"]) == ["caf\u00e9", "\u25a1", "$a_b$"]


def test_lens_by_patch_as_sent_to_a_server(graph, prompt):
    """By nnsight's own imitation of one; knockout by patch is in remote_cases.py, since shape checks do not travel."""
    here, there = (mmf.lens_by_patch(graph, prompt, remote=where).to_frame() for where in (False, "local"))
    pd.testing.assert_frame_equal(here, there)
