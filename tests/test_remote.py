"""Runs `remote_cases.py` as a user's process is: without the shape checks, which wrap every function of the package.

What is wrapped cannot travel by value; no user's process has it so.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("remote_cases.py")


@pytest.mark.slow
def test_the_remote_cases_pass():
    command = [sys.executable, "-m", "pytest", str(CASES), "-q", "-n0", "-o", "addopts=", "--import-mode=importlib"]
    command += ["-p", "no:cacheprovider"]
    environment = {**os.environ, "MMFLOW_WITHOUT_TYPE_CHECKS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=CASES.parent.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
