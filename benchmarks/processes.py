"""Each part of a benchmark in a process of its own, so that none sees another's peak of memory."""

import json
import subprocess
import sys
from collections.abc import Sequence


def each_in_a_process(script: str, kinds: Sequence[str]) -> dict[str, dict]:
    """For each kind what the script prints as its last line, called as this process was and with `--only kind`."""
    printed: dict[str, dict] = {}
    for kind in kinds:
        command = [sys.executable, script, *sys.argv[1:], "--only", kind]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        printed[kind] = json.loads(shown.splitlines()[-1])
        print(kind, printed[kind], file=sys.stderr)
    return printed
