"""Workers give what one process gives, bit for bit; a killed one loses nothing; errors name the prompt."""

import json
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kit.dying import ALWAYS, ONCE, Dying
from kit.no_process import NoProcess
from kit.tiny import picture

import nnsight_mmflow as mmf
from nnsight_mmflow.command_line import main
from nnsight_mmflow.workers import crew as _workers
from nnsight_mmflow.workers.crew import Crew, Worker, facts
from nnsight_mmflow.workers.ray import cluster, share

QUIET = {"progress": False, "report": lambda text: None}
FILES = ("flow.parquet", "flow.json", "settings.json")


@pytest.fixture(scope="module")
def outline():
    """Nano without its weights, as a driver needs it."""
    return mmf.load("nano", dispatch=False)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]


def assert_same(folder, other):
    for name in FILES:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    ours, theirs = ({entry["id"]: entry for entry in lines_of(one)} for one in (folder, other))
    assert ours == theirs


@pytest.fixture
def dying(monkeypatch):
    """Workers that may kill themselves, importable where Ray starts them."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setattr(_workers, "Worker", Dying)


@pytest.mark.slow
def test_the_command_on_two_workers_writes_what_one_process_writes(tmp_path, capsys):
    import ray

    asked = ("flow", "--limit", "6", "--window", "3", "--control", "1", "--workers", "2")
    assert main([*asked, "--out", str(tmp_path / "two")]) == 0
    told = capsys.readouterr().err
    assert "6 prompt(s) to run" in told
    assert "2 worker(s) by Ray, each loads nano (on CPU)." in told
    assert not ray.is_initialized(), "Ray was started by the command, so the command stops it"
    graph = mmf.load("nano")
    prompts = mmf.nano.prompts(graph, 6)
    one = mmf.flow(graph, prompts, window=3, controls=1, folder=tmp_path / "one", **QUIET).to_frame()
    assert_same(tmp_path / "two", tmp_path / "one")
    assert mmf.results.FlowResult.load(tmp_path / "two").to_frame().equals(one)
    told = []
    settings = {"window": 3, "controls": 1, "workers": 2, "progress": False, "report": told.append}
    assert mmf.flow(graph, prompts, folder=tmp_path / "one", **settings).to_frame().equals(one)
    assert "0 prompt(s) to run, 6 done already" in told[0]
    assert len(told) == 1, "nothing to do starts no worker"


@pytest.mark.slow
@pytest.mark.usefixtures("dying")
def test_killed_workers_lose_nothing_and_a_run_goes_on_where_it_was(tmp_path, outline):
    done, once, always, *rest = mmf.nano.prompts(outline, 5)
    prompts = [done, replace(always, key=ALWAYS), replace(once, key=f"{ONCE}{tmp_path / 'died'}"), *rest]
    settings = {"edges": ["image->last", "question->last"], "window": 3, "only_correct": False, "progress": False}
    graph = mmf.load("nano")
    whole = mmf.flow(graph, prompts, folder=tmp_path / "one", **settings, report=str).to_frame()
    mmf.flow(graph, prompts[:1], folder=tmp_path / "two", **settings, report=str)
    before = (tmp_path / "two" / "prompts.jsonl").read_bytes()
    told = []
    with cluster(2, None) as ray:
        with pytest.raises(mmf.MMFlowError, match=f"prompt '{ALWAYS}' lost its worker 3 times"):
            mmf.flow(outline, prompts, folder=tmp_path / "two", workers=2, **settings, report=told.append)
        assert ray.is_initialized(), "whoever connected to Ray disconnects from it"
    assert told[0].startswith("2 worker(s) by Ray"), "without weights here, a worker says whose numbers the folder has"
    assert "4 prompt(s) to run, 1 done already" in told[1]
    deaths = [text.partition(":")[0] for text in told if "its worker died; another takes over" in text]
    assert sorted(deaths) == sorted([f"prompt {prompts[2].key!r}", *2 * [f"prompt {ALWAYS!r}"]])
    after = (tmp_path / "two" / "prompts.jsonl").read_bytes()
    assert after.startswith(before)
    kept = [entry["id"].partition(":")[0] for entry in lines_of(tmp_path / "two")]
    assert len(kept) == 4, "all but the deadly one ran, once each"
    assert ALWAYS not in kept
    # One process goes on where the workers stopped.
    result = mmf.flow(graph, prompts, folder=tmp_path / "two", **settings, report=told.append)
    assert "1 prompt(s) to run, 4 done already" in told[-1]
    assert result.to_frame().equals(whole)
    assert_same(tmp_path / "two", tmp_path / "one")


@pytest.fixture
def crew_of(monkeypatch):
    def make(ray, workers=2, expected=None, **how):
        monkeypatch.setattr(_workers, "cluster", contextmanager(lambda workers, address: iter([ray])))
        return Crew(workers, {"name": "nano", **how}, expected or {}, None, ray.told.append)

    return make


def length(graph, number):
    if number == 3:
        raise KeyError("planted")
    if number == 4:
        raise mmf.NoEffectError("it would change nothing.")
    return {"number": number, "layers": graph.n_layers}


def test_a_crew_does_every_job_once_and_ends_its_workers(crew_of):
    ray = NoProcess()
    with crew_of(ray) as crew:
        found = list(crew.results(length, [(0,), (1,), (2,)], list("abc")))
        assert sorted(one["number"] for one in found) == [0, 1, 2]
        assert len(ray.made) == 2
        assert ray.needs == {"num_cpus": 1, "num_gpus": 0, "scheduling_strategy": "SPREAD"}
        assert len(list(crew.results(length, [(7,)], ["d"]))) == 1
        assert len(ray.made) == 2, "the same workers go on"
    assert ray.killed == 2


def test_a_failure_names_its_prompt_with_the_traceback_there(crew_of):
    with (
        crew_of(NoProcess()) as crew,
        pytest.raises(mmf.MMFlowError, match="'q7' failed on a worker: KeyError") as told,
    ):
        list(crew.results(length, [(3,)], ["prompt 'q7'"]))
    assert "Traceback (most recent call last)" in str(told.value)
    assert 'raise KeyError("planted")' in str(told.value)
    refused = "prompt 'q8', on a worker: it would change nothing"
    with crew_of(NoProcess()) as crew, pytest.raises(mmf.NoEffectError, match=refused):
        list(crew.results(length, [(4,)], ["prompt 'q8'"]))


def test_a_model_that_cannot_be_loaded_is_told_from_one_that_kills_its_process(crew_of):
    with (
        crew_of(NoProcess(), name="no/such") as crew,
        pytest.raises(mmf.ModelError, match="loading no/such, on a worker"),
    ):
        list(crew.results(length, [(0,)], ["a"]))
    ray = NoProcess(dies=lambda call, given: call == "load")
    with crew_of(ray) as crew, pytest.raises(mmf.MMFlowError, match="loading nano lost its worker 3 times"):
        list(crew.results(length, [(0,)], ["a"]))


def test_jobs_after_a_deadly_one_are_done_before_it_is_given_up(crew_of):
    ray, found = NoProcess(dies=lambda call, given: call == "do" and given[1] == (0,)), []
    with crew_of(ray, workers=1) as crew, pytest.raises(mmf.MMFlowError, match="^a lost its worker 3 times"):
        found.extend(one["number"] for one in crew.results(length, [(0,), (1,), (2,)], list("abc")))
    assert found == [1, 2]
    assert len(ray.made) == 3


def test_a_worker_with_another_model_is_refused(crew_of):
    expected = facts(mmf.load("nano"))
    assert expected["weights"]
    with crew_of(NoProcess(), expected=expected) as crew:
        assert len(list(crew.results(length, [(0,)], ["a"]))) == 1
    edited = mmf.load("nano")
    edited.mlp_out(4)._module.weight.data.mul_(2)
    with crew_of(NoProcess(), expected=facts(edited)) as crew, pytest.raises(mmf.MMFlowError, match="weights is '"):
        list(crew.results(length, [(0,)], ["a"]))


def test_gpus_are_divided_by_what_fits_and_left_alone_on_cpu(crew_of):
    assert [share(*given) for given in (([8], 2), ([3], 2), ([1, 1, 1, 1], 2), ([4, 2], 2))] == [4, 1, 1, 2]
    assert [share(*given) for given in (([2], 3), ([1], 6), ([], 2), ([0], 1))] == [0.5, 0.1666, 0, 0]
    ray = NoProcess(gpus=1)
    with crew_of(ray) as crew:
        list(crew.results(length, [(0,)], ["a"]))
    assert ray.needs["num_gpus"] == 0
    assert "1 GPU(s) stay unused, device_map='cuda' uses them" in ray.told[0]
    ray = NoProcess(gpus=1)
    with crew_of(ray, device_map="cuda") as crew:
        crew._start()
    assert crew.needs["num_gpus"] == 0.5
    with crew_of(NoProcess(), device_map="cuda") as crew, pytest.raises(mmf.MMFlowError, match="has no GPU"):
        list(crew.results(length, [(0,)], ["a"]))


class Backwards(NoProcess):
    """Its three workers load; then the last job that was handed out is the first that is done."""

    waits = 0

    def wait(self, calls, num_returns, timeout):
        self.waits += 1
        chosen = calls[0 if self.waits <= 3 else -1]
        return [chosen], [call for call in calls if call is not chosen]


def test_only_what_is_left_is_handed_out_and_comes_back_in_any_order(tmp_path, monkeypatch):
    graph, handed = mmf.load("nano"), []
    prompts = [replace(prompt, key=f"q{i}") for i, prompt in enumerate(mmf.nano.prompts(graph, 4))]
    settings = {"edges": ["image->last"], "window": 3, "only_correct": False, **QUIET}
    mmf.flow(graph, prompts[:1], folder=tmp_path, **settings)

    class Noting(Worker):
        def do(self, task, given):
            handed.extend(prompt.key for _, (prompt, *_) in given[2])
            return super().do(task, given)

    monkeypatch.setattr(_workers, "Worker", Noting)
    ray = Backwards(Noting)
    monkeypatch.setattr(_workers, "cluster", contextmanager(lambda workers, address: iter([ray])))
    result = mmf.flow(graph, prompts, workers=mmf.Workers(3), folder=tmp_path, **settings).to_frame()
    assert handed == ["q3", "q2", "q1"]
    assert [entry["id"][:2] for entry in lines_of(tmp_path)] == ["q0", *handed]
    assert list(result["prompt"].unique()) == ["q0", "q1", "q2", "q3"]
    assert result.equals(mmf.flow(graph, prompts, **settings).to_frame())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"workers": -1}, "workers=-1: a whole number of at least 0"),
        ({"workers": 2, "remote": True}, "remote= and workers exclude each other"),
        ({"workers": 2, "window": 0}, "window=(0,) must be"),
        ({"workers": 2, "edges": ["question->image"]}, "swapped"),
        ({"workers": 0}, "was loaded without weights"),
    ],
)
@pytest.mark.parametrize("blocking", [True, False])
def test_wrong_settings_are_refused_before_ray_starts(outline, settings, text, blocking):
    with pytest.raises(mmf.MMFlowError, match=re.escape(text)):
        mmf.flow(outline, mmf.nano.prompts(outline, 1), **settings, blocking=blocking, report=str)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"count": 0}, "workers=0: at least 1 is needed"),
        ({"count": 2, "load": {"dtype": "float16"}}, "load=['dtype'] lacks 'name'"),
        ({"count": 2, "address": ""}, "address is empty"),
    ],
)
def test_workers_that_cannot_be_are_refused_when_they_are_named(settings, text):
    with pytest.raises(mmf.MMFlowError, match=re.escape(text)):
        mmf.Workers(**settings)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_graph_that_no_name_stands_for_is_refused(graph, blocking):
    asked = graph.prompt(picture(0), "is the circle red or blue ?")
    with pytest.raises(mmf.MMFlowError, match=re.escape("was not made by mmf.load")):
        mmf.flow(graph, asked, only_correct=False, workers=2, blocking=blocking, **QUIET)


def test_without_ray_it_says_what_to_install(outline, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(mmf.MMFlowError, match=re.escape('pip install -c constraints.txt -e ".[ray]"')):
        mmf.flow(outline, mmf.nano.prompts(outline, 1), only_correct=False, workers=2, **QUIET)


def test_an_address_where_nothing_answers(outline):
    with pytest.raises(mmf.MMFlowError, match="no Ray cluster answers at '127.0.0.1:1'"), cluster(1, "127.0.0.1:1"):
        pass


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--workers", "2", "--remote"), "--workers and --remote exclude each other"),
        (("--ray-address", "auto"), "--ray-address says nothing without --workers"),
    ],
)
def test_the_command_refuses_what_does_not_go_together(arguments, text, capsys, tmp_path):
    assert main(["flow", *arguments, "--limit", "1", "--out", str(tmp_path)]) == 2
    assert text in capsys.readouterr().err


def test_ray_can_be_imported_after_nnsight_and_is_not_imported_unasked():
    """Nnsight mounts `.save` on every object, which breaks some libraries that define classes afterwards."""
    code = (
        "import sys, nnsight, nnsight_mmflow as mmf; mmf.flow, mmf.Workers; assert 'ray' not in sys.modules;"
        " import ray; from ray.actor import ActorClass; print(ray.__version__)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr


def test_workers_have_the_drivers_threads():
    torch.set_num_threads(1)
    worker = Worker()
    assert worker.load({"name": "nano"}, 1).value["n_layers"] == 10
    assert torch.get_num_threads() == 1
