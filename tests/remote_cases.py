"""Runs on a server: a process of its own over a real socket, that cannot import nnsight_mmflow; equal to runs here."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import nnsight
import pytest
import torch

import nnsight_mmflow as mmf
from nnsight_mmflow import _remote
from nnsight_mmflow.nano import FOLDER

nnsight.register(__name__)  # a user's own module lies on the working path and travels by itself; pytest's does not
KEY = "secret-of-the-tests"  # as in ndif_server.py
QUIET = {"progress": False, "report": lambda text: None}


class Server:
    """The stand-in, started on a free port."""

    def __init__(self, folder):
        with contextlib.closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.host, self.process = folder, f"http://127.0.0.1:{self.port}", None

    def start(self):
        script = Path(__file__).with_name("ndif_server.py")
        command = [sys.executable, str(script), str(self.port), str(FOLDER)]
        with open(self.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.host}/ping").text == "pong":
                    return self
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.1)
        raise AssertionError("the server did not start")

    def seen(self):
        return httpx.get(f"{self.host}/test/seen").json()

    def set(self, name, value):
        httpx.get(f"{self.host}/test/set/{name}/{value}")

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("ndif")).start()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def client(server, monkeypatch):
    """nnsight's client, pointed at the server; a folder stands for a Hugging Face id."""
    from nnsight.modeling import huggingface
    from nnsight.schema.config import CONFIG

    monkeypatch.setitem(huggingface._ID_CACHE, str(FOLDER), str(FOLDER))
    monkeypatch.setattr(CONFIG.API, "HOST", server.host)
    monkeypatch.setattr(CONFIG.API, "APIKEY", KEY)
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    monkeypatch.setattr(_remote, "_READY", set())


@pytest.fixture(scope="module")
def here():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def there():
    return mmf.load(str(FOLDER), remote=True).at(True, trusted=True)


@pytest.fixture
def beside(server):
    """The graph of an ordinary key: its blocks run in a process beside the model's, here emulated by copies."""
    server.set("split", 1)
    yield mmf.load(str(FOLDER), remote=True)
    server.set("split", 0)


def no_weights(graph):
    return all(parameter.is_meta for parameter in graph.adapter.model.parameters())


def test_the_server_does_not_have_the_package(server):
    assert httpx.get(f"{server.host}/test/imports/nnsight_mmflow").text == "No module named 'nnsight_mmflow'"
    assert httpx.get(f"{server.host}/test/imports/jaxtyping").text == "No module named 'jaxtyping'"
    assert httpx.get(f"{server.host}/test/imports/einops").text == "imported"


def test_spans_are_made_without_weights(here, there):
    sample = mmf.nano.samples(1)[0]
    one, other = (graph.prompt(sample.image, sample.question) for graph in (here, there))
    assert {name: list(one.spans[name]) for name in one.spans} == {name: list(other.spans[name]) for name in one.spans}
    assert no_weights(there)


PATTERNS = {
    "none": lambda prompts: (),
    "knockout": lambda prompts: (mmf.Knockout(source="image", target="last", layers=range(3, 6)),),
    "heads": lambda prompts: (mmf.Knockout(source="image", target="question", layers=[4], heads=[1]),),
    "patch": lambda prompts: (mmf.Patch(at="image", site="mlp", layers=[1, 2], value=mmf.zeros()),),
    "from_run": lambda prompts: (mmf.Patch(at="image", layers=[3], value=mmf.from_run(prompts[1])),),
    "embed": lambda prompts: (mmf.Patch(at="image", site="embed", value=mmf.noise(0.5, seed=1)),),
    "skip": lambda prompts: (mmf.Skip(layers=[2]),),
    "skip_image": lambda prompts: (mmf.Skip(layers=[2], at="image"),),
    "zeroed": lambda prompts: (mmf.Zeroed(source="image", target="question", layers=[1]),),
    "himap": lambda prompts: (mmf.HiMAP(k1=2, k2=4),),
    "mask": lambda prompts: (mmf.FastV(k=4, mode="mask"),),
    "zip": lambda prompts: (mmf.VisionZip(dominant=12, contextual=4),),
    "recycling": lambda prompts: (mmf.SparseVLM(layers=(2, 5), keep=(0.5, 0.25)),),
    "waiting": lambda prompts: (mmf.VisiPruner(first_layer=2, fires_below=0.9999, keep_above=0.0, calm_above=-1.0),),
    "mine": lambda prompts: (mmf.Prune(own=[mmf.Stage(layer=2, keep=0.5, rank=longest, reads="")]),),
    "together": lambda prompts: (mmf.Skip(layers=[7]), mmf.Knockout(source="image", target="last", layers=[4])),
}


