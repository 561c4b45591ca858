"""Names of earlier versions stand for the same things as the new ones, and tell them."""

from functools import partial

import pytest

import nnsight_mmflow as mmf
from nnsight_mmflow import _formerly


@pytest.mark.parametrize("old", sorted(_formerly.NAMES))
def test_an_earlier_name_is_the_same_thing_and_tells_the_new_one(old):
    new = _formerly.NAMES[old]
    with pytest.warns(_formerly.FormerNameWarning, match=f"mmf.{old} is now mmf.{new};") as told:
        found = getattr(mmf, old)
    assert told[0].filename == __file__, "at the line that uses it"
    thing = mmf
    for part in new.replace("checks.", "").split("."):
        thing = getattr(thing, part, None) or getattr(__import__("nnsight_mmflow.checks").checks, part)
    assert found is thing
    assert old not in mmf.__all__


def test_no_name_of_now_warns(recwarn):
    for name in mmf.__all__:
        getattr(mmf, name)
    for group in (mmf.prune, mmf.results, mmf.data, mmf.bridge, mmf.show):
        for name in group.__all__:
            getattr(group, name)
    assert not [one for one in recwarn if issubclass(one.category, DeprecationWarning)]


def test_a_name_that_never_was_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nnsight_mmflow has no 'flou'; it has Add, Batch"):
        mmf.flou  # noqa: B018
    with pytest.raises(AttributeError, match="nnsight_mmflow.data has no 'nothing'; it has Benchmark"):
        mmf.data.nothing  # noqa: B018


def test_patterns_and_adapters_are_found_where_they_are():
    from nnsight_mmflow.adapters import TABLE
    from nnsight_mmflow.patterns import Knockout, Patch

    assert (Knockout, Patch) == (mmf.Knockout, mmf.Patch)
    assert "LlavaForConditionalGeneration" in TABLE


def test_an_earlier_keyword_gives_the_same_numbers_and_tells_the_new_one():
    nano = mmf.load("nano")
    prompts, quiet = mmf.nano.prompts(nano, 1), {"progress": False, "report": str}
    clean, corrupt = mmf.nano.trace_pairs(nano, 1, "flag")
    fact, loose = mmf.nano.edits(nano, 1), {"fine_tuning": False, "settings": mmf.EditSettings(steps=1)}
    flow = partial(mmf.flow, nano, prompts, ["image->last"], only_correct=False, **quiet)
    trace = partial(mmf.causal_trace, nano, clean, corrupt, ["last"], ["mlp"], **quiet)
    patches = partial(mmf.knockout_by_patch, nano, prompts[0], size=4, **quiet)
    maps = partial(mmf.attention, nano, prompts[0], layers=[3])
    report = partial(mmf.edit_report, nano, fact, prompts, 3, **loose, **quiet)
    prune = partial(mmf.prune_report, nano, prompts, [mmf.FastV(k=5)], timed=0, max_new_tokens=1, **quiet)
    for run, old, new in (
        (flow, {"control": 1}, {"controls": 1}),
        (trace, {"control": False}, {"controls": 0}),
        (trace, {"width": 3}, {"window": 3}),
        (trace, {"half_width": 1}, {"window": 3}),
        (patches, {"control": False}, {"controls": 0}),
        (maps, {"targets": "last", "sources": "image"}, {"target": "last", "source": "image"}),
        (report, {"controls": [5]}, {"control_layers": [5]}),
        (prune, {"controls": False}, {"controls": 0}),
    ):
        with pytest.warns(_formerly.FormerNameWarning, match=f"{next(iter(new))}="):
            before = run(**old).to_frame()
        assert before.equals(run(**new).to_frame())


def test_flow_on_workers_is_flow_with_workers(monkeypatch):
    nano, asked = mmf.load("nano"), {}
    monkeypatch.setattr("nnsight_mmflow.patterns.flow.on_workers.flow", lambda *given, **named: asked.update(named))
    with pytest.warns(_formerly.FormerNameWarning, match="mmf.flow"):
        mmf.flow_on_workers(nano, [], workers=3, address="auto", folder="x")
    assert asked == {"workers": mmf.Workers(3, "auto"), "folder": "x"}


def test_a_mistyped_keyword_is_a_type_error():
    nano = mmf.load("nano")
    with pytest.raises(TypeError, match="windw"):
        mmf.flow(nano, mmf.nano.prompts(nano, 1), windw=3)
