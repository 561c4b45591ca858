"""Every family: the conformance suite passes, its checks can fail, and what each says of its tokens holds."""

import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kit.families import EAGER_ONLY, FAMILIES, QUESTION, conformance, family
from kit.sweeps import layer_inputs
from kit.tiny import picture
from packaging.version import Version

import nnsight_mmflow as mmf
from nnsight_mmflow import adapters
from nnsight_mmflow.checks import CHECKS, bridge, forwards, knockouts, patches, places
from nnsight_mmflow.checks.subject import Failed, Subject
from nnsight_mmflow.inside.rows import check_prefix
from nnsight_mmflow.patterns import edge_scores, knockout, patch
from nnsight_mmflow.spans.geometry import ImageGeometry

# What a check says nothing about, and of whom; everything else must pass.
BRIDGE = "TransformerLens gives the same, plain and under a knockout"
NOT_APPLICABLE = {
    "llava_phi_siglip": {BRIDGE},
    "llava_pixtral": {BRIDGE},
    "qwen2_vl": {BRIDGE},
    "smolvlm": {BRIDGE},
    "internvl": {BRIDGE},
    "internvl_qwen3": {BRIDGE},
    "paligemma": {"a prompt without an image", "a knockout of nothing is an error", BRIDGE},
    "paligemma2": {"a prompt without an image", "a knockout of nothing is an error", "eager equals sdpa", BRIDGE},
}


def graph_of(name):
    return family(name, "eager" if name in EAGER_ONLY else "sdpa")


@pytest.mark.parametrize("name", FAMILIES)
def test_conformance(name):
    report = conformance(name)
    assert report.ok, str(report)
    skipped = {line.name for line in report.lines if line.outcome == "not applicable"}
    assert skipped == NOT_APPLICABLE.get(name, set()), str(report)
    assert len(report.lines) == len(CHECKS)


# Each check must be able to fail: a fault is planted, and the check that is there for it has to see it.


def test_a_geometry_that_is_turned_is_seen(monkeypatch):
    graph = graph_of("qwen2_vl")
    images = graph.adapter.images

    def turned(inputs, sizes, squared):
        return [ImageGeometry(made.size, made.views, made.cells[::-1]) for made in images(inputs, sizes, squared)]

    monkeypatch.setattr(graph.adapter, "images", turned)
    places.round_trip(Subject(graph))  # turned, a box still gives its own token back: only the model can tell
    with pytest.raises(Failed, match=r"painting .* changed tokens"):
        places.perturbed(Subject(graph))


def test_features_in_another_place_are_seen(monkeypatch):
    graph = graph_of("llava_next")
    real = Subject.merged
    monkeypatch.setattr(Subject, "merged", lambda self, prompt: real(self, prompt).roll(1, 0))
    with pytest.raises(Failed, match="features and what stands at the image's positions differ"):
        places.merged(Subject(graph))


def test_padding_on_the_wrong_side_is_seen(monkeypatch):
    graph = graph_of("llava_next")

    def turned(rows):
        joined = type(graph.adapter).join(graph.adapter, rows)
        return {**joined, "attention_mask": torch.ones_like(joined["attention_mask"])}

    monkeypatch.setattr(graph.adapter, "join", turned)
    with pytest.raises(Failed, match="logits differ by"):
        forwards.batched(Subject(graph))


def test_a_knockout_of_one_layer_too_few_is_seen(monkeypatch):
    graph = graph_of("gemma3")
    real = edge_scores.change_edges

    def fewer(passage, held, chosen, *rest):
        return real(passage, held, chosen[1:], *rest)

    monkeypatch.setattr(edge_scores, "change_edges", fewer)
    with pytest.raises(Failed, match="logits differ by"):
        knockouts.by_hand(Subject(graph))
    with pytest.raises(Failed, match="log-probabilities differ by"):
        knockouts.rows(Subject(graph))


def test_a_patch_at_the_wrong_place_is_seen(monkeypatch):
    graph = graph_of("llava_next")
    real = patch.Patch.change_at

    def moved(self, values, place):
        return real(self, values, replace(place, there=place.there[::-1]))

    monkeypatch.setattr(patch.Patch, "change_at", moved)
    with pytest.raises(Failed, match="embed: logits differ|logits differ by"):
        patches.another_run(Subject(graph))


def test_a_bridge_that_closes_less_is_seen(monkeypatch):
    graph = graph_of("llava_next")
    real = knockout.Knockout.edits
    monkeypatch.setattr(knockout.Knockout, "edits", lambda self, *given: real(self, *given)[1:])
    with pytest.raises(Failed, match="logits differ by"):
        bridge.parity(Subject(graph))