def longest(seen):
    """A method of one's own travels too."""
    return seen.hidden[seen.image].norm(dim=-1)


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_on_the_server_equals_it_here(here, there, name):
    prompts = mmf.nano.prompts(here, 2)
    patterns, found = PATTERNS[name](prompts), []
    for graph in (here, there):
        with torch.no_grad(), graph.trace(prompts[0], *patterns, use_cache=False):
            logits = graph.unembed.output[0, -1].save()
        found.append(logits.detach())
    assert (found[0] - found[1]).abs().max() <= 1e-6
    assert no_weights(there)


@pytest.mark.parametrize("name", ["none", "knockout", "skip", "himap", "mask", "zip", "recycling"])
def test_a_generation_on_the_server_equals_it_here(here, there, name):
    prompts = mmf.nano.prompts(here, 2)
    patterns, found = PATTERNS[name](prompts), []
    for graph in (here, there):
        with graph.generate(prompts[0], *patterns, max_new_tokens=4, do_sample=False) as tracer:
            ids = tracer.result.save()
        found.append(ids)
    assert found[0].tolist() == found[1].tolist()


def test_a_batch_and_one_remote_trace_of_a_local_graph(here):
    """`remote=` of a single trace; the graph itself stays where it is."""
    batch = here.batch(mmf.nano.prompts(here, 3))
    blocked = mmf.Knockout(source="image", target="last", layers=range(3, 6))
    found = []
    for remote in (False, True):
        with torch.no_grad(), here.trace(batch, blocked, use_cache=False, remote=remote):
            logits = here.unembed.output[:, -1].save()
        found.append(logits.detach())
    assert (found[0] - found[1]).abs().max() <= 1e-6
    assert here.remote is False


