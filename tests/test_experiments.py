"""Every experiment has a row in kit/experiments.py, takes what all take, and keeps its promises: plain/experiments.py.

On a server: remote/inside.py, remote/beside.py.
"""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from kit.experiments import COMMON, ROWS

import nnsight_mmflow as mmf

HERE = Path(__file__).parent
FUNCTIONS = sorted({row.function for row in ROWS})
NO_EXPERIMENTS = {"load", "adapt", "check", "explore"}


def test_every_exported_experiment_has_a_row():
    public = {name for name in mmf.__all__ if inspect.isfunction(getattr(mmf, name))}
    assert public - NO_EXPERIMENTS == set(FUNCTIONS)
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_takes_what_all_experiments_take(name):
    taken = inspect.signature(getattr(mmf, name)).parameters
    defaults = {each: taken[each].default for each in COMMON if each in taken}
    assert list(defaults) == list(COMMON)
    assert {each: defaults[each] for each in COMMON[:-1]} == {
        "folder": None,
        "remote": None,
        "workers": 0,
        "blocking": True,
        "progress": True,
    }
    assert all(taken[each].kind is inspect.Parameter.KEYWORD_ONLY for each in COMMON)
    assert not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values()), "a typo must be an error"
    result = next(row.result for row in ROWS if row.function == name)
    assert inspect.signature(getattr(mmf, name)).return_annotation == result


@pytest.mark.parametrize("name", sorted({row.function for row in ROWS if row.gradients}))
def test_it_is_refused_where_gradients_do_not_reach(name):
    source = inspect.getsource(importlib.import_module(getattr(mmf, name).__module__))
    assert "needs_gradients(graph" in source


@pytest.mark.slow
def test_the_rows_pass():
    command = [sys.executable, "-m", "pytest", str(HERE / "plain" / "experiments.py"), "-q", "-n0", "-o", "addopts="]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider", "-m", "not gpu"]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
