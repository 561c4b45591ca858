"""Causal tracing by rows against one forward per cell: all layers, MLP and attention, three spans.

Run: python benchmarks/trace.py [--shape small|7b|13b] [--device cuda --dtype float16] [--json FILE]

The corrupt run differs in two words of the question, so the cells share the image. All is timed in one process.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from flow import timed
from shapes import SHAPES, build, question

import nnsight_mmflow as mmf
from nnsight_mmflow.inside.plan import ROW_BUDGET
from nnsight_mmflow.inside.restore import Cell
from nnsight_mmflow.patterns.trace.run import clean_values, one_forward
from nnsight_mmflow.runs.restored import run_cells
from nnsight_mmflow.runs.results import versions
from nnsight_mmflow.runs.sweep import answer_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--forwards", type=int, help="time only so many of the cells by forwards, and scale up")
    parser.add_argument("--json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, processor = build(SHAPES[given.shape], getattr(torch, given.dtype), given.device)
    graph = mmf.adapt(model, processor)
    image = np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    prompt = graph.prompt(image, question())
    asked = list(prompt.spans["question"])
    words = prompt.question.split()
    corrupt = mmf.corruption.repeat_token(graph, prompt, " ".join(words[4:6]), words[-1])
    spans = {"constraint": asked[4:6], "question behind it": asked[6:], "last": list(prompt.spans["last"])}
    cells = [
        Cell(name, tuple(at), site, layer, layer + 1)
        for name, at in spans.items()
        for site in ("mlp", "attn")
        for layer in range(graph.n_layers)
    ]
    positions = sorted({position for cell in cells for position in cell.positions})
    places = {position: row for row, position in enumerate(positions)}

    def by_rows():
        token = torch.tensor(answer_of(graph, prompt, 1).token)
        start = positions[0]  # LLaVA's image tokens read no later ones: no row needs more
        return token, run_cells(graph, prompt, corrupt.prompt, corrupt.patterns, cells, start, token, ROW_BUDGET, ())

    by_rows()
    row_seconds, (token, rows) = timed(by_rows, given.device, 3)
    values = clean_values(graph, prompt, ["mlp", "attn"], positions)
    some = [cells[i] for i in np.linspace(0, len(cells) - 1, given.forwards or len(cells)).round().astype(int)]

    def by_forwards():
        return [one_forward(graph, corrupt, cell, values, places, token) for cell in some]

    forward_seconds, forwards = timed(by_forwards, given.device)
    plain_seconds, _ = timed(lambda: answer_of(graph, prompt, 1), given.device, 3)
    forward_seconds = forward_seconds / len(some) * len(cells) + 2 * plain_seconds
    difference = max(float((rows[cell] - found)[0].abs()) for cell, found in zip(some, forwards, strict=True))
    logs = torch.stack([rows[cell][0] for cell in cells])
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "shape": given.shape,
        "dtype": given.dtype,
        "device": given.device,
        "cells": len(cells),
        "forwards_timed": len(some),
        "row_seconds": row_seconds,
        "forward_seconds": forward_seconds,
        "ratio": forward_seconds / row_seconds,
        "log_probability_difference": difference,
        "spread_of_cells": float(logs.max() - logs.min()),  # what the agreement is to be compared with
        "versions": versions(),
    }
    print(json.dumps(found, indent=2))
    if given.json:
        with open(given.json, "w") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
