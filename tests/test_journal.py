"""What is finished stays finished: cut-off lines, other settings, and a real kill."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import nnsight_mmflow as mmf
from nnsight_mmflow._journal import Journal

QUIET = {"progress": False, "report": lambda text: None}


def test_a_line_cut_off_by_a_kill_is_done_again(tmp_path):
    journal = Journal(tmp_path, {"window": 3})
    for name in "ab":
        journal.add({"id": name, "cells": []})
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    again = Journal(tmp_path, {"window": 3})
    assert set(again.done) == {"a"}
    again.add({"id": "b", "cells": [1]})
    assert set(Journal(tmp_path, {"window": 3}).done) == {"a", "b"}
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == ["a", "b"]


def test_other_settings_are_refused_with_both_values(tmp_path):
    Journal(tmp_path, {"window": 3, "model": "nano"})
    with pytest.raises(mmf.DataError, match="window was 3, is 9"):
        Journal(tmp_path, {"window": 9, "model": "nano"})


def test_a_broken_line_is_named(tmp_path):
    Journal(tmp_path, {})
    (tmp_path / "prompts.jsonl").write_text("nonsense\n")
    with pytest.raises(mmf.DataError, match=r"prompts.jsonl, line 1 cannot be read"):
        Journal(tmp_path, {})


@pytest.mark.slow
def test_a_killed_run_goes_on_without_repeating_or_losing_any(tmp_path):
    graph = mmf.load("nano")
    prompts = mmf.nano.prompts(graph, 40)
    code = (
        "import torch; torch.set_num_threads(1); import nnsight_mmflow as mmf; graph = mmf.load('nano');"
        f" mmf.flow(graph, mmf.nano.prompts(graph, 40), window=3, folder={str(tmp_path)!r})"
    )
    running = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    file, waited = tmp_path / "prompts.jsonl", 0.0
    while not (file.exists() and file.read_bytes().count(b"\n") >= 5):
        assert running.poll() is None, "it ended before it could be killed"
        assert waited < 120
        time.sleep(0.02)
        waited += 0.02
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    finished = file.read_bytes().count(b"\n")
    assert 5 <= finished < 40
    resumed = mmf.flow(graph, prompts, window=3, folder=tmp_path, **QUIET).to_frame()
    ids = [json.loads(line)["id"] for line in file.read_text().splitlines()]
    assert len(ids) == len(set(ids)) == 40
    whole = mmf.flow(graph, prompts, window=3, **QUIET).to_frame()
    assert list(resumed["prompt"]) == list(whole["prompt"])
    # two processes: float32 sums may be ordered otherwise
    assert (resumed["probability"] - whole["probability"]).abs().max() <= 1e-5