EXPERIMENTS = {
    "flow": lambda graph, prompts: mmf.flow(graph, prompts, window=(1, 3), **QUIET),
    "flow_forwards": lambda graph, prompts: mmf.flow(graph, prompts[:1], window=9, engine="forward", **QUIET),
    "lens": lambda graph, prompts: mmf.lens(graph, prompts, progress=False),
    "skip_flow": lambda graph, prompts: mmf.skip_flow(graph, prompts[:1], ["image"], **QUIET),
    "saliency": lambda graph, prompts: mmf.saliency(graph, prompts, progress=False),
    "released": lambda graph, prompts: mmf.saliency(graph, prompts[:1], mode="released", progress=False),
    "disruption": lambda graph, prompts: mmf.disruption(graph, prompts[:1], ["img2txt"], **QUIET),
    "contributions": lambda graph, prompts: mmf.contributions(
        graph, prompts, source="image", target="last", progress=False
    ),
    "knockout_by_patch": lambda graph, prompts: mmf.knockout_by_patch(graph, prompts[0], size=2, progress=False),
    "lens_by_patch": lambda graph, prompts: mmf.lens_by_patch(graph, prompts[0]),
    "attention": lambda graph, prompts: mmf.attention(graph, prompts[0], layers=[2, 5], targets="question"),
    "word_overlap": lambda graph, prompts: mmf.word_overlap(graph, prompts[:1], at="text('color')", progress=False),
    "prune_report": lambda graph, prompts: mmf.prune_report(graph, prompts, [mmf.FastV(k=5)], timed=0, **QUIET),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_on_the_server_equals_it_here(here, there, name):
    prompts = mmf.nano.prompts(here, 2)
    one, other = (EXPERIMENTS[name](graph, prompts).to_frame() for graph in (here, there))
    assert list(one.columns) == list(other.columns)
    numbers = one.select_dtypes("number").columns
    assert len(numbers)
    assert float((one[numbers] - other[numbers]).abs().max().max()) <= 1e-6
    rest = [column for column in one.columns if column not in numbers and not isinstance(one[column].iloc[0], list)]
    assert one[rest].equals(other[rest])
    assert no_weights(there)


def test_attribution_on_the_server_equals_it_here(here, there):
    pairs = mmf.nano.trace_pairs(here, 1, "flag")
    one, other = (mmf.attribution(graph, *pairs, progress=False).to_frame() for graph in (here, there))
    numbers = one.select_dtypes("number").columns
    assert float((one[numbers] - other[numbers]).abs().max().max()) <= 1e-6


@pytest.mark.parametrize("way", ["flag", "phrase", "noise"])
@pytest.mark.parametrize("engine", ["rows", "forward"])
def test_causal_tracing_on_the_server_equals_it_here(here, there, way, engine):
    prompts, corrupt = mmf.nano.trace_pairs(here, 1, "flag" if way == "noise" else way)
    if way == "noise":
        corrupt = [mmf.corruption.noisy_image(prompts[0], scale=3.0, seed=1)]
    spans = ["question", "last"]
    kwargs = {
        "sites": ("mlp", "resid"),
        "engine": engine,
        "half_width": 1,
        "max_corrupt": 1.0,
        "control": False,
        **QUIET,
    }
    one, other = (mmf.causal_trace(graph, prompts, corrupt, spans, **kwargs).to_frame() for graph in (here, there))
    numbers = one.select_dtypes("number").columns
    assert len(one)
    assert float((one[numbers] - other[numbers]).abs().max().max()) <= 1e-6
    assert no_weights(there)


@pytest.mark.parametrize("by_url", [0, 1])
def test_a_sweep_is_one_request_and_numbers_come_back(here, there, server, by_url):
    """All six edges over all layers: one upload per prompt, and well under 100 kB down; inline and by URL."""
    prompt = mmf.nano.prompts(here, 1)[0]
    before = server.seen()
    server.set("by_url", by_url)
    mmf.flow(there, prompt, window=9, **QUIET)
    server.set("by_url", 0)
    after = server.seen()
    assert after["requests"] - before["requests"] == 1
    assert after["bytes_down"] - before["bytes_down"] < 100_000
    assert after["bytes_up"] - before["bytes_up"] < 200_000


def test_cells_share_a_request(here, there, server):
    prompt, before = mmf.nano.prompts(here, 1)[0], server.seen()["requests"]
    mmf.skip_flow(there, prompt, ["image"], **QUIET)
    assert server.seen()["requests"] - before == 2  # the answer, and all layers
    mmf.disruption(there, prompt, **QUIET)
    assert server.seen()["requests"] - before == 2 + 4  # the plain model, and each of three ways


def test_a_wrong_answer_is_told_apart(here, there):
    """The rows do not run for it, and the result says that it was wrong."""
    from dataclasses import replace

    prompts = mmf.nano.prompts(here, 2)
    prompts = [prompts[0], replace(prompts[1], answer="heron", options=None)]
    one, other = (mmf.flow(graph, prompts, window=3, **QUIET) for graph in (here, there))
    assert one.to_frame().equals(other.to_frame())
    assert one.header["n_correct"] == other.header["n_correct"] if "n_correct" in one.header else True


CLIENT = """
import sys
import nnsight_mmflow as mmf
from nnsight.modeling import huggingface
folder, kind = sys.argv[1:]
huggingface._ID_CACHE[folder] = folder
graph = mmf.load(folder, remote=True)
if __name__ == "__main__":
    result = mmf.flow(graph, mmf.nano.prompts(graph, 3, kind), window=3, progress=False, report=str)
    print(result.to_frame()["log_probability_change"].sum())
"""


def test_two_clients_at_once(here, server, tmp_path):
    (tmp_path / "client.py").write_text(CLIENT)
    environment = {**os.environ, "NDIF_HOST": server.host, "NDIF_API_KEY": KEY}
    kinds = ("QueryAttr", "ChooseRel")
    running = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "client.py"), str(FOLDER), kind], stdout=subprocess.PIPE, env=environment
        )
        for kind in kinds
    ]
    shown = [one.communicate(timeout=120)[0].decode() for one in running]
    for kind, text in zip(kinds, shown, strict=True):
        wanted = mmf.flow(here, mmf.nano.prompts(here, 3, kind), window=3, **QUIET).to_frame()
        assert abs(float(text.split()[-1]) - wanted["log_probability_change"].sum()) < 1e-6


