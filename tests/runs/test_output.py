"""Output that fails: what is told, what is kept, that a finished result is returned; locks, links, damaged files."""

import json
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pandas as pd
import pytest

import nnsight_mmflow as mmf
from nnsight_mmflow.command_line import main
from nnsight_mmflow.command_line.experiments import EXPERIMENTS
from nnsight_mmflow.files import output as _output
from nnsight_mmflow.files.folder_lock import FolderLock
from nnsight_mmflow.files.output import output_folder, write_csv, write_figure, write_text
from nnsight_mmflow.patterns.flow.job import read_job
from nnsight_mmflow.patterns.flow.measure import measure
from nnsight_mmflow.runs.journal import Journal

EDGES = ["image->last"]


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def prompts(nano):
    return mmf.nano.prompts(nano, 4)


def run(graph, prompts, folder, told=None, **given):
    settings = {"edges": EDGES, "window": 1, "only_correct": False, "progress": False, **given}
    return mmf.flow(graph, prompts, folder=folder, report=(told if told is not None else []).append, **settings)


@pytest.fixture(scope="module")
def whole(nano, prompts):
    return run(nano, prompts, None).to_frame()


@contextmanager
def room(size):
    """No file may grow beyond so many bytes, as on a full disk; print nothing inside: that goes to a file, too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def obstacles(tmp_path):
    """Folders that cannot be written into, and what is told of each."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return {
        tmp_path / "file": "file of that name|a file, not a folder",
        tmp_path / "file" / "below": "a part of the path is a file",
        tmp_path / "loop": "link|file of that name",
        tmp_path / ("n" * 300): "the name is too long",
        tmp_path / "a\0b": "null",
    }


