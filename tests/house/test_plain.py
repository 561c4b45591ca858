"""Runs the cases in tests/plain as a user's process is: with the types checked by the package itself, and by it alone.

The shape checks of the other tests refuse a wrong type before the package can.
"""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]


@pytest.mark.parametrize("cases", ["arguments.py", "hidden_keys.py", "jobs.py"])
def test_the_plain_cases_pass(cases):
    command = [sys.executable, "-m", "pytest", str(HERE / "plain" / cases), "-q", "-n0", "-o", "addopts="]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
