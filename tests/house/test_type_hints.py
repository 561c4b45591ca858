"""`typing.get_type_hints` resolves what is public, in plain Python; importing stays quick."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import nnsight_mmflow as mmf
from nnsight_mmflow import _type_hints

TESTS = Path(__file__).parents[1]


def plain(*arguments):
    """What a fresh Python prints: without the tests' own names, hooks and working directory."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, cwd="/").stdout


def test_every_public_annotation_resolves():
    told = json.loads(plain(str(TESTS / "kit" / "every_hint.py")))
    assert told["wrong"] == []
    assert told["seen"] > 1000
    assert "Float[Tensor" in told["shape"]


def test_annotations_import_only_what_they_name():
    """And not before they are asked for."""
    code = """
import sys, typing, inspect
import nnsight_mmflow as mmf
found = mmf.Knockout
before = [name for name in ("pandas", "matplotlib", "jaxtyping", "transformer_lens", "nnsight") if name in sys.modules]
hints = typing.get_type_hints(found)
from nnsight_mmflow.patterns import knockout
print(before, hints["source"], "transformer_lens" in sys.modules, "Span" in vars(knockout), inspect.signature(found))
"""
    shown = plain("-c", code)
    span = "str | nnsight_mmflow.spans.span.Span"
    assert shown.startswith(f"[] {span} False False (*, source: {span}")


def test_without_an_extra_its_classes_stand_as_any():
    code = """
import sys, typing
import importlib.util as util
real = util.find_spec
util.find_spec = lambda name, package=None: None if name == "transformer_lens" else real(name, package)
import nnsight_mmflow as mmf
print(typing.get_type_hints(mmf.Graph.to_transformer_lens)["return"])
"""
    assert plain("-c", code).strip() == "typing.Any"


def test_annotations_travel_as_they_are_written():
    written = {"graph": "Graph", "return": "None"}
    kept = _type_hints.Annotations(written, ("nnsight_mmflow.patterns.knockout",))
    assert type(pickle.loads(pickle.dumps(kept))) is dict
    assert pickle.loads(pickle.dumps(kept)) == written
    with pytest.raises(NameError, match="Grph"):  # a planted misspelling is told, not hidden
        _type_hints.Annotations({"graph": "Grph"}, ("nnsight_mmflow.patterns.knockout",)).keys()


def test_what_is_public_is_annotated():
    assert isinstance(mmf.flow.__annotations__, _type_hints.Annotations)
