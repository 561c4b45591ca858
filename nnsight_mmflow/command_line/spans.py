"""`mmflow spans`: the spans of one prompt as a table."""

from __future__ import annotations

import argparse
import sys

from nnsight_mmflow.command_line._shared import load_graph


def run(given: argparse.Namespace) -> None:
    """Prints the table."""
    graph = load_graph(given)
    prompt = graph.prompt(
        given.image,
        given.question,
        template=given.template,
        instruction=given.instruction,
        pad_to_square=given.pad_to_square,
    )
    sys.stdout.write(f"{prompt.spans}\n")
