"""The catalogue, which smoke tests and the run on NDIF's own server go by, forgets nothing that the package exports."""

import importlib
import inspect

import pytest
from catalogue import BY_GRADIENTS, experiments, patterns, prompts

import nnsight_mmflow as mmf

METHODS = {"check", "prepared", "run", "run_each", "edits"}  # of every pattern
# What runs no model of its own, or not in traces of the graph.
NO_EXPERIMENTS = {
    *("load", "adapt", "check", "read_questions", "prompts_of", "read_benchmark"),
    *("read_constraint_questions", "write_constraint_questions"),
    *("on_image", "explore", "show_attention", "show_tokens"),  # draw
    *("from_run", "mean_of", "noise", "zeros"),  # values of a Patch, which are among the patterns
    *("cache_by_span", "patch_by_span", "attribution_by_span"),  # of a TransformerLens bridge
    "flow_on_workers",  # on machines of one's own
}


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


def test_every_pattern_is_there(nano):
    public = [getattr(mmf, name) for name in mmf.__all__]
    kinds = {one for one in public if inspect.isclass(one) and set(dir(one)) >= METHODS}
    assert mmf.Knockout in kinds
    assert {type(one) for one in patterns(prompts(nano)[1]).values()} == kinds


def test_every_experiment_is_there(nano):
    public = {name for name in mmf.__all__ if inspect.isfunction(getattr(mmf, name))}
    assert public >= NO_EXPERIMENTS
    listed = experiments(nano, nano, prompts(nano))
    assert public - NO_EXPERIMENTS == {name.split(" by ")[0] for name in listed}
    for name in BY_GRADIENTS:
        source = inspect.getsource(importlib.import_module(getattr(mmf, name).__module__))
        assert "needs_gradients(graph" in source