def test_deepstack_left_out_of_the_rows_is_seen(monkeypatch):
    graph = graph_of("qwen3_vl")
    monkeypatch.setattr(graph, "enters_after", 0)
    with pytest.raises(Failed, match="log-probabilities differ by"):
        knockouts.rows(Subject(graph))


def test_blocks_that_nobody_declared_are_seen():
    graph = graph_of("gemma3")
    prompt = graph.prompt(picture(0), QUESTION)
    inside = prompt.spans["image"].positions[3]  # rows from here on would share a prefix that reads them
    inputs = layer_inputs(graph, prompt, inside)
    with pytest.raises(mmf.MMFlowError, match="positions before the tail read it in layer 0"):
        check_prefix(inputs, 0)


def test_a_model_that_does_not_look_is_seen(monkeypatch):
    subject = Subject(graph_of("internvl"))
    monkeypatch.setattr(subject, "logits", lambda prompt: torch.zeros(3))
    with pytest.raises(Failed, match="the model does not look"):
        CHECKS["another picture gives other logits"](subject)


def test_a_check_that_breaks_is_a_line_and_the_rest_goes_on(monkeypatch):
    graph = graph_of("llava")

    def broken(_subject):
        raise RuntimeError("out of luck")

    monkeypatch.setitem(CHECKS, "eager equals sdpa", broken)
    report = mmf.check(graph, progress=False)
    failed = [line for line in report.lines if line.outcome == "fail"]
    assert [(line.name, line.detail) for line in failed] == [("eager equals sdpa", "RuntimeError: out of luck")]
    assert f"1 of {len(CHECKS)} checks failed" in str(report)
    assert not report.ok


def test_a_check_leaves_the_model_as_it_was():
    graph = graph_of("llava_next")
    before = graph.backend, {name: len(module._forward_hooks) for name, module in graph.adapter.model.named_modules()}
    mmf.check(graph, progress=False)
    after = graph.backend, {name: len(module._forward_hooks) for name, module in graph.adapter.model.named_modules()}
    assert before == after


@pytest.mark.parametrize("name", FAMILIES)
def test_geometry_of_pictures_padded_to_a_square(name, monkeypatch):
    graph = graph_of(name)
    monkeypatch.setattr(graph, "prompt", partial(graph.prompt, pad_to_square=True))
    places.round_trip(Subject(graph))
    places.merged(Subject(graph))
    places.perturbed(Subject(graph))


# What spans say of tiles, base, newline and separators.


def test_tiles_of_llava_next():
    spans = graph_of("llava_next").prompt(picture(0, 96, 96), QUESTION).spans
    image = spans["image"]
    assert (image.base.grid, len(image.base)) == ((4, 4), 16)
    assert len(image.tile) == 4
    assert [tile.grid for tile in image.tile] == [(4, 4)] * 4
    assert len(image.newline) == 8  # one a row of patches of two tiles
    assert (image - image.base - image.newline).grid == (8, 8)
    assert spans["image.tile[3]"] == image.tile[3]
    assert spans["image[0].base | image.newline"] == image.base | image.newline
    assert [place.kind for place in image.newline.places()] == ["newline"] * 8
    box = image.tile[3].boxes()[0]
    assert box == (48, 48, 60, 60)
    corner = image.tile[3].places()[0]
    assert (corner.view, corner.tile, corner.row, corner.column, corner.box) == ("tiles", 3, 4, 4, box)
    assert list(image.tile[3].box(box)) == [image.tile[3].positions[0]]
    assert len(image.box(box)) > len(image.tile[3].box(box))  # the base shows it too
    with pytest.raises(mmf.SpanError, match=r"2 views of the picture \(base, tiles\): ask for the grid of one"):
        _ = image.grid
    with pytest.raises(mmf.SpanError, match=r"image.tile\[4\] was asked for, but it has 4"):
        _ = spans["image.tile[4]"]
    with pytest.raises(mmf.SpanError, match="nothing but image tokens"):
        _ = image.separator


def test_what_a_family_does_not_have_is_said():
    image = graph_of("qwen2_vl").prompt(picture(0, 96, 64), QUESTION).spans["image"]
    assert image.grid == (4, 6)
    assert image.base == image
    with pytest.raises(mmf.SpanError, match="has no tiles: the processor did not divide this picture"):
        _ = image.tile
    with pytest.raises(mmf.SpanError, match="has no newline tokens"):
        _ = image.newline


