"""Other releases of transformers: names that drift, what older ones get wrong, and requirements that were tried."""

import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kit.families import FAMILIES, QUESTION, family
from kit.tiny import picture
from packaging.version import Version
from transformers import DynamicCache

import nnsight_mmflow as mmf
from nnsight_mmflow import MMFlowError, ModelError
from nnsight_mmflow.adapters.processing import image_defaults
from nnsight_mmflow.inside import names as _names
from nnsight_mmflow.model import older_generation as _older_generation

sys.path.insert(0, str(Path(__file__).parents[1]))
import matrix
from kit import recorded

LENGTH = {"min_new_tokens": 3, "max_new_tokens": 3, "do_sample": False}


class Newer(torch.nn.Module):
    def forward(self, hidden, cache=None): ...


class Older(torch.nn.Module):
    def forward(self, hidden, past_key_values=None): ...


class Strange(torch.nn.Module):
    def forward(self, hidden, memory=None): ...


def test_the_cache_is_known_by_either_name():
    assert [_names.cache_keyword(kind.forward) for kind in (Newer, Older)] == ["cache", "past_key_values"]
    cache = DynamicCache()
    for name in _names.CACHE:
        assert _names.cache_in({"hidden": 1, name: cache}) is cache
        assert _names.cache_of({"logits": 1, name: cache}) is cache
        for kind in (Newer, Older):
            taken = _names.cached(SimpleNamespace(_module=kind()), cache)
            assert _names.with_its_cache(kind(), {name: cache}) == taken == {_names.cache_keyword(kind.forward): cache}
    assert _names.cache_in({"hidden": 1, "cache": None}) is None


def test_a_name_that_nobody_knows_is_told_at_load(monkeypatch):
    graph = family("llava")
    model, layer = graph.adapter.model, graph.adapter.roles()["layers"][0]
    _names.check_names(model, layer)
    with pytest.raises(ModelError, match=r"Strange of transformers .* expected as cache or past_key_values.*memory"):
        _names.check_names(model, Strange())
    monkeypatch.setattr(_names, "OPERATIONS", {"keeps keys and values": ("store_0",)})
    told = _names.unknown_operations(graph.attention(0)._module, "")
    assert "an operation that keeps keys and values was expected as store_0, but there are" in told
    assert "attention_interface_1" in told
    there = mmf.adapt(model, graph.processor)
    assert there.unknown_operations == told
    prompt = there.prompt(picture(0), QUESTION)
    knockout = mmf.Knockout(source="image", target="last", layers=1, when="decode")
    with pytest.raises(ModelError, match="store_0"):  # only where blocks run apart from the model is it needed
        there.at("emulated").generate(prompt, knockout, **LENGTH)


@pytest.mark.parametrize("name", _names.CACHE)
def test_a_cache_of_the_users_under_either_name(name):
    graph = family("llava")
    prompt = graph.prompt(picture(0), QUESTION)
    knockout = mmf.Knockout(source="image", target="last", layers=1, when="all")
    written = []
    for given in ({}, {name: DynamicCache()}):
        with torch.no_grad(), graph.generate(prompt, knockout, **LENGTH, **given) as tracer:
            written.append(tracer.result.save().tolist())
    assert written[0] == written[1]
    with pytest.raises(ModelError, match="came twice, as cache and as past_key_values"):
        graph.generate(prompt, knockout, **LENGTH, cache=DynamicCache(), past_key_values=DynamicCache())


WRONG_BEFORE = [
    ("llava", 1, {"prefill_chunk_size": 4}, "prefill_chunk_size=4 with a picture"),
    ("llava", 2, {"num_beams": 2}, "num_beams=2, num_return_sequences=1 with several pictures"),
    ("internvl", 1, {"do_sample": True, "num_return_sequences": 2}, "several pictures or tiles"),
    ("paligemma", 1, {"use_cache": False}, "use_cache=False of paligemma"),
    ("llava", 1, {"num_beams": 2}, ""),
    ("llava", 1, {"use_cache": False}, ""),
    ("llava", 2, {}, ""),
    ("llava", 0, {"prefill_chunk_size": 4}, ""),
]


@pytest.mark.parametrize(("name", "pictures", "settings", "told"), WRONG_BEFORE)
def test_what_older_transformers_get_wrong_is_refused_there(name, pictures, settings, told, monkeypatch):
    graph = family(name)
    prompt = graph.prompt([picture(number, 96, 64) for number in range(pictures)] or None, QUESTION)
    for before in (False, True):  # planted: a release that does not encode pictures once
        if before:
            monkeypatch.setattr(_older_generation, "signature", lambda forward: inspect.signature(Older.forward))
        elif "mm_encoder_outputs" not in inspect.signature(type(graph.adapter.model).forward).parameters:
            continue
        if before and told:
            with pytest.raises(MMFlowError, match=told):
                graph.generate(prompt, **{**LENGTH, **settings})
        else:
            _older_generation.check_pictures(graph, {**LENGTH, **settings}, graph.checked(prompt))