def test_a_server_that_dies_loses_nothing(here, there, tmp_path_factory, monkeypatch):
    from nnsight.schema.config import CONFIG

    own = Server(tmp_path_factory.mktemp("dying")).start()
    monkeypatch.setattr(CONFIG.API, "HOST", own.host)
    prompts, folder = mmf.nano.prompts(here, 3), tmp_path_factory.mktemp("results")
    own.set("die_before", 2)
    with pytest.raises(
        mmf.RemoteFailure, match="connection to the server broke .* with folder= it goes on where it was"
    ):
        mmf.flow(there, prompts, window=3, folder=folder, **QUIET)
    own.process.wait()
    own.start()
    try:
        result = mmf.flow(there, prompts, window=3, folder=folder, **QUIET)
        assert own.seen()["requests"] == 1  # two were finished
    finally:
        own.stop()
    assert result.to_frame().equals(mmf.flow(here, prompts, window=3, **QUIET).to_frame())


# Ordinary keys: what is read is a copy, and is written back.


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_beside_the_model_equals_it_here(here, beside, name):
    prompts = mmf.nano.prompts(here, 2)
    patterns, found = PATTERNS[name](prompts), []
    for graph in (here, beside):
        with torch.no_grad(), graph.trace(prompts[0], *patterns, use_cache=False):
            logits = graph.unembed.output[0, -1].save()
        found.append(logits.detach())
    assert (found[0] - found[1]).abs().max() <= 1e-6


@pytest.mark.parametrize("name", ["none", "patch", "skip"])
def test_a_generation_beside_the_model_equals_it_here(here, beside, name):
    prompts, found = mmf.nano.prompts(here, 2), []
    kwargs = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    for graph in (here, beside):
        with graph.generate(prompts[0], *PATTERNS[name](prompts), **kwargs) as tracer:
            ids = tracer.result.save()
        found.append(ids.tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["knockout", "embed", "skip_image", "himap", "mask", "zip", "together"])
def test_a_generation_that_would_be_wrong_beside_the_model_is_refused(here, beside, server, name):
    """And it would be wrong: the planted run, as a trusted key's on the server that copies, gives other tokens."""
    prompts = mmf.nano.prompts(here, 2)
    patterns = PATTERNS[name](prompts)
    with pytest.raises(mmf.ModelError, match="would be wrong without a sign"):
        beside.generate(prompts[0], *patterns, max_new_tokens=4)
    if name != "himap":
        return
    kwargs = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    kwargs |= {"output_logits": True, "return_dict_in_generate": True}
    found = []
    for graph in (here, beside.at(True, trusted=True)):
        with torch.no_grad(), graph.generate(prompts[0], *patterns, **kwargs) as tracer:
            logits = torch.stack(tracer.result.logits).save()
        found.append(logits.detach())
    assert (found[0][0] - found[1][0]).abs().max() <= 1e-5
    assert (found[0][1] - found[1][1]).abs().nan_to_num(0).max() > 1


@pytest.mark.parametrize(
    "name", ["flow", "lens", "skip_flow", "disruption", "contributions", "knockout_by_patch", "lens_by_patch"]
)
def test_an_experiment_beside_the_model_equals_it_here(here, beside, name):
    prompts = mmf.nano.prompts(here, 1)
    one, other = (EXPERIMENTS[name](graph, prompts).to_frame() for graph in (here, beside))
    numbers = one.select_dtypes("number").columns
    assert float((one[numbers] - other[numbers]).abs().max().max()) <= 1e-6


