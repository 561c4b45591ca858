"""Jobs: what an experiment returns at once, and what is refused before there is one.

A job is no result, so the shape checks of the other tests would refuse it.
"""

from contextlib import contextmanager
from threading import Event

import pytest
from kit.no_process import NoProcess

import nnsight_mmflow as mmf
from nnsight_mmflow.patterns.flow.measure import measure
from nnsight_mmflow.runs.journal import Journal
from nnsight_mmflow.workers import crew as _workers

QUIET = {"progress": False, "report": str}
SETTINGS = {"edges": ["image->last"], "window": 3, "only_correct": False, **QUIET}


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def prompts(nano):
    return mmf.nano.prompts(nano, 3)


@pytest.fixture(scope="module")
def whole(nano, prompts):
    return mmf.flow(nano, prompts, **SETTINGS).to_frame()


def test_a_job_on_workers_gets_the_same_and_ends_its_workers(nano, prompts, whole, tmp_path, monkeypatch):
    ray = NoProcess()
    monkeypatch.setattr(_workers, "cluster", contextmanager(lambda workers, address: iter([ray])))
    job = mmf.flow(nano, prompts, workers=2, blocking=False, folder=tmp_path, **SETTINGS)
    assert isinstance(job, mmf.Job)
    assert job.result(timeout=60).to_frame().equals(whole)
    assert job.status == {"FETCHED": 3}
    assert ray.killed == len(ray.made) > 0


def test_a_job_that_fails_tells_it_and_gives_the_folder_back(nano, prompts, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as planted:
        planted.setattr("nnsight_mmflow.patterns.flow.flow.measure", lambda *given: 1 / 0)
        job = mmf.flow(nano, prompts, blocking=False, folder=tmp_path, **SETTINGS)
        with pytest.raises(ZeroDivisionError):
            job.result(timeout=60)
        assert job.status == {"FAILED": 3}
    assert mmf.flow(nano, prompts, folder=tmp_path, **SETTINGS).to_frame().equals(whole)


def test_what_is_wrong_is_told_at_once_and_not_by_the_job(nano, prompts, tmp_path):
    mmf.flow(nano, prompts[:1], folder=tmp_path / "other", **{**SETTINGS, "window": 5})
    (tmp_path / "file").write_text("mine")
    with Journal(tmp_path / "held", {}):
        for wrong, text in (
            ({"folder": tmp_path / "other"}, "a run with other settings"),
            ({"folder": tmp_path / "held"}, "this very process"),
            ({"folder": tmp_path / "file"}, "there is a file of that name"),
            ({"edges": ["question->image"]}, "are source and target swapped"),
            ({"workers": 2, "remote": True}, "exclude each other"),
        ):
            with pytest.raises(mmf.MMFlowError, match=text):
                mmf.flow(nano, prompts, blocking=False, **{**SETTINGS, **wrong})


def test_a_job_still_running_is_waited_for_later(nano, prompts, whole, monkeypatch):
    go = Event()
    monkeypatch.setattr(
        "nnsight_mmflow.patterns.flow.flow.measure", lambda *given: measure(*given) if go.wait(60) else None
    )
    job = mmf.flow(nano, prompts, blocking=False, **SETTINGS)
    with pytest.raises(mmf.MMFlowError, match=r"0 of 3 finished, RUNNING\): call result\(\) again later"):
        job.result(timeout=0.1)
    go.set()
    assert job.result(timeout=60).to_frame().equals(whole)
    assert repr(job) == "Job(flow: 3 of 3 finished, FETCHED)"