def test_families_that_older_transformers_get_wrong_are_refused_there(monkeypatch):
    """PaliGemma 2, whose final logits are not capped, and SmolVLM, whose features are merged in wrong blocks."""
    monkeypatch.setattr("nnsight_mmflow.adapters.base.mentions", lambda _forward, _name: False)
    monkeypatch.setattr("nnsight_mmflow.adapters.idefics3.mentions", lambda _forward, _name: True)
    merger = "nnsight_mmflow.adapters.idefics3.getattr"
    monkeypatch.setattr(merger, lambda owner, name, *default: Older if name == "inputs_merger" else None, raising=False)
    for name, told in (
        ("paligemma2", "leaves out final_logit_softcapping"),
        ("smolvlm", "in blocks of 8, but .* 4 tok"),
    ):
        model, processor = FAMILIES[name]()
        with pytest.raises(ModelError, match=told):
            mmf.adapt(model, processor)


@pytest.mark.parametrize("part", ["layer", "attn", "mlp"])
def test_layers_left_out_where_their_empty_caches_cannot_shrink(part, monkeypatch):
    graph = family("llava")
    prompt, skip = graph.prompt(picture(0), QUESTION), mmf.Skip(layers=2, part=part)
    lookup = {**LENGTH, "prompt_lookup_num_tokens": 3, "suppress_tokens": [graph.image_token_id]}
    for shrink in (True, False):  # planted: 5.17 to 5.21
        monkeypatch.setattr(_older_generation, "empty_caches_shrink", lambda: shrink)  # noqa: B023
        if shrink or part == "mlp":
            graph.generate(prompt, skip, **lookup)
            continue
        with pytest.raises(MMFlowError, match=r"leaves the caches of its layers empty, and prompt_lookup_num_tokens"):
            graph.generate(prompt, skip, **lookup)
    graph.generate(prompt, skip, **LENGTH)


def test_what_a_processor_hands_on_is_read_in_both_ways():
    class Old:
        valid_processor_kwargs = SimpleNamespace(_defaults={"images_kwargs": {"crop": True}})

    class New:
        images_kwargs = {"crop": True}

    old, new = Old(), New()
    assert image_defaults(old) == image_defaults(new) == {"crop": True}
    old.images_kwargs = new.images_kwargs = {"crop": False}  # which the older one does not read
    assert (image_defaults(old), image_defaults(new)) == ({"crop": True}, {"crop": False})


def test_other_numbers_are_told_with_experiment_place_and_both_values():
    wanted = {"flow": {"layer": [0, 1], "change": [-50.0, float("nan")]}, "lens": {"word": ["red", "blue"]}}
    found = {"flow": {"layer": [0, 2], "change": [-50.0004, float("nan")]}, "lens": {"word": ["red"]}}
    told, largest = recorded.compared(recorded.recorded(found), recorded.recorded(wanted))
    assert told == {"flow.layer[1]": "2, under the tested set 1", "lens.word[1]": "'blue' is missing"}
    assert largest == pytest.approx(8e-6)
    told, _ = recorded.compared({"flow": {"change": [-50.001, 1.0]}}, {"flow": wanted["flow"] | {"layer": []}})
    assert told.keys() == {"flow.change[0]", "flow.change[1]"}
    assert told["flow.change[0]"] == "-50.001, under the tested set -50.0: off by 0.001, the column reaches 50"
    smoke = {
        "failed": {"lens": "KeyError"},
        "refused": {"gemma3": "why"},
        "steps": 3,
        "versions": dict.fromkeys(matrix.COLUMNS),
    }
    seen = matrix.against(smoke, {"flow": found["flow"]}, wanted | {"gemma3": {"ids": [1]}})
    assert list(seen["failed"]) == ["lens", "other numbers: flow.layer[1]"]
    assert "| 8e-06 | 0 of 3; refused: gemma3; fails: flow, lens |" in matrix.row(
        "newest", {**seen, "versions": dict.fromkeys(matrix.COLUMNS, "1")}
    )


def test_requirements_are_what_was_tried():
    """The oldest set of README's table is pyproject's floors, and every line that ran passed."""
    table = matrix.README.read_text().split(matrix.START)[1].split(matrix.END)[0].strip().splitlines()
    head, _, *rows = [line.removeprefix("| ").split(" | ") for line in table]
    lines = {row[0]: row for row in rows}
    assert set(lines) >= set(matrix.SETS)
    oldest = dict(zip(head, lines["oldest"], strict=True))
    for floor in [*matrix.floors(), "torch==2.13"]:
        name, version = floor.split("==")
        if name in oldest:
            assert Version(Version(oldest[name]).public) == Version(version), floor
    assert len(matrix.floors()) == len(matrix.requirements()) - 1
    assert not [name for name, line in lines.items() if "fails" in line[-2]]
