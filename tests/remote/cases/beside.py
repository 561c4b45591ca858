"""Runs on a server that runs blocks apart from the model's process; jobs, clients, and errors in words."""

import json
import os
import subprocess
import sys
from functools import partial

import nnsight
import pandas as pd
import pytest
import torch
from kit.experiments import ROWS, prompts_of
from kit.remote_server import KEY, ORDINARY_KEY, PATTERNS, QUIET, Server, Turned, breaks, keep_all

import nnsight_mmflow as mmf
from nnsight_mmflow.nano.questions import FOLDER
from nnsight_mmflow.remote import ready
from nnsight_mmflow.remote import words as _words

# Ordinary keys: what is read is a copy, and is written back.


def test_blocks_of_an_ordinary_key_see_no_weights(beside, there, server, monkeypatch):
    """The stand-in can tell: what is read of a module is empty, and a module that is called runs with its weights."""
    from nnsight.schema.config import CONFIG

    ones, found = torch.ones(1, 128), []
    for key, graph in ((ORDINARY_KEY, beside), (KEY, there)):
        monkeypatch.setattr(CONFIG.API, "APIKEY", key)
        unembed, prompt = graph.unembed, mmf.nano.prompts(graph, 1)[0]
        with torch.no_grad(), graph.trace(prompt, use_cache=False):
            devices = nnsight.save([str(unembed._module.weight.device), str(unembed.weight.device)])
            logits = nnsight.save(unembed(ones).detach())
        found.append((devices, logits))
    assert [devices for devices, _ in found] == [["meta", "meta"], ["cpu", "cpu"]]
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_beside_the_model_equals_it_here(here, beside, name):
    prompts = mmf.nano.prompts(here, 2)
    patterns, found = PATTERNS[name](prompts), []
    for graph in (here, beside):
        with torch.no_grad(), graph.trace(prompts[0], *patterns, use_cache=False):
            logits = graph.unembed.output[0, -1].save()
        found.append(logits.detach())
    assert (found[0] - found[1]).abs().max() <= 1e-6


IN_STEPS = ("none", "patch", "own", "features", "skip", "knockout", "heads", "bias", "embed", "skip_image")


@pytest.mark.parametrize("name", [*IN_STEPS, "himap", "mask", "zip", "recycling"])
def test_a_generation_beside_the_model_equals_it_here(here, beside, name):
    prompts, found = mmf.nano.prompts(here, 2), []
    kwargs = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    kwargs |= {"output_logits": True, "return_dict_in_generate": True}
    for graph in (here, beside):
        with torch.no_grad(), graph.generate(prompts[0], *PATTERNS[name](prompts), **kwargs) as tracer:
            logits = torch.stack(tracer.result.logits).save()
        found.append(logits.detach())
    assert (found[0] - found[1]).abs().nan_to_num(0).max() <= 1e-5


@pytest.mark.parametrize(
    "pattern",
    [
        mmf.Knockout(source="image", target="last", layers=range(3, 6), when="all"),
        Turned(at="question | suffix", layers=range(3, 6), by=3, when="all"),
    ],
    ids=["knockout", "own"],
)
def test_every_step_beside_the_model(here, beside, pattern):
    batch = here.batch(mmf.nano.prompts(here, 2))
    blocked, found = pattern, []
    kwargs = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    for graph in (here, beside):
        with graph.generate(batch, blocked, **kwargs) as tracer:
            ids = tracer.result.save()
        found.append(ids.tolist())
    assert found[0] == found[1]


def test_a_generation_that_takes_itself_for_trusted_is_wrong_beside_the_model(here, beside):
    """Planted: what the way through `.source` is for."""
    prompts = mmf.nano.prompts(here, 2)
    kwargs = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False}
    kwargs |= {"output_logits": True, "return_dict_in_generate": True}
    found = []
    for graph in (here, beside.at(True, trusted=True)):
        with torch.no_grad(), graph.generate(prompts[0], *PATTERNS["himap"](prompts), **kwargs) as tracer:
            logits = torch.stack(tracer.result.logits).save()
        found.append(logits.detach())
    assert (found[0][0] - found[1][0]).abs().max() <= 1e-5
    assert (found[0][1] - found[1][1]).abs().nan_to_num(0).max() > 1


@pytest.mark.parametrize("row", [row for row in ROWS if not row.gradients], ids=lambda row: row.name)
def test_an_experiment_beside_the_model_equals_it_here(here, beside, row):
    given = row.given(here, *prompts_of(here))
    one, other = (row.run(graph, given, progress=False, report=str).to_frame() for graph in (here, beside))
    pd.testing.assert_frame_equal(other, one, rtol=1e-6, atol=1e-6)


