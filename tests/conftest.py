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
from kit.order import FIRST, is_quick  # noqa: E402
from kit.tiny import picture, tiny_graph  # noqa: E402

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Long tests first; marks what is quick; skips families that the installed transformers gets wrong (refused)."""
    from kit.families import refused_here

    items.sort(key=lambda item: getattr(item, "originalname", None) not in FIRST)
    for item in items:
        if is_quick(item.path) and not any(map(item.get_closest_marker, ("slow", "browser"))):
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
