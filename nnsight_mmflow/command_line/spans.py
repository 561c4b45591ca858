"""`mmflow spans`: the spans of one prompt as a table, and its image tokens drawn on the picture."""

from __future__ import annotations

import argparse
import sys

from nnsight_mmflow.command_line.shared import load_graph


def run(given: argparse.Namespace) -> None:
    """Prints the table and writes the picture."""
    from nnsight_mmflow.show.span_picture import draw_spans

    graph = load_graph(given)
    prompt = graph.prompt(
        given.image,
        given.question,
        template=given.template,
        instruction=given.instruction,
        pad_to_square=given.pad_to_square,
    )
    sys.stdout.write(f"{prompt.spans}\n")
    for file in draw_spans(prompt, given.out, [given.box] if given.box else []):
        sys.stdout.write(f"image tokens drawn in {file}\n")