def test_causal_tracing_beside_the_model(here, beside):
    prompts, corrupt = mmf.nano.trace_pairs(here, 1, "flag")
    kwargs = {"sites": ("mlp", "resid"), "control": False, **QUIET}
    one, other = (mmf.causal_trace(g, prompts, corrupt, ["question"], **kwargs).to_frame() for g in (here, beside))
    numbers = one.select_dtypes("number").columns
    assert float((one[numbers] - other[numbers]).abs().max().max()) <= 1e-6
    noisy = [mmf.corruption.noisy_image(prompts[0])]
    with pytest.raises(mmf.ModelError, match="would be wrong without a sign"):
        mmf.causal_trace(beside, prompts, noisy, ["question"], max_corrupt=1.0, **kwargs)


def test_gradients_do_not_cross(here, beside):
    with pytest.raises(mmf.RemoteFailure, match="failed on the server"):
        mmf.saliency(beside, mmf.nano.prompts(here, 1), progress=False)


# The command that runs against the real service.


def test_mmflow_check_remote(server, capsys, monkeypatch):
    from nnsight.schema.config import CONFIG

    from nnsight_mmflow.command_line import main

    assert main(["check", str(FOLDER), "--remote"]) == 0
    shown = capsys.readouterr().out
    assert "all that applies passed" in shown
    assert "in the model's process" in shown
    server.set("split", 1)
    assert main(["check", str(FOLDER), "--remote", server.host]) == 0
    server.set("split", 0)
    assert "beside" in capsys.readouterr().out
    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    assert main(["check", str(FOLDER), "--remote"]) == 0
    assert capsys.readouterr().out.startswith("skipped: there is no API key")


def test_a_check_on_the_server_can_fail(there, monkeypatch):
    """Planted: a knockout that does nothing, a mask that closes less, a ranking that is not noticed."""
    from nnsight_mmflow.checks import remote
    from nnsight_mmflow.checks.subject import Failed, Subject

    subject, real = Subject(there), remote.logits_of
    monkeypatch.setattr(remote, "logits_of", lambda graph, prompt, *patterns: real(graph, prompt))
    for check, told in (
        (remote.knocked, "makes no difference"),
        (remote.patched, "logits differ by"),
        (remote.no_op, "it ran through"),
    ):
        with pytest.raises(Failed, match=told):
            check(subject)


def test_mmflow_flow_remote(server, tmp_path, capsys):
    from nnsight_mmflow.command_line import main

    given = ["--image", str(tmp_path / "picture.png"), "--question", "what color is the circle ?"]
    mmf.nano.samples(2)[1].image.save(tmp_path / "picture.png")
    out = tmp_path / "out"
    main(["flow", "--model", str(FOLDER), "--remote", *given, "--window", "3", "--out", str(out)])
    assert (out / "flow.png").stat().st_size > 10_000


# Sent now, fetched later.


def test_a_job_is_fetched_later_and_by_another_process(here, there, server, tmp_path):
    prompts = mmf.nano.prompts(here, 3)
    job = mmf.flow(there, prompts, window=3, folder=tmp_path / "run", blocking=False, report=str)
    assert len(job.jobs) == 3
    status = job.status
    assert sum(status.values()) == 3
    assert set(status) <= {"FETCHED", "RECEIVED", "RUNNING"}
    job.save(tmp_path / "later.json")
    assert KEY not in (tmp_path / "later.json").read_text()
    before = server.seen()["requests"]
    again = mmf.FlowJob.load(tmp_path / "later.json", there, prompts)
    result = again.result(every=0.1, timeout=60)
    assert server.seen()["requests"] == before  # nothing was sent twice
    assert result.to_frame().equals(mmf.flow(here, prompts, window=3, **QUIET).to_frame())
    assert job.result(every=0.1, timeout=60).to_frame().equals(result.to_frame())


