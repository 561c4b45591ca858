"""Names of earlier versions stand for the same things as the new ones, and tell them."""

import inspect

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


KEYWORDS = {  # by experiment and earlier keyword: a value, the keyword of now, its value
    ("flow", "control"): (2, "controls", 2),
    ("causal_trace", "control"): (False, "controls", 0),
    ("causal_trace", "width"): (3, "window", 3),
    ("causal_trace", "half_width"): (1, "window", 3),
    ("knockout_by_patch", "control"): (True, "controls", 1),
    ("edit_report", "controls"): ([9], "control_layers", [9]),
    ("attention", "targets"): ("last", "target", "last"),
    ("attention", "sources"): ("image", "source", "image"),
}


@pytest.mark.parametrize(("run", "old"), KEYWORDS)
def test_an_earlier_keyword_is_the_same_argument_and_tells_the_new_one(run, old):
    given, new, value = KEYWORDS[run, old]
    with pytest.warns(_formerly.FormerNameWarning, match=f"{old}= of mmf.{run} is now {new}=;") as told:
        assert _formerly.with_new_names(run, {old: given, "progress": False}) == {new: value, "progress": False}
    assert told[0].filename == __file__
    assert {new, old} & set(inspect.signature(getattr(mmf, run)).parameters) == {new}


def test_every_earlier_keyword_is_tried(graph, prompt):
    assert set(KEYWORDS) == {(run, old) for run, names in _formerly.ARGUMENTS.items() for old in names}
    with pytest.warns(_formerly.FormerNameWarning, match="targets= of mmf.attention"):
        told = mmf.attention(graph, prompt, layers=[1], targets="last")
    assert told.weights.equal(mmf.attention(graph, prompt, layers=[1], target="last").weights)


def test_no_name_of_now_warns(recwarn):
    for name in mmf.__all__:
        getattr(mmf, name)
    for group in (mmf.prune, mmf.results, mmf.data, mmf.bridge, mmf.show):
        for name in group.__all__:
            getattr(group, name)
    assert not [one for one in recwarn if issubclass(one.category, DeprecationWarning)]


def test_a_name_that_never_was_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nnsight_mmflow has no 'flou'; it has Batch"):
        mmf.flou  # noqa: B018
    with pytest.raises(AttributeError, match="nnsight_mmflow.data has no 'nothing'; it has Benchmark"):
        mmf.data.nothing  # noqa: B018


def test_patterns_and_adapters_are_found_where_they_are():
    from nnsight_mmflow.adapters import TABLE
    from nnsight_mmflow.patterns import Knockout, Patch

    assert (Knockout, Patch) == (mmf.Knockout, mmf.Patch)
    assert "LlavaForConditionalGeneration" in TABLE