def test_causal_tracing_beside_the_model(here, beside):
    prompts, corrupt = mmf.nano.trace_pairs(here, 1, "flag")
    kwargs = {"sites": ("mlp", "resid"), "controls": 0, **QUIET}
    one, other = (mmf.causal_trace(g, prompts, corrupt, ["question"], **kwargs).to_frame() for g in (here, beside))
    numbers = one.select_dtypes("number").columns
    assert float((one[numbers] - other[numbers]).abs().max().max()) <= 1e-6
    noisy = [mmf.corruption.noisy_image(prompts[0])]
    kwargs |= {"max_corrupt": 1.0}
    one, other = (mmf.causal_trace(g, prompts, noisy, ["question"], **kwargs).to_frame() for g in (here, beside))
    assert float((one[numbers] - other[numbers]).abs().max().max()) <= 1e-6


def test_gradients_do_not_cross(here, beside):
    asked, fact = mmf.nano.prompts(here, 2), mmf.nano.edits(here, 1)
    for run in (
        lambda: mmf.saliency(beside, asked, progress=False),
        lambda: mmf.attribution_patching(beside, *mmf.nano.trace_pairs(here, 1, "flag"), progress=False),
        lambda: mmf.edit(beside, fact, 4, **QUIET),
        lambda: mmf.edit_report(beside, fact, asked, 4, fine_tuning=False, **QUIET),
    ):
        with pytest.raises(mmf.ModelError, match="found by gradients, which do not reach"):
            run()
    assert beside.traffic.requests == 0  # refused before anything is sent


def test_kept_tokens_on_the_server(here, there, beside):
    prompt, method = mmf.nano.prompts(here, 1)[0], mmf.HiMAP(k1=2, k2=4)
    one, other, apart = (mmf.kept_tokens(graph, prompt, method) for graph in (here, there, beside))
    assert one.layers == other.layers == apart.layers


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
    again = mmf.results.FlowJob.load(tmp_path / "later.json", there, prompts, folder=tmp_path / "run")
    result = again.result(every=0.1, timeout=60)
    assert server.seen()["requests"] == before  # nothing was sent twice
    assert result.to_frame().equals(mmf.flow(here, prompts, window=3, **QUIET).to_frame())
    assert job.result(every=0.1, timeout=60).to_frame().equals(result.to_frame())


def test_controls_are_the_same_there_and_in_a_job_that_another_process_fetches(here, there, tmp_path):
    prompts = mmf.nano.prompts(here, 2)
    wanted = mmf.flow(here, prompts, window=3, controls=2, **QUIET)
    assert wanted.controls(3)
    mmf.flow(there, prompts, window=3, controls=2, folder=tmp_path, blocking=False, report=str)
    result = mmf.results.FlowJob.load(tmp_path / "job.json", there, prompts).result(every=0.1, timeout=60)
    assert result.to_frame().equals(wanted.to_frame())
    assert result.header["controls"] == 2


def test_a_strangers_job_decides_neither_host_nor_folder(here, there, server, tmp_path):
    prompts = mmf.nano.prompts(here, 1)
    mmf.flow(there, prompts, window=3, folder=tmp_path / "mine", blocking=False, report=str)
    kept = json.loads((tmp_path / "mine" / "job.json").read_text())
    assert set(kept) == {"given", "jobs"}
    (tmp_path / "got").mkdir()
    file = tmp_path / "got" / "job.json"
    file.write_text(json.dumps({**kept, "folder": str(tmp_path / "victim"), "host": "http://127.0.0.1:9"}))
    result = mmf.results.FlowJob.load(file, there, prompts).result(every=0.1, timeout=60)
    assert result.to_frame().equals(mmf.flow(here, prompts, window=3, **QUIET).to_frame())
    assert not (tmp_path / "victim").exists()
    assert (tmp_path / "got" / "flow.parquet").exists(), "into the folder that the caller named"
    file.write_text(json.dumps({**kept, "given": {**kept["given"], "remote": "http://127.0.0.1:9"}}))
    with pytest.raises(mmf.DataError, match="remote='http://127.0.0.1:9' is no setting of a sweep"):
        mmf.results.FlowJob.load(file, there, prompts)


def test_a_servers_numbers_are_not_mixed_with_those_of_weights_here(here, there, tmp_path):
    """What its weights are is not known here; edits that ride along are."""
    prompts = mmf.nano.prompts(here, 1)
    flow = partial(mmf.flow, prompts=prompts, window=3, folder=tmp_path, **QUIET)
    flow(there)
    kept = json.loads((tmp_path / "settings.json").read_text())
    assert "not known here" in kept["weights"]
    flow(there)
    with pytest.raises(mmf.DataError, match="weights was 'on the server http.* not known here"):
        flow(here.but(name=there.name))
    with there.model.edit() as (_, edited):
        there.layers[2].output[:] = 0
    with pytest.raises(mmf.DataError, match="edits was None"):
        flow(there.but(model=edited))


