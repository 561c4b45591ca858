"""All that a trace can reach travels to a server by value; what would be lost on the way is found by walking."""

import sys
from pathlib import Path

import pytest
from kit.shipping import faults, module_of, reached, read

ROOT = Path(__file__).parents[2]
ON_A_SERVER = {"torch", "numpy", "transformers", "einops", "nnsight", "nnsight_mmflow", *sys.stdlib_module_names}
LOW = ("_errors", "_kinds", "_later")
BESIDE = {
    "pattern",
    "named",
    "edits",
    "loaded",
    "prompt",
}  # the base of patterns; the walk sees more than can be reached


@pytest.fixture(scope="module")
def modules():
    return read(ROOT)


def test_what_a_trace_reaches_can_be_shipped(modules):
    assert faults(modules, ON_A_SERVER) == []


def test_the_walk_goes_everywhere(modules):
    """Every pattern's run, the row engine, rankings that are objects, and what they call in turn."""
    found = {f"{where.removeprefix('nnsight_mmflow.')}.{name}" for where, name in reached(modules)}
    for name in (
        "patterns.edge_scores.EdgeScores.run",
        "inside.edges.change_edges",
        "inside.layer_inputs.InputsLayer.cover",
        "inside.layer_operations.OperationsLayer.cover",
        "patterns.prune.prune.Prune.run_each",
        "patterns.prune.sparse_vlm._Recycling.__call__",
        "patterns.skip.Skip.run",
        "patterns.change.Change.change",
        "patterns.through.Through.with_features",
        "inside.own_functions.changed_by",
        "inside.updates.add_updates",
        "inside.sweep.rows_of",
        "inside.rows.run_rows",
        "inside.masks.layer_mask",
        "inside.restored.restored_there",
        "inside.saliency.read_flows",
    ):
        assert name in found
    rooms = {name.split(".")[0] for name in found}
    assert rooms <= {"inside", "spans", "patterns", "model", "prompts", "remote", "checks", *LOW}
    outside = {name.split(".")[1] for name in found if name.startswith(("model.", "prompts."))}
    assert outside <= BESIDE, "what runs inside a trace lies in inside/"


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
