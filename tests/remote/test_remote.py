"""Runs the cases in tests/remote/cases as a user's process is: without the shape checks, which wrap every function.

What is wrapped cannot travel by value; no user's process has it so.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("cases", [("inside.py", "number_types.py"), ("beside.py", "words.py")], ids=" ".join)
def test_the_remote_cases_pass(cases):
    """A process and a server for several files: both take long to start."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        *(str(HERE / "remote" / "cases" / name) for name in cases),
        "-q",
        "-n0",
        "-o",
        "addopts=",
        "--import-mode=importlib",
    ]
    command += ["-p", "no:cacheprovider"]
    environment = {**os.environ, "MMFLOW_WITHOUT_TYPE_CHECKS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
