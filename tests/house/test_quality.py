"""Style, types, doctests and file sizes."""

import doctest
import importlib
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nnsight_mmflow

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("nnsight_mmflow", "adapters", "patterns") for path in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("what", [("check",), ("format", "--check")])
def test_ruff(what):
    done = subprocess.run([sys.executable, "-m", "ruff", *what, "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_types(tmp_path):
    """As it is installed: adapters and patterns inside the package."""
    weights = ROOT / "nnsight_mmflow" / "nano"

    def heavy(folder, names):
        return {"data"} if Path(folder) == weights else set()

    shutil.copytree(ROOT / "nnsight_mmflow", tmp_path / "nnsight_mmflow", ignore=heavy)
    for folder in ("adapters", "patterns"):
        shutil.copytree(ROOT / folder, tmp_path / "nnsight_mmflow" / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "tests" / "kit" / "typed_calls.py", tmp_path)  # what users' checkers see
    command = [sys.executable, "-m", "mypy", "-p", "nnsight_mmflow", "-m", "typed_calls"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_files_stay_small():
    long = {str(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {path: lines for path, lines in long.items() if lines > 300} == {}


MODULES = [module.name for module in pkgutil.walk_packages(nnsight_mmflow.__path__, "nnsight_mmflow.")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in MODULES if ">>>" in importlib.util.find_spec(name).loader.get_source(name)]
)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
