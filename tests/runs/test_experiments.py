"""Every experiment has a row in kit/experiments.py, takes what all take, and keeps its promises: plain/experiments.py.

On a server: remote/inside.py, remote/beside.py.
"""

import importlib
import inspect
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from kit.experiments import COMMON, ROWS, prompts_of

import nnsight_mmflow as mmf

HERE = Path(__file__).parents[1]
FUNCTIONS = sorted({row.function for row in ROWS})
NO_EXPERIMENTS = {"load", "adapt", "check", "explore", "probe"}  # a probe runs no model


def test_every_exported_experiment_has_a_row():
    public = {name for name in mmf.__all__ if inspect.isfunction(getattr(mmf, name))}
    assert public - NO_EXPERIMENTS == set(FUNCTIONS)
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_takes_what_all_experiments_take(name):
    taken = inspect.signature(getattr(mmf, name)).parameters
    defaults = {each: taken[each].default for each in COMMON if each in taken}
    assert list(defaults) == list(COMMON)
    assert {each: defaults[each] for each in COMMON[:-1]} == {
        "folder": None,
        "remote": None,
        "workers": 0,
        "blocking": True,
        "progress": True,
    }
    assert all(taken[each].kind is inspect.Parameter.KEYWORD_ONLY for each in COMMON)
    assert not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values()), "a typo must be an error"
    result = next(row.result for row in ROWS if row.function == name)
    assert inspect.signature(getattr(mmf, name)).return_annotation == result


@pytest.mark.parametrize("name", sorted({row.function for row in ROWS if row.gradients}))
def test_it_is_refused_where_gradients_do_not_reach(name):
    source = inspect.getsource(importlib.import_module(getattr(mmf, name).__module__))
    assert "needs_gradients(graph" in source


JUDGED = [row for row in ROWS if "only_correct" in inspect.signature(getattr(mmf, row.function)).parameters]


def test_one_rule_for_prompts_without_an_answer():
    nano = mmf.load("nano")
    one, two = prompts_of(nano)
    silent, sent = replace(two, answer=None), []
    layer = nano.adapter.roles()["layers"][0].register_forward_pre_hook(lambda *_: sent.append(1))
    for row in JUDGED:
        settings = {name: value for name, value in row.settings.items() if name != "only_correct"}
        several = isinstance(row.given(nano, one, two)[0], list)
        given = row.given(nano, *((one, silent) if several else (silent, one)))
        with pytest.raises(mmf.MMFlowError) as caught:
            getattr(mmf, row.function)(nano, *given, **settings, progress=False, report=str)
        told = str(caught.value)
        count = "1 of 2 prompts have no answer (the first: number 1" if several else "1 of 1 prompts have no answer"
        assert told.startswith(f"{row.function}: {count}"), told
        assert "Give answer= to graph.prompt" in told
        assert (f"or only_correct=False to {row.function}." in told) == (row.function != "lens")
    with pytest.raises(mmf.MMFlowError, match="it is the answer that a lens follows, whatever only_correct says"):
        mmf.lens(nano, silent, only_correct=False)
    for run in (
        lambda: mmf.saliency(nano, silent),
        lambda: mmf.prune_report(nano, silent, [mmf.FastV(k=2)]),
        lambda: mmf.edit_report(nano, mmf.nano.edits(nano, 1), [silent], 4),
    ):
        with pytest.raises(mmf.MMFlowError, match=r"1 of 1 (other )?prompts have no answer \(the first: number 0"):
            run()
    assert not sent, "a forward before the refusal"
    layer.remove()
    for run in (mmf.flow, mmf.skip_flow):
        rows = {"edges": ["image->last"]} if run is mmf.flow else {"spans": ["image"]}
        frame = run(nano, silent, **rows, only_correct=False, progress=False, report=str).to_frame()
        assert not frame["correct"].any(), "nobody knows whether it is right"


@pytest.mark.slow
def test_the_rows_pass():
    command = [sys.executable, "-m", "pytest", str(HERE / "plain" / "experiments.py"), "-q", "-n0", "-o", "addopts="]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider", "-m", "not gpu"]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