def test_separators_are_no_image_tokens():
    spans = graph_of("idefics3").prompt(picture(0, 64, 64), QUESTION).spans
    image = spans["image"]
    named = [spans.tokens[position] for position in image.separator]
    assert {"<fake_token_around_image>", "<row_2_col_1>", "<global-img>", "\n"} == {
        name for name in named if not name.startswith("<row") or name == "<row_2_col_1>"
    }
    assert not set(image.separator) & set(image)
    assert set(image.separator) <= set(spans["prefix"])
    pixtral = graph_of("llava_pixtral").prompt(picture(0, 64, 40), QUESTION).spans
    assert [pixtral.tokens[position] for position in pixtral["image"].separator] == ["[IMG_BREAK]"] * 4 + ["[IMG_END]"]


def test_pan_and_scan_crops_are_tiles_of_the_picture():
    image = graph_of("gemma3_pan_and_scan").prompt(picture(0, 120, 60), QUESTION).spans["image"]
    assert [tile.grid for tile in image.tile] == [(4, 4), (4, 4)]
    assert image.tile[1].boxes()[0] == (60, 0, 75, 15)
    assert image.base.boxes()[0] == (0, 0, 30, 15)


def test_several_pictures_of_onevision_are_not_divided():
    graph = graph_of("llava_onevision")
    alone = graph.prompt(picture(0, 96, 64), QUESTION).spans["image"]
    pair = graph.prompt([picture(0, 96, 64), picture(1, 64, 96)], QUESTION).spans["image"]
    assert len(alone.tile) > 1
    assert [len(pair[number]) for number in (0, 1)] == [17, 17]  # a grid of 16 and a newline
    assert pair[0].base.grid == (4, 4)
    with pytest.raises(mmf.SpanError, match="has no tiles"):
        _ = pair[1].tile


sides = st.integers(16, 300)
DIVIDING = ["llava_next", "llava_onevision_shrunk", "idefics3", "internvl", "qwen2_vl", "gemma3_pan_and_scan"]


