"""Other releases of transformers: names that drift, what older ones get wrong, and requirements that were tried."""

import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import QUESTION, family
from packaging.version import Version
from tiny import picture
from transformers import DynamicCache

import nnsight_mmflow as mmf
from nnsight_mmflow import MMFlowError, ModelError
from nnsight_mmflow.adapters.processing import image_defaults
from nnsight_mmflow.inside import names as _names
from nnsight_mmflow.model import older_generation as _older_generation

sys.path.insert(0, str(Path(__file__).parent))
import matrix

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


def test_what_a_processor_hands_on_is_read_in_both_ways():
    class Old:
        valid_processor_kwargs = SimpleNamespace(_defaults={"images_kwargs": {"crop": True}})

    class New:
        images_kwargs = {"crop": True}

    old, new = Old(), New()
    assert image_defaults(old) == image_defaults(new) == {"crop": True}
    old.images_kwargs = new.images_kwargs = {"crop": False}  # which the older one does not read
    assert (image_defaults(old), image_defaults(new)) == ({"crop": True}, {"crop": False})


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