def test_jobs_that_cannot_be_made_or_found(here, there, server, tmp_path):
    prompts = mmf.nano.prompts(here, 2)
    with pytest.raises(mmf.MMFlowError, match="is for runs on a server"):
        mmf.flow(here, prompts, window=3, folder=tmp_path / "a", blocking=False, report=str)
    with pytest.raises(mmf.MMFlowError, match="needs folder="):
        mmf.flow(there, prompts, window=3, blocking=False, report=str)
    job = mmf.flow(there, prompts, window=3, folder=tmp_path / "b", blocking=False, report=str)
    sent = server.seen()["requests"]
    with pytest.raises(mmf.DataError, match="is of other prompts"):
        mmf.FlowJob.load(tmp_path / "b" / "job.json", there, mmf.nano.prompts(here, 4)[2:])
    again = mmf.flow(there, prompts, window=3, folder=tmp_path / "b", blocking=False, report=str)
    assert again.jobs == job.jobs
    assert server.seen()["requests"] == sent  # neither for other prompts nor twice
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(mmf.DataError, match="holds no job"):
        mmf.FlowJob.load(tmp_path / "no.json", there, prompts)
    job.jobs[next(iter(job.jobs))] = "no-such-job"
    with pytest.raises(mmf.RemoteFailure, match="call result"):
        job.result(every=0.05, timeout=0.3)


# Errors that a person can act on.


def test_without_a_key(here, there, monkeypatch):
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    with pytest.raises(mmf.RemoteFailure, match="there is no API key"):
        mmf.flow(there, mmf.nano.prompts(here, 1), window=3, **QUIET)


def test_with_a_refused_key(here, there, monkeypatch, capfd):
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", "wrong-and-private")
    with pytest.raises(mmf.RemoteFailure, match="refuses the API key") as error:
        mmf.flow(there, mmf.nano.prompts(here, 1), window=3, **QUIET)
    shown = capfd.readouterr()
    assert "wrong-and-private" not in str(error.value) + shown.out + shown.err


def test_with_no_server_there(here, there, monkeypatch):
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "HOST", "http://127.0.0.1:9")
    with pytest.raises(mmf.RemoteFailure, match=r"no NDIF server answers at http://127.0.0.1:9 .*NDIF_HOST"):
        mmf.lens(there, mmf.nano.prompts(here, 1), progress=False)


def test_with_a_model_that_is_not_there(here, there, monkeypatch):
    from nnsight.modeling import huggingface

    monkeypatch.setitem(huggingface._ID_CACHE, str(FOLDER), "somebody/else")
    with pytest.raises(mmf.RemoteFailure, match=r"is not deployed on the server\. Deployed are: .*nano/data"):
        mmf.lens(there, mmf.nano.prompts(here, 1), progress=False)


def test_with_another_nnsight_there(here, there, monkeypatch):
    monkeypatch.setattr(_remote, "version", lambda name: "0.9.0")
    with pytest.raises(mmf.RemoteFailure, match=r"runs nnsight 0.8.1, here is 0.9.0.*pip install 'nnsight==0.8.1'"):
        mmf.lens(there, mmf.nano.prompts(here, 1), progress=False)


def test_a_pattern_that_changes_nothing_there_is_told_as_here(here, there):
    """Planted: the ranking keeps all; only the server's forward can know."""
    keeps = mmf.Prune(own=[mmf.Stage(layer=2, keep=0, rank=keep_all, reads="", exact=True)])
    with pytest.raises(mmf.NoEffectError, match="its ranking keeps every image token"):
        mmf.prune_report(there, mmf.nano.prompts(here, 1), {"all": keeps}, controls=False, timed=0, **QUIET)


def keep_all(seen):
    return torch.ones(len(seen.image))


def test_a_ranking_that_raises_there_is_told_with_its_line(here, there):
    broken = mmf.Prune(own=[mmf.Stage(layer=2, keep=0.5, rank=breaks, reads="")])
    with pytest.raises(mmf.RemoteFailure, match=r"failed on the server[\s\S]*no such thing"):
        mmf.prune_report(there, mmf.nano.prompts(here, 1), {"it": broken}, controls=False, timed=0, **QUIET)


def breaks(seen):
    raise RuntimeError("no such thing")


def test_what_does_not_run_there_yet_says_so(here, there):
    with pytest.raises(mmf.ModelError, match="edit keeps"):
        mmf.edit(there, mmf.nano.edits(here, 1), 4, **QUIET)
