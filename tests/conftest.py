"""Set before torch is imported: tiny models run ten times slower with more threads; no test reaches a network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import builtins  # noqa: E402
import gc  # noqa: E402

import beartype  # noqa: E402, F401 - before nnsight: it cannot be imported after (nnsight mounts .save on every object)
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# What runs inside a trace may not import jaxtyping (a server need not have it), so its shapes are postponed names;
# here they are made findable, and the tests check them (test_shapes.py).
for name in ("Float", "Int", "Bool"):
    setattr(builtins, name, getattr(jaxtyping, name))

from kit.apart import split  # noqa: E402, F401
from kit.browsing import chromium  # noqa: E402, F401
from kit.tiny import picture, tiny_graph  # noqa: E402

torch.set_num_threads(1)

QUICK = (  # whole files, of a minute and a half together on two cores: `-m quick` (times of 2026-11-30)
    "adapters",
    "adapters_more",
    "additions",
    "benchmarks_data",
    "beside",
    "bridge",
    "called",
    "catalogue",
    "diagram",
    "explore_values",
    "formerly",
    "geometry",
    "geometry_more",
    "house",
    "knockout",
    "lens",
    "made_again",
    "masks",
    "odd_files",
    "output",
    "package",
    "patch",
    "pixels",
    "prompts",
    "prompts_more",
    "prune_before",
    "prune_report",
    "questions",
    "real_configs",
    "security",
    "shapes",
    "shipping",
    "spans",
    "spans_more",
    "spans_typed",
    "together",
    "turns",
    "versions",
)


FIRST = {  # of half a minute and more: first, so that no process waits for one of them at the end
    "test_the_remote_cases_pass",
    "test_the_rows_pass",
    "test_the_plain_cases_pass",
    "test_killed_workers_lose_nothing_and_a_run_goes_on_where_it_was",
    "test_kills_of_every_experiment_lose_and_repeat_nothing",
    "test_a_model_split_over_two_processes_gives_the_same_knockouts",
    "test_accuracy_with_and_without_the_image",
    "test_notebook_runs",
    "test_types",
}


def pytest_collection_modifyitems(items):
    """Marks what is quick, and skips families that the transformers installed gets wrong: they are refused at load."""
    from kit.families import refused_here

    items.sort(key=lambda item: item.originalname not in FIRST)
    for item in items:
        if item.path.stem.removeprefix("test_") in QUICK and not any(map(item.get_closest_marker, ("slow", "browser"))):
            item.add_marker(pytest.mark.quick)
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        for name in refused_here():
            if name in values:
                item.add_marker(pytest.mark.skip(reason=f"{name} is refused at load"))


def pytest_collection_finish():
    """What imports and collection made stays: the collector need not look at it again (a twentieth of all time)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="session")
def graph():
    """A random LLaVA: CLIP tower, Llama with grouped-query attention, 5 layers, sdpa."""
    return tiny_graph()


@pytest.fixture(scope="session")
def eager_graph():
    """The same weights under eager attention."""
    return tiny_graph(attention="eager")


@pytest.fixture
def prompt(graph):
    return graph.prompt(picture(0), "is the circle red or blue ?", "red", options=("red", "blue"))
