"""The catalogue, which smoke tests and the run on NDIF's own server go by, forgets nothing that the package exports."""

import importlib
import inspect

import pytest
from kit.catalogue import BY_GRADIENTS, experiments, patterns, prompts

import nnsight_mmflow as mmf

GROUPS = ("prune", "results", "data", "bridge", "show")
OTHERS = {"values", "corruption", "nano"}  # what patterns and experiments are given
# What runs no model of its own, or not in traces of the graph.
NO_EXPERIMENTS = {
    *("load", "adapt", "check", "probe"),
    *("data.read_questions", "data.prompts_of", "data.read_benchmark"),
    *("data.read_constraint_questions", "data.write_constraint_questions"),
    *("explore", "show.explore", "show.on_image", "show.attention", "show.tokens"),  # draw
    *("bridge.cache_by_span", "bridge.patch_by_span", "bridge.attribution_by_span"),  # of a TransformerLens bridge
}


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


def public():
    """All that the package exports, by name: what stands in a group with the group's in front."""
    exported = {name: getattr(mmf, name) for name in mmf.__all__}
    for group in GROUPS:
        held = getattr(mmf, group)
        exported |= {f"{group}.{name}": getattr(held, name) for name in held.__all__}
    return exported


def test_every_group_is_looked_through():
    assert {name for name in mmf.__all__ if inspect.ismodule(getattr(mmf, name))} == {*GROUPS, *OTHERS}


def test_every_pattern_is_there(nano):
    kinds = {one for one in public().values() if inspect.isclass(one) and issubclass(one, mmf.Pattern)}
    assert {mmf.Knockout, mmf.prune.SparseVLM} < kinds
    assert {type(one) for one in patterns(prompts(nano)[1]).values()} == kinds - {mmf.Pattern}


def test_every_experiment_is_there(nano):
    functions = {name for name, one in public().items() if inspect.isfunction(one)}
    assert functions >= NO_EXPERIMENTS
    listed = experiments(nano, nano, prompts(nano))
    assert functions - NO_EXPERIMENTS == {name.split(" by ")[0] for name in listed}
    for name in BY_GRADIENTS:
        source = inspect.getsource(importlib.import_module(getattr(mmf, name).__module__))
        assert "needs_gradients(graph" in source