@pytest.mark.parametrize("name", [*DIVIDING, "llava_pixtral"])
@hypothesis_settings(deadline=None, max_examples=12)
@given(sides, sides)
def test_any_shape_of_picture(name, width, height):
    """The processor's count is ours (prompt checks it), each box gives its token, and every pixel has a token."""
    graph = graph_of(name)
    prompt = graph.prompt(picture(0, width, height), QUESTION)
    geometry = prompt.spans["image"].images[0].geometry
    for token in range(0, len(geometry.cells), 7):
        box = geometry.token_box(token)
        if box is not None:
            same = [i for i in geometry.tokens([box], "meets") if geometry.cells[i].view == geometry.cells[token].view]
            assert same == [token]
    pixel = (width // 3, height // 3, width // 3 + 1, height // 3 + 1)
    assert prompt.spans["image"].box(pixel)


# The real sizes.


@pytest.mark.parametrize("size", [(640, 480), (1200, 300), (300, 1200), (60, 40), (336, 1344)])
def test_llava_next_counts_at_its_real_sizes(size):
    """336-pixel tiles and v1.6's resolutions: as many tokens as the processor's own rule gives."""
    from kit.families import real_llava_next

    graph = real_llava_next()
    prompt = graph.prompt(picture(0, *size), QUESTION)
    expected = graph.processor._get_num_multimodal_tokens(image_sizes=[size[::-1]]).num_image_tokens
    image = prompt.spans["image"]
    assert [len(image)] == expected
    assert image.base.grid == (24, 24)
    assert len(image.base) == 576
    assert len(image) == 576 + len(image.newline) + sum(map(len, image.tile))
    geometry = image.images[0].geometry
    for token in range(0, len(image), 97):
        box = geometry.token_box(token)
        same = (
            [i for i in geometry.tokens([box]) if geometry.cells[i].view == geometry.cells[token].view] if box else []
        )
        assert same == ([token] if box else [])


def test_llava_at_its_real_size():
    from kit.families import real_llava

    image = real_llava().prompt(picture(0, 500, 333), QUESTION).spans["image"]
    assert (image.grid, len(image)) == ((24, 24), 576)


# Errors.


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_vl", "gemma3", "idefics3", "internvl"])
def test_truncated_and_missing(name):
    graph = graph_of(name)
    inputs = dict(graph.prompt(picture(0, 64, 64), QUESTION).inputs)
    with torch.no_grad(), graph.trace(inputs):
        graph.unembed.output.save()
    shape, first = inputs["input_ids"].shape, list(graph.prompt(picture(0, 64, 64), QUESTION).spans["image"])[2]
    cut = {key: value[:, first:] if value.shape[:2] == shape else value for key, value in inputs.items()}
    with pytest.raises(mmf.PromptError, match=r"image tokens in the prompt, \d+ features .*truncation"):
        graph.trace(cut)
    blind = {key: value for key, value in inputs.items() if key in ("input_ids", "attention_mask")}
    with pytest.raises(mmf.PromptError, match="no pixel_values came: pass the image"):
        graph.trace(blind)


def test_a_wrong_patch_size_is_told():
    graph = mmf.adapt(*FAMILIES["llava_next"]())
    graph.processor.patch_size = 16
    with pytest.raises(mmf.PromptError, match="a processor with a larger patch_size than the tower's"):
        graph.prompt(picture(0, 64, 64), QUESTION)


def test_tiles_that_cannot_line_up_are_told():
    model, processor = FAMILIES["llava_next"]()
    model.config.vision_feature_select_strategy = "full"
    graph = mmf.adapt(model, processor)
    with pytest.raises(mmf.ModelError, match=r"'clip_vision_model' has 1 class token\(s\): tiles would not line up"):
        graph.prompt(picture(0, 64, 64), QUESTION)


@pytest.mark.parametrize("name", ["qwen3_vl", "internvl", "gemma3", "paligemma", "llava_onevision"])
def test_a_setting_that_nobody_knows_is_listed(name):
    model, processor = FAMILIES[name]()
    model.config.vision_config.window_shift = 4
    with pytest.raises(mmf.ModelError, match=r"does not handle: vision_config.window_shift = 4"):
        mmf.adapt(model, processor)


def test_an_unknown_family_is_told_the_way(monkeypatch):
    stranger = type("StrangerForConditionalGeneration", (), {})()
    with pytest.raises(mmf.ModelError, match="no adapter for StrangerForConditionalGeneration; there are") as caught:
        adapters.adapter_for(stranger, None)
    assert "Qwen3VLForConditionalGeneration" in str(caught.value)
    assert '[project.entry-points."nnsight_mmflow.adapters"]' in str(caught.value)
    entry = SimpleNamespace(name="StrangerForConditionalGeneration", value="tests.nowhere:Adapter")
    monkeypatch.setattr(adapters, "entry_points", lambda group: [entry] if group == adapters.GROUP else [])
    with pytest.raises(ModuleNotFoundError, match="tests"):  # the entry point is followed
        adapters.adapter_for(stranger, None)


# Loading, and the commands.


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gemma3_pan_and_scan"])
def test_a_saved_folder_gives_the_same(name, tmp_path):
    model, processor = FAMILIES[name]()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    if Version(transformers.__version__) < Version("5.18") and name.startswith(("idefics3", "smolvlm")):
        with pytest.raises(mmf.ModelError, match="pip install torchvision"):
            mmf.load(str(tmp_path))
        return
    loaded, made = mmf.load(str(tmp_path)), mmf.adapt(model.eval(), processor)
    prompts = [graph.prompt(picture(0, 80, 48), QUESTION) for graph in (loaded, made)]
    assert prompts[0].spans["image"].places() == prompts[1].spans["image"].places()
    with torch.no_grad():
        logits = [g.adapter.model(**p.inputs).logits for g, p in zip((loaded, made), prompts, strict=True)]
    assert torch.equal(*logits)


def test_check_and_spans_commands(tmp_path, capsys):
    from nnsight_mmflow.command_line import main

    model, processor = FAMILIES["llava_next"]()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    assert main(["check", str(tmp_path / "model")]) == 0
    table = capsys.readouterr().out
    assert "all that applies passed" in table
    assert len(re.findall(r"  pass  ", table)) == len(CHECKS)
    picture(0, 96, 64).save(tmp_path / "a.png")
    out = tmp_path / "spans.png"
    asked = ["spans", str(tmp_path / "model"), str(tmp_path / "a.png"), QUESTION, "--out", str(out)]
    assert main([*asked, "--box", "10", "10", "30", "30"]) == 0
    assert re.search(r"image +\d+-\d+", capsys.readouterr().out)
    assert out.stat().st_size > 20_000
    assert main([*asked, "--box", "10", "10", "10", "30"]) == 2
    assert "has no area" in capsys.readouterr().err


def test_check_of_a_model_that_fails_exits_with_1(monkeypatch, capsys):
    from nnsight_mmflow.command_line import main

    def broken(_subject):
        raise Failed("3 of 7")

    monkeypatch.setitem(CHECKS, "spans partition the sequence", broken)
    assert main(["check", "nano"]) == 1
    assert re.search(r"spans partition the sequence +fail +3 of 7", capsys.readouterr().out)
