"""`mmflow check`: the conformance suite on a model, as a table."""

from __future__ import annotations

import argparse
import sys

from nnsight_mmflow.command_line.shared import load_graph
from nnsight_mmflow.remote.ready import has_key


def run(given: argparse.Namespace) -> int:
    """Prints the table, and returns 1 if a check failed."""
    from nnsight_mmflow.checks import check

    if given.remote and not has_key():
        sys.stdout.write("skipped: there is no API key (nnsight login, or NDIF_API_KEY), so nothing was run on NDIF.\n")
        return 0
    report = check(load_graph(given))
    sys.stdout.write(f"{report}\n")
    return 0 if report.ok else 1
