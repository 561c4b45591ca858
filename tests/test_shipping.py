"""All that a trace can reach travels to a server by value; what would be lost on the way is found by walking."""

import sys
from pathlib import Path

import pytest
from shipping import faults, module_of, reached, read

ROOT = Path(__file__).parent.parent
ON_A_SERVER = {"torch", "numpy", "transformers", "einops", "nnsight", "nnsight_mmflow", *sys.stdlib_module_names}


@pytest.fixture(scope="module")
def modules():
    return read(ROOT)


def test_what_a_trace_reaches_can_be_shipped(modules):
    assert faults(modules, ON_A_SERVER) == []


def test_the_walk_goes_everywhere(modules):
    """Every pattern's run, the row engine, rankings that are objects, and what they call in turn."""
    found = {f"{where.removeprefix('nnsight_mmflow.')}.{name}" for where, name in reached(modules)}
    for name in (
        "patterns.knockout.Knockout.run",
        "_closed_edges.close_edges_apart",
        "patterns.prune.Prune.run_apart",
        "patterns.sparse_vlm._Recycling.__call__",
        "patterns.skip.Skip.run",
        "patterns.edit_there.add_updates",
        "_sweep_there.rows_of",
        "_rows.run_rows",
        "_masks.layer_mask",
        "_restore_there.restored_there",
        "_saliency.read_flows",
    ):
        assert name in found
    assert not [name for name in found if name.startswith(("command_line", "adapters", "pages", "_plots", "_shown"))]


BAD = """
from functools import lru_cache
{extra}

class Base:
    def __init__(self): ...

class Child(Base):
    def __init__(self):
        {body}

{decorator}
def helper():
    return Child()

def middle():
    {inside}
    return helper()

def sweep(model):
    with model.trace() as tracer:
        middle()
"""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"decorator": "@lru_cache"}, "planted.helper: @lru_cache is lost on a server"),
        ({"body": "super().__init__()"}, "planted.Child.__init__: zero-argument super() breaks on a server"),
        ({"extra": "import pandas"}, "planted: imports pandas when it is loaded"),
        ({"inside": "out._module.weight"}, "planted.middle: reads out._module.weight, which is empty on NDIF"),
        ({"inside": "out.bias"}, "planted.middle: reads out.bias, which is empty on NDIF"),
        ({"inside": "sum(out.parameters())"}, "planted.middle: reads out.parameters, which is empty on NDIF"),
        ({"inside": "out._module.device"}, "planted.middle: reads out._module.device, which is empty on NDIF"),
        ({"inside": "kept = out._module"}, "planted.middle: keeps out._module, whose weights are empty on NDIF"),
        ({"inside": "getattr(out, 'weight')"}, "planted.middle: reads getattr(out, 'weight'), which is empty on NDIF"),
        ({"inside": "import matplotlib.pyplot"}, "planted.middle: imports matplotlib"),
    ],
)
def test_what_ships_wrongly_is_found(change, told):
    """Planted, two calls away from the block."""
    parts = {"extra": "", "body": "pass", "decorator": "", "inside": "pass"}
    clean = {"planted": module_of("planted", BAD.format(**parts))}
    assert faults(clean, ON_A_SERVER) == []
    assert faults({"planted": module_of("planted", BAD.format(**parts | change))}, ON_A_SERVER) == [told]
