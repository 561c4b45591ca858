"""What every experiment promises, for each row of kit/experiments.py, as a user's process is: unchecked types.

A job is no result, so the shape checks of other tests would refuse `blocking=False`.
"""

import asyncio
import re
from contextlib import contextmanager, nullcontext

import pandas as pd
import pytest
from kit.experiments import ROWS, prompts_of
from matplotlib.figure import Figure

import nnsight_mmflow as mmf
from nnsight_mmflow.runs import runner
from nnsight_mmflow.runs.journal import Journal
from nnsight_mmflow.workers import run as crews

UNTOLD = {"progress": False, "report": str}


class PlantedError(Exception):
    """What stops a run, or must not happen in it."""


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def asked(nano):
    return prompts_of(nano)


@contextmanager
def at_each_forward(graph, act):
    """Does something whenever the first decoder layer runs."""

    def before(*_):  # what a hook returns would stand for the layer's input
        act()

    handle = graph.adapter.roles()["layers"][0].register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def measured():
    """By row, what one process measures: made once, for all that is compared with it."""
    return {}


def refuse(*_, **__):
    raise PlantedError("measured, where nothing is left to measure")


def assert_equal(found, wanted, **tolerance):
    pd.testing.assert_frame_equal(found.to_frame(), wanted.to_frame(), **(tolerance or {"check_exact": True}))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_it_tells_its_cost_goes_on_and_shows_itself(nano, asked, measured, row, tmp_path, monkeypatch):
    given, events = row.given(nano, *asked), []
    with at_each_forward(nano, lambda: events.append(None)):
        plain = measured[row.name] = row.run(nano, given, progress=False, report=events.append)
    assert isinstance(plain, getattr(mmf.results, row.result))
    assert None in events, "no forward: nothing was measured"
    told = events[: events.index(None)]
    assert told, "measured before the cost was told"
    cost = re.fullmatch(r".+: (\d+) \w+\(s\) to run; (.+)", told[-1], re.DOTALL)
    assert cost, told
    assert re.search(r"\d|a forward|one forward", cost[2]), "no cost"
    left = int(cost[1])

    with monkeypatch.context() as planted:
        kept = Journal.add

        def stops(journal, *entries):
            kept(journal, *entries)
            if journal.path is not None:  # not that of an experiment within another
                raise PlantedError("once the first is kept")

        planted.setattr(Journal, "add", stops)
        with pytest.raises(PlantedError):
            row.run(nano, given, folder=tmp_path, **UNTOLD)
    before = (tmp_path / "prompts.jsonl").read_text().splitlines()
    job = row.run(nano, given, folder=tmp_path, blocking=False, **UNTOLD)
    assert isinstance(job, mmf.Job)
    assert sum(job.status.values()) >= left
    finished = asyncio.run(job.wait(timeout=60))
    assert job.result(timeout=1) is finished
    assert set(job.status) == {"FETCHED"}
    assert_equal(finished, plain)
    after = (tmp_path / "prompts.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(set(after)) == len(after) == left

    with monkeypatch.context() as planted, at_each_forward(nano, str if row.finishes else refuse):
        planted.setattr(runner, "entries_of", refuse)
        events.clear()
        again = row.run(nano, given, folder=tmp_path, progress=False, report=events.append)
    assert_equal(again, plain)
    assert re.search(rf": 0 \w+\(s\) to run, {job.tasks} done already", events[0])
    loaded = type(plain).load(tmp_path)
    assert type(loaded) is type(plain)
    assert_equal(loaded, plain)
    assert loaded.summary() == plain.summary()
    plain.save(tmp_path / "elsewhere")
    assert_equal(type(plain).load(tmp_path / "elsewhere"), plain)

    assert repr(plain).startswith(f"{row.result}(")
    assert len(repr(plain)) < 200
    assert str(plain) == plain.summary()
    figure = plain.plot()
    assert isinstance(figure, Figure)
    assert any(axes.has_data() for axes in figure.axes)
    html = plain._repr_html_()
    assert "<table" in html
    assert "data:image/png;base64," in html or "<svg" in html
    frame = plain.to_frame()
    frame.iloc[:, 0] = frame.iloc[::-1, 0].to_numpy()
    assert_equal(plain, again)  # a copy was changed


@pytest.mark.slow
def test_two_workers_measure_what_one_process_does(nano, asked, measured, monkeypatch):
    """Ray starts once for all rows, and its workers load the model once; workers/test_workers.py starts them anew."""
    wrong = {}
    with crews.crew_of(nano, mmf.Workers(2), str) as crew:
        monkeypatch.setattr(crews, "crew_of", lambda graph, workers, report: nullcontext(crew))
        for row in ROWS:
            given = row.given(nano, *asked)
            plain = measured.get(row.name) or row.run(nano, given, **UNTOLD)
            with monkeypatch.context() as planted, at_each_forward(nano, str if row.finishes else refuse):
                planted.setattr(runner, "_measured_here", refuse)
                try:
                    assert_equal(row.run(nano, given, workers=2, **UNTOLD), plain, rtol=1e-6, atol=1e-6)
                except Exception as error:  # all that fail are told together
                    wrong[row.name] = f"{type(error).__name__}: {error}"[:300]
    assert not wrong
