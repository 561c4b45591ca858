"""Runs the cases in tests/plain as a user's process is: with the types checked by the package itself, and by it alone.

The shape checks of the other tests refuse a wrong type before the package can.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[1]


def test_the_plain_cases_pass():
    """In one process: it takes long to start."""
    cases = [str(HERE / "plain" / name) for name in ("arguments.py", "hidden_keys.py", "jobs.py")]
    command = [sys.executable, "-m", "pytest", *cases, "-q", "-n0", "-o", "addopts="]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
