"""Pages of attention on the image: how many bytes, how long they take to make, and to open in headless Chromium.

    python benchmarks/pages.py

Weights are made up (tests/kit/explored.py): softmax of noise, half of the mass on the first position in two
heads of three. The picture has 576 tokens (64 in the small case). Medians of three.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import torch
from kit.browsing import CHROMIUM, FLAGS
from kit.explored import made_up_maps
from playwright.sync_api import Browser, sync_playwright

import nnsight_mmflow as mmf

CASES = ((8, 100), (8, 600), (32, 600))
RUNS = 3


def opened_in(browser: Browser, file: Path) -> tuple[float, float]:
    """Seconds from asking for the page until it is drawn, and for another head to be drawn."""
    tab = browser.new_page(viewport={"width": 900, "height": 700})
    started = time.perf_counter()
    tab.goto(file.as_uri())
    tab.locator("html[data-ready=yes]").wait_for(state="attached")
    ready = time.perf_counter() - started
    started = time.perf_counter()
    tab.locator("#head").select_option("max")
    tab.get_by_text("Layer 16, largest of").wait_for()
    other = time.perf_counter() - started
    tab.close()
    return ready, other


def small_prompt(positions: int) -> mmf.Prompt:
    """A prompt of nano's, lengthened to so many positions."""
    graph = mmf.load("nano")
    asked = mmf.nano.prompts(graph, 1)[0]
    return graph.prompt(list(asked.images), asked.question + " the" * (positions - len(asked)))


def main() -> None:
    torch.set_num_threads(1)
    print(
        "| heads x targets x sources | page | made in | opened in | another head | a weight of 0.01 is off by at most |"
    )
    print("|---|---|---|---|---|---|")
    with sync_playwright() as made, tempfile.TemporaryDirectory() as folder:
        browser = made.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for heads, positions in CASES:
            prompt = small_prompt(positions) if positions < 576 else None
            maps = made_up_maps(heads, positions, prompt)
            seconds, opening = [], []
            for run in range(RUNS):
                started = time.perf_counter()
                page = mmf.explore(replace(maps))
                file = page.save(Path(folder) / f"{heads}-{positions}-{run}.html")
                seconds.append(time.perf_counter() - started)
                opening.append(opened_in(browser, file))
            ready, other = (statistics.median(column) for column in zip(*opening, strict=True))
            off = page.data["kept"].split("0.01 by at most ")[1].split()[0].rstrip(".")
            print(
                f"| {heads} x {positions} x {positions} | {file.stat().st_size / 1e6:.2f} MB |"
                f" {statistics.median(seconds):.2f} s | {ready:.2f} s | {other:.2f} s | {off} |"
            )
        print(f"\nChromium {browser.version}")
        browser.close()


if __name__ == "__main__":
    main()