def test_a_folder_that_cannot_be_is_told_before_any_forward(nano, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(type(nano), "checked", lambda *given: pytest.fail("a forward was made ready"))
    result = mmf.results.FlowResult(pd.DataFrame({"a": [1]}), {"model": "x"})
    for folder, text in obstacles(tmp_path).items():
        for act in (lambda where: run(nano, prompts, where), result.save):
            with pytest.raises(mmf.OutputError, match=text) as error:
                act(folder)
            assert "Give another folder" in str(error.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_no_path_is_not_taken_for_the_working_directory(nano, prompts, tmp_path, capsys, monkeypatch):
    """An empty text is a shell's variable that was not set, and would mean "here"."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(type(nano), "checked", lambda *given: pytest.fail("a forward was made ready"))
    result = mmf.results.FlowResult(pd.DataFrame({"a": [1]}), {"model": "x"})
    for act in (
        result.save,
        mmf.results.FlowResult.load,
        mmf.results.EditResult.load,
        lambda where: run(nano, prompts, where),
    ):
        with pytest.raises(mmf.MMFlowError, match="folder is a path, but ''"):
            act("")
    with pytest.raises(mmf.DataError, match="holds no FlowResult"):
        mmf.results.FlowResult.load("n" * 300)
    monkeypatch.setattr(mmf, "load", lambda *given, **kwargs: pytest.fail("the model was loaded"))
    for command in (*EXPERIMENTS, "nano samples"):
        assert main([*command.split(), "--out", ""]) == 2
        assert "--out is empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [*EXPERIMENTS, "nano samples"])
def test_a_command_says_it_in_a_sentence_before_it_loads(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mmf, "load", lambda *given, **kwargs: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_text("mine")
    command = command.split()
    assert main([*command, "--out", str(tmp_path / "file")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith(f"mmflow {command[0]}: nothing can be written into the folder")


def test_a_full_disk_leaves_the_earlier_result_and_returns_the_new_one(nano, prompts, whole, tmp_path):
    run(nano, prompts[:2], tmp_path)
    before, told = contents(tmp_path), []
    size = sum(len(line) for line in before["prompts.jsonl"].splitlines()) * 3
    with room(size):  # the journal fits, the table does not
        result = run(nano, prompts, tmp_path, told)
    assert result.to_frame().equals(whole)
    assert "the result is finished, but was not saved" in told[-1].lower()
    assert "larger than is allowed" in told[-1]
    after = contents(tmp_path)
    assert after.pop("prompts.jsonl").startswith(before.pop("prompts.jsonl"))
    assert after == before, "the earlier result is whole, and no half of a file lies about"
    assert len(mmf.results.FlowResult.load(tmp_path).to_frame()) == len(whole) // 2
    assert result.save(tmp_path / "elsewhere") == tmp_path / "elsewhere"


def test_planted_a_save_that_writes_in_place_is_found(nano, prompts, tmp_path, monkeypatch):
    @contextmanager
    def in_place(*files):
        yield list(files)

    monkeypatch.setattr("nnsight_mmflow.runs.results.written_together", in_place)
    with pytest.raises((AssertionError, OSError)):
        test_a_full_disk_leaves_the_earlier_result_and_returns_the_new_one(nano, prompts, None, tmp_path)


def test_a_journal_that_cannot_grow_loses_nothing(nano, prompts, whole, tmp_path, monkeypatch):
    run(nano, prompts[:1], tmp_path)
    before, told = (tmp_path / "prompts.jsonl").read_bytes(), []
    with room(len(before) + 10):
        result = run(nano, prompts, tmp_path, told)
    assert result.to_frame().equals(whole)
    mine = [text for text in told if "prompts.jsonl cannot be written" in text]
    assert len(mine) == 1, "it is told once"
    assert "1 finished entries were written to it before; the run goes on" in mine[0]
    assert (tmp_path / "prompts.jsonl").read_bytes() == before, "no half a line"
    again = run(nano, prompts, tmp_path, told)
    assert "3 prompt(s) to run, 1 done already" in told[-1]
    assert again.to_frame().equals(whole)


def test_what_waits_is_written_when_there_is_room(tmp_path):
    told = []
    with Journal(tmp_path, {}, told.append) as journal:
        with room(10):
            journal.add({"id": "a"})
            journal.add({"id": "b"})
        assert [entry["id"] for entry in journal.unwritten] == ["a", "b"]
        journal.add({"id": "c"})
        assert journal.unwritten == []
    assert list(Journal(tmp_path, {}).done) == ["a", "b", "c"]
    assert len(told) == 1


def test_a_folder_deleted_under_way(nano, prompts, whole, tmp_path, monkeypatch):
    folder, told = tmp_path / "run", []

    def deletes(graph, prompt, *given):
        if prompt is prompts[2]:
            shutil.rmtree(folder)
        return measure(graph, prompt, *given)

    monkeypatch.setattr("nnsight_mmflow.patterns.flow.flow.measure", deletes)
    result = run(nano, prompts, folder, told)
    assert result.to_frame().equals(whole)
    assert len([text for text in told if "folder is not there" in text]) == 1
    assert mmf.results.FlowResult.load(folder).to_frame().equals(whole)


@pytest.mark.parametrize("number", [28, 30, 13, 122, 5])
def test_every_refusal_of_the_system_is_told(number, tmp_path, monkeypatch):
    (tmp_path / "report.md").write_text("earlier")

    def refuse(*given, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(_output.tempfile, "mkstemp", refuse)
    figure = type("Figure", (), {"savefig": lambda *given, **kwargs: None})()
    for write in (
        lambda: write_text(tmp_path / "report.md", "new"),
        lambda: write_csv(tmp_path / "flow.csv", pd.DataFrame()),
        lambda: write_figure(tmp_path / "flow.png", figure),
    ):
        with pytest.raises(mmf.OutputError, match=_output.WHY[number]) as error:
            write()
        assert "What was there before is untouched" in str(error.value)
    assert contents(tmp_path) == {"report.md": b"earlier"}


# Symbolic links.


def test_links_are_not_followed_out_of_the_folder(nano, prompts, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("precious")
    for name in ("prompts.jsonl", "settings.json", ".lock"):
        folder = tmp_path / f"with {name}"
        run(nano, prompts[:1], folder)
        (folder / name).unlink()
        (folder / name).symlink_to(outside)
        with pytest.raises(mmf.MMFlowError, match="symbolic link"):
            run(nano, prompts[:1], folder)
    folder = tmp_path / "results"
    folder.mkdir()
    for name in ("flow.parquet", "flow.json"):
        (folder / name).symlink_to(outside)
    result = run(nano, prompts[:1], folder)
    assert not (folder / "flow.parquet").is_symlink(), "the link is replaced"
    assert mmf.results.FlowResult.load(folder).to_frame().equals(result.to_frame())
    (folder / "paper").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(mmf.OutputError, match="leads out of"):
        output_folder(folder, "paper")
    assert outside.read_text() == "precious"
    (tmp_path / "shortcut").symlink_to(folder, target_is_directory=True)
    run(nano, prompts[:1], tmp_path / "shortcut")  # the folder itself may be one: it is what was asked for


# Two processes on one folder.

HOLDS = """
import sys, time
from nnsight_mmflow.runs.journal import Journal
with Journal(sys.argv[1], {"window": 3}) as journal:
    journal.add({"id": "a"})
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_process_is_told_who_holds_it_and_a_killed_one_holds_nothing(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(mmf.DataError, match=rf"another run: process {first.pid} on \S+, since 20\d\d-"):
            Journal(tmp_path, {"window": 3})
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    assert list(Journal(tmp_path, {"window": 3}).done) == ["a"]


def test_a_call_in_the_same_process_is_told_too_and_errors_give_the_lock_back(nano, prompts, tmp_path, monkeypatch):
    with Journal(tmp_path, {}), pytest.raises(mmf.DataError, match="this very process"):
        Journal(tmp_path, {})

    def fails(graph, prompt, *given):
        raise mmf.MMFlowError("planted")

    with monkeypatch.context() as planted:
        planted.setattr("nnsight_mmflow.patterns.flow.flow.measure", fails)
        with pytest.raises(mmf.MMFlowError, match="planted"):
            run(nano, prompts[:1], tmp_path / "run")
    run(nano, prompts[:1], tmp_path / "run")


def test_planted_without_a_lock_the_second_is_not_told(tmp_path, monkeypatch):
    monkeypatch.setattr(FolderLock, "_lock", lambda self, handle: None)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        with Journal(tmp_path, {}), pytest.raises(mmf.DataError, match="this very process"):
            Journal(tmp_path, {})


# Damaged results and jobs.


def test_damaged_results_are_refused_in_words(nano, prompts, tmp_path):
    run(nano, prompts[:1], tmp_path / "good")
    data = (tmp_path / "good" / "flow.parquet").read_bytes()
    header = (tmp_path / "good" / "flow.json").read_text()
    other = run(nano, prompts[1:2], tmp_path / "other") and (tmp_path / "other" / "flow.parquet").read_bytes()
    damaged = {
        "table cut": (data[:-50], header),
        "table empty": (b"", header),
        "table of another run": (other, header),
        "header cut": (data, header[:40]),
        "header no table": (data, "[1, 2]"),
        "header binary": (data, "\udcff"),
        "table cut, no sum": (data[:-50], "{}"),
    }
    failing = []
    for number, (what, (table, text)) in enumerate(damaged.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "flow.parquet").write_bytes(table)
        (folder / "flow.json").write_bytes(text.encode(errors="surrogateescape"))
        try:
            mmf.results.FlowResult.load(folder)
            failing.append(f"{what}: accepted")
        except mmf.DataError as error:
            if "cannot be read" not in str(error):
                failing.append(f"{what}: {error}")
    assert failing == []
    assert "table_sha256" not in mmf.results.FlowResult.load(tmp_path / "good").header
    (tmp_path / "good" / "flow.parquet").unlink()
    with pytest.raises(mmf.DataError, match="cannot be read"):
        mmf.results.FlowResult.load(tmp_path / "good")


def test_a_damaged_edit_is_refused_in_words(tmp_path):
    edit = mmf.results.EditResult(pd.DataFrame({"fact": ["a"]}), {"model": "x", "layers": [1]})
    edit.save(tmp_path)
    with pytest.raises(mmf.DataError, match=r"edit.safetensors does not hold the updates"):
        mmf.results.EditResult.load(tmp_path)
    (tmp_path / "edit.safetensors").write_bytes(b"nonsense")
    with pytest.raises(mmf.DataError, match=r"edit.safetensors is not the one that edit.json was saved with"):
        mmf.results.EditResult.load(tmp_path)


def test_of_a_jobs_file_only_settings_are_taken(nano, prompts, tmp_path):
    good = {"given": {"edges": None, "window": [1, 3], "only_correct": True, "controls": 2}, "jobs": {"a": "1-b_c"}}
    file = tmp_path / "job.json"
    file.write_text(json.dumps({**good, "folder": "/somewhere", "host": "https://elsewhere"}))
    assert read_job(file) == (good["given"], good["jobs"])
    strange = {
        "a host": {"given": {"remote": "https://elsewhere"}, "jobs": {}},
        "a folder": {"given": {"folder": "/somewhere"}, "jobs": {}},
        "a function": {"given": {"measured_by": "x"}, "jobs": {}},
        "a type": {"given": {"window": "3"}, "jobs": {}},
        "a truth for a number": {"given": {"window": True}, "jobs": {}},
        "edges of a type": {"given": {"edges": [1]}, "jobs": {}},
        "windows of a type": {"given": {"window": [None]}, "jobs": {}},
        "an address": {"given": {}, "jobs": {"a": "../../other"}},
        "a number for an id": {"given": {}, "jobs": {"a": 3}},
        "no jobs": {"given": {}},
        "a list": [1],
        "jobs of another form": {"given": {}, "jobs": 3},
    }
    for what, kept in strange.items():
        file.write_text(json.dumps(kept))
        with pytest.raises(mmf.DataError, match="holds no job"):
            raise AssertionError(f"{what} was accepted: {read_job(file)}")
    for text in ("", "{", "\0", "[" * 100_000):
        file.write_text(text)
        with pytest.raises(mmf.DataError, match="holds no job"):
            mmf.results.FlowJob.load(file, nano, prompts)


def test_a_training_goes_on_with_its_own_state_alone(tmp_path):
    import torch

    from nnsight_mmflow.nano.train import train

    (tmp_path / "training.pt").write_bytes(b"nonsense")
    with pytest.raises(mmf.DataError, match=r"training.pt cannot be read"):
        train(tmp_path, steps=1, n_layers=2, report=str)
    torch.save({"run": {"seed": 1, "n_layers": 2, "readout_steps": 3000}, "step": 1}, tmp_path / "training.pt")
    with pytest.raises(mmf.DataError, match="is of another training"):
        train(tmp_path, steps=1, n_layers=2, report=str)