def test_a_job_is_awaited(here, there, tmp_path):
    """Two at once, and other work beside them."""
    import asyncio

    prompts = mmf.nano.prompts(here, 2)
    kwargs = {"window": 9, "blocking": False, "report": str}
    jobs = [mmf.flow(there, prompt, folder=tmp_path / str(n), **kwargs) for n, prompt in enumerate(prompts)]

    async def both():
        return await asyncio.gather(jobs[0], jobs[1].wait(every=0.05, timeout=60))

    for prompt, result in zip(prompts, asyncio.run(both()), strict=True):
        assert result.to_frame().equals(mmf.flow(here, prompt, window=9, **QUIET).to_frame())


def test_traces_of_your_own_are_polled_and_awaited(here, there):
    import asyncio

    from nnsight.intervention.backends.remote import AsyncRemoteBackend

    prompt = mmf.nano.prompts(here, 1)[0]
    blocked = mmf.Knockout(source="image", target="last", layers=range(3, 6))
    with torch.no_grad(), here.trace(prompt, blocked, use_cache=False):
        wanted = here.unembed.output[0, -1].save()
    with there.trace(prompt, blocked, use_cache=False, blocking=False) as tracer:
        logits = there.unembed.output[0, -1].detach().save()
    found = None
    while found is None:
        found = tracer.backend.poll()
    assert (found["logits"] - wanted).abs().max() <= 1e-6
    backend = AsyncRemoteBackend(there.model.to_model_key())
    with there.trace(prompt, blocked, use_cache=False, backend=backend):
        logits = there.unembed.output[0, -1].detach().save()  # noqa: F841, comes back under this name

    async def waited():
        return await backend

    assert (asyncio.run(waited())["logits"] - wanted).abs().max() <= 1e-6


def test_jobs_that_cannot_be_made_or_found(here, there, server, tmp_path):
    prompts = mmf.nano.prompts(here, 2)
    with pytest.raises(mmf.MMFlowError, match="needs folder="):
        mmf.flow(there, prompts, window=3, blocking=False, report=str)
    job = mmf.flow(there, prompts, window=3, folder=tmp_path / "b", blocking=False, report=str)
    sent = server.seen()["requests"]
    with pytest.raises(mmf.DataError, match="is of other prompts"):
        mmf.results.FlowJob.load(tmp_path / "b" / "job.json", there, mmf.nano.prompts(here, 4)[2:])
    again = mmf.flow(there, prompts, window=3, folder=tmp_path / "b", blocking=False, report=str)
    assert again.jobs == job.jobs
    assert server.seen()["requests"] == sent  # neither for other prompts nor twice
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(mmf.DataError, match="holds no job"):
        mmf.results.FlowJob.load(tmp_path / "no.json", there, prompts)
    job.jobs[next(iter(job.jobs))] = "no-such-job"
    with pytest.raises(mmf.ServerError, match="call result"):
        job.result(every=0.05, timeout=0.3)


CLIENT = """
import sys
import nnsight_mmflow as mmf
from nnsight.modeling import huggingface
folder, kind = sys.argv[1:]
huggingface._ID_CACHE[folder] = folder
graph = mmf.load(folder, remote=True)
print("ready", flush=True)
input()
result = mmf.flow(graph, mmf.nano.prompts(graph, 3, kind), window=3, progress=False, report=str)
print(result.to_frame()["log_probability_change"].sum())
"""


def test_two_clients_at_once(here, there, server, tmp_path):
    """A process of its own, and this one."""
    (tmp_path / "client.py").write_text(CLIENT)
    environment = {**os.environ, "NDIF_HOST": server.host, "NDIF_API_KEY": KEY}
    kinds = ("QueryAttr", "ChooseRel")
    command = [sys.executable, str(tmp_path / "client.py"), str(FOLDER), kinds[0]]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
    assert other.stdout.readline() == "ready\n"
    other.stdin.write("\n")
    other.stdin.flush()
    own = mmf.flow(there, mmf.nano.prompts(here, 3, kinds[1]), window=3, **QUIET).to_frame()
    sums = [float(other.communicate(timeout=120)[0].split()[-1]), own["log_probability_change"].sum()]
    for kind, found in zip(kinds, sums, strict=True):
        wanted = mmf.flow(here, mmf.nano.prompts(here, 3, kind), window=3, **QUIET).to_frame()
        assert abs(found - wanted["log_probability_change"].sum()) < 1e-6


