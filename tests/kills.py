"""Kills each resumable experiment again and again: nothing may be lost, nothing repeated, all equal bit for bit.

    python tests/kills.py            # 20 kills of each
    python tests/kills.py --kills 3 flow lens

A kill is SIGKILL: by the clock, before a finished prompt is written, in the middle of its line, behind it, or between
the files of a result. Every run is a forked process, so that the model is loaded once.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pandas  # noqa: F401 - imported once, and not in every forked process
import pyarrow.parquet  # noqa: F401
import torch

import nnsight_mmflow as mmf
from nnsight_mmflow.runs.journal import Journal

QUIET = {"progress": False, "report": str}
POINTS = ("before", "within", "behind", "saving")  # a line's write; "saving": between the files of a result


def experiments(graph, count):
    """By name, what runs an experiment into a folder."""
    prompts = mmf.nano.prompts(graph, count)
    clean, corrupt = mmf.nano.trace_pairs(graph, count, "flag")
    facts = mmf.nano.edits(graph, count)
    brief = mmf.EditSettings(steps=2)
    return {
        "flow": lambda at: mmf.flow(graph, prompts, window=3, only_correct=False, controls=1, folder=at, **QUIET),
        "causal_trace": lambda at: mmf.causal_trace(graph, clean, corrupt, only_correct=False, folder=at, **QUIET),
        "disruption": lambda at: mmf.disruption(graph, prompts, layers=[2, 3], folder=at, **QUIET),
        "skip_flow": lambda at: mmf.skip_flow(graph, prompts, ["image"], only_correct=False, folder=at, **QUIET),
        "lens": lambda at: mmf.lens(graph, prompts, only_correct=False, folder=at, **QUIET),
        "saliency": lambda at: mmf.saliency(graph, prompts, folder=at, **QUIET),
        "contributions": lambda at: mmf.contributions(graph, prompts, heads=True, folder=at, **QUIET),
        "attribution": lambda at: mmf.attribution_patching(
            graph, clean, corrupt, ["last"], exact=4, folder=at, **QUIET
        ),
        "word_overlap": lambda at: mmf.word_overlap(graph, prompts, window=3, folder=at, **QUIET),
        "features": lambda at: mmf.features(graph, prompts, "question", pool=None, folder=at, **QUIET),
        "prune_report": lambda at: mmf.prune_report(
            graph, prompts, [mmf.FastV(k=5)], batch_size=2, timed=0, folder=at, **QUIET
        ),
        "edit_report": lambda at: mmf.edit_report(
            graph, facts, prompts[:2], 3, fine_tuning=False, settings=brief, folder=at, **QUIET
        ),
    }


def child(run, folder, point="", nth=0):
    """A process of its own that runs into the folder, and kills itself at the nth write if told so; its id."""
    made = os.fork()
    if made:
        return made
    try:
        if point in POINTS[:3]:
            die_at_line(point, nth)
        elif point:
            replace = Path.replace

            def dies(self, target):
                replace(self, target)
                if self.suffix == ".parquet":  # its header is still the old one
                    os.kill(os.getpid(), signal.SIGKILL)

            Path.replace = dies
        run(folder)
        os._exit(0)
    except BaseException as error:
        sys.stderr.write(f"{error!r}\n")
        os._exit(1)


def die_at_line(point, nth):
    append, seen = Journal._append, []

    def dies(self, data):
        seen.append(0)
        if len(seen) < nth:
            append(self, data)
            return
        if point == "within":
            with self.path.open("ab") as file:
                file.write(data[: len(data) // 2])
        elif point == "behind":
            append(self, data)
        os.kill(os.getpid(), signal.SIGKILL)

    Journal._append = dies


def lines(folder):
    """The whole lines of a journal."""
    file = folder / "prompts.jsonl"
    data = file.read_bytes() if file.exists() else b""
    return data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]


def killed(name, run, kills, drawn, root):
    """Runs an experiment to its end through so many kills; what went wrong, and how often a run was begun."""
    wrong, reference, folder = [], root / "reference", root / "0"
    started = time.monotonic()
    _, status = os.waitpid(child(run, reference), 0)
    if status:
        return ["the run fails without a kill"], 1
    takes, wanted = time.monotonic() - started, lines(reference)
    runs = done = 0
    while done < kills:
        before = lines(folder)
        left = max(0, len(wanted) - len(before))
        by_clock = drawn.random() < 0.5
        point = "" if by_clock else drawn.choice(POINTS)
        process = child(run, folder, point, drawn.randint(1, max(1, left // 2)))
        runs += 1
        if by_clock:
            time.sleep(drawn.random() * takes * (0.1 + left / len(wanted)))
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status):
            done += 1
        elif os.WEXITSTATUS(status):
            wrong.append(f"a run that went on failed (kill {done})")
            break
        after = lines(folder)
        if after[: len(before)] != before:
            wrong.append(f"finished lines were lost or changed (kill {done}, {point or 'by the clock'})")
        if os.WIFEXITED(status):  # it ended before its kill
            wrong += compared(folder, reference)
            folder = root / str(int(folder.name) + 1)
    _, status = os.waitpid(child(run, folder), 0)
    wrong += ["the last run failed"] * bool(status) + compared(folder, reference)
    return wrong, runs + 1


def compared(folder, reference):
    """What differs from a run that was never killed."""
    wrong = []
    if sorted(lines(folder)) != sorted(lines(reference)):
        wrong.append("the journals differ: lines are missing or repeated, or have other numbers")
    for file in reference.iterdir():
        other = folder / file.name
        if file.suffix in (".json", ".parquet", ".safetensors") and (
            not other.exists() or file.read_bytes() != other.read_bytes()
        ):
            wrong.append(f"{file.name} differs")
    return wrong


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of experiments (all)")
    parser.add_argument("--kills", type=int, default=20, help="of each (20)")
    parser.add_argument("--prompts", type=int, default=8, help="of each run (8)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    every = experiments(mmf.load("nano"), given.prompts)
    failed = False
    for name in given.names or every:
        root = Path(tempfile.mkdtemp(prefix=f"kills-{name}-"))
        try:
            wrong, runs = killed(name, every[name], given.kills, random.Random(given.seed), root)
        finally:
            shutil.rmtree(root)
        failed |= bool(wrong)
        sys.stdout.write(
            f"{name}: {given.kills} kills in {runs} runs: {'; '.join(wrong) or 'nothing lost, all equal'}\n"
        )
        sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
