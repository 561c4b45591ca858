"""What is finished stays finished: cut-off lines, other settings, and real kills."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import nnsight_mmflow as mmf
from nnsight_mmflow.runs.journal import Journal


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


KILLS = """
import sys
import kills
from nnsight_mmflow.runs.journal import Journal

assert kills.main(["--kills", "1", "--prompts", "2"]) == 0
# Planted: a journal that repeats what is done, and one that loses it.
left, read = Journal.left, Journal._read
Journal.left = lambda self, identities: list(range(len(identities)))
assert kills.main(["--kills", "4", "--prompts", "3", "lens"]) == 1
Journal.left, Journal._read = left, lambda self: self.path.unlink(missing_ok=True)
assert kills.main(["--kills", "4", "--prompts", "3", "lens"]) == 1
"""


@pytest.mark.slow
def test_kills_of_every_experiment_lose_and_repeat_nothing():
    """One each; `python tests/kills.py` kills each twenty times."""
    here = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", KILLS], capture_output=True, text=True, cwd=here)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("nothing lost, all equal") == 12
    assert "lines are missing or repeated" in done.stdout
    assert "finished lines were lost" in done.stdout


def test_a_run_that_ends_before_its_first_prompt_leaves_the_folder_free(tmp_path):
    with pytest.raises(RuntimeError), Journal(tmp_path, {"window": 3}):
        raise RuntimeError
    with Journal(tmp_path, {"window": 9}) as journal:
        journal.add({"id": "a"})
    with pytest.raises(RuntimeError), Journal(tmp_path, {"window": 9}):
        raise RuntimeError
    with pytest.raises(mmf.DataError, match="window was 9, is 3"):
        Journal(tmp_path, {"window": 3})