def test_a_server_that_dies_loses_nothing(here, there, tmp_path_factory, monkeypatch):
    from nnsight.schema.config import CONFIG

    own = Server(tmp_path_factory.mktemp("dying"), FOLDER).start()
    monkeypatch.setattr(CONFIG.API, "HOST", own.host)
    prompts, folder = mmf.nano.prompts(here, 3), tmp_path_factory.mktemp("results")
    own.set("die_before", 2)
    with pytest.raises(mmf.ServerError, match="connection to the server broke .* with folder= it goes on where it was"):
        mmf.flow(there, prompts, window=3, folder=folder, **QUIET)
    own.wait()
    own.start()
    try:
        result = mmf.flow(there, prompts, window=3, folder=folder, **QUIET)
        assert own.seen()["requests"] == 1  # two were finished
    finally:
        own.stop()
    assert result.to_frame().equals(mmf.flow(here, prompts, window=3, **QUIET).to_frame())


# Errors that a person can act on.


def test_without_a_key(here, there, monkeypatch):
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    with pytest.raises(mmf.ServerError, match="there is no API key"):
        mmf.flow(there, mmf.nano.prompts(here, 1), window=3, **QUIET)


def test_with_a_refused_key(here, there, monkeypatch, capfd):
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", "wrong-and-private")
    with pytest.raises(mmf.ServerError, match="refuses the API key") as error:
        mmf.flow(there, mmf.nano.prompts(here, 1), window=3, **QUIET)
    shown = capfd.readouterr()
    assert "wrong-and-private" not in str(error.value) + shown.out + shown.err


def test_the_key_is_written_nowhere(here, there, server, tmp_path, capfd):
    told = []
    job = mmf.flow(there, mmf.nano.prompts(here, 2), window=9, folder=tmp_path, blocking=False, report=told.append)
    job.result(every=0.05, timeout=60).save(tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    shown = capfd.readouterr()
    assert KEY not in repr(there) + repr(job) + repr(vars(there)) + str(told) + shown.out + shown.err


def test_the_stand_in_is_on_loopback_alone(server):
    import socket

    for address in {found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}:
        if not address.startswith("127."):
            with socket.socket() as tried:
                assert tried.connect_ex((address, server.port)) != 0


def test_with_no_server_there(here, there, monkeypatch):
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "HOST", "http://127.0.0.1:9")
    with pytest.raises(mmf.ServerError, match=r"no NDIF server answers at http://127.0.0.1:9 .*NDIF_HOST"):
        mmf.lens(there, mmf.nano.prompts(here, 1), progress=False)


def test_with_a_model_that_is_not_there(here, there, monkeypatch):
    from nnsight.modeling import huggingface

    monkeypatch.setitem(huggingface._ID_CACHE, str(FOLDER), "somebody/else")
    with pytest.raises(mmf.ServerError, match=r"is not deployed .* Not Found .* Deployed are: .*nano/data"):
        mmf.lens(there, mmf.nano.prompts(here, 1), progress=False)


def test_with_another_nnsight_there(here, there, monkeypatch):
    monkeypatch.setattr(ready, "version", lambda name: "0.9.0")
    with pytest.raises(mmf.ServerError, match=r"runs nnsight 0.8.1, here is 0.9.0.*pip install 'nnsight==0.8.1'"):
        mmf.lens(there, mmf.nano.prompts(here, 1), progress=False)


def test_a_failed_job_tells_of_other_versions(here, there, server, monkeypatch):
    real = _words.version
    monkeypatch.setattr(_words, "version", lambda name: "5.99.0" if name == "transformers" else real(name))
    broken = mmf.prune.Prune(own=[mmf.prune.Stage(layer=2, keep=0.5, rank=breaks, reads="")])
    with pytest.raises(
        mmf.ServerError, match=r"failed on the server\. It has transformers 5\.23\.0 \(here 5\.99\.0\)\."
    ):
        mmf.prune_report(there, mmf.nano.prompts(here, 1), {"it": broken}, controls=0, timed=0, **QUIET)


def test_a_pattern_that_changes_nothing_there_is_told_as_here(here, there):
    """Planted: the ranking keeps all; only the server's forward can know."""
    keeps = mmf.prune.Prune(own=[mmf.prune.Stage(layer=2, keep=0, rank=keep_all, reads="", exact=True)])
    with pytest.raises(mmf.NoEffectError, match="its ranking keeps every image token"):
        mmf.prune_report(there, mmf.nano.prompts(here, 1), {"all": keeps}, controls=0, timed=0, **QUIET)


def test_a_ranking_that_raises_there_is_told_with_its_line(here, there):
    broken = mmf.prune.Prune(own=[mmf.prune.Stage(layer=2, keep=0.5, rank=breaks, reads="")])
    with pytest.raises(mmf.ServerError, match=r"failed on the server[\s\S]*no such thing"):
        mmf.prune_report(there, mmf.nano.prompts(here, 1), {"it": broken}, controls=0, timed=0, **QUIET)
