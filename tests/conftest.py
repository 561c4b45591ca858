"""Set before torch is imported: tiny models run ten times slower with more threads; no test reaches a network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import builtins  # noqa: E402

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


def pytest_collection_modifyitems(items):
    """Marks what is quick, and skips families that the transformers installed gets wrong: they are refused at load."""
    from kit.families import refused_here

    for item in items:
        if item.path.stem.removeprefix("test_") in QUICK and not any(map(item.get_closest_marker, ("slow", "browser"))):
            item.add_marker(pytest.mark.quick)
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        for name in refused_here():
            if name in values:
                item.add_marker(pytest.mark.skip(reason=f"{name} is refused at load"))


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
