"""Runs on a server that runs blocks in the model's process: equal to runs here."""

import importlib
import re
import subprocess
import sys
from dataclasses import replace

import httpx
import pandas as pd
import pytest
import torch
from kit import tiny
from kit.experiments import ROWS, prompts_of
from kit.remote_server import KEY, PATTERNS, QUIET, no_weights

import nnsight_mmflow as mmf
from nnsight_mmflow.nano.questions import FOLDER


def test_the_server_does_not_have_the_package(server):
    assert httpx.get(f"{server.host}/test/imports/nnsight_mmflow").text == "No module named 'nnsight_mmflow'"
    assert httpx.get(f"{server.host}/test/imports/jaxtyping").text == "No module named 'jaxtyping'"
    assert httpx.get(f"{server.host}/test/imports/einops").text == "imported"


def test_spans_are_made_without_weights(here, there):
    sample = mmf.nano.samples(1)[0]
    one, other = (graph.prompt(sample.image, sample.question) for graph in (here, there))
    assert {name: list(one.spans[name]) for name in one.spans} == {name: list(other.spans[name]) for name in one.spans}
    assert no_weights(there)


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


@pytest.mark.parametrize("name", ["none", "knockout", "own", "skip", "himap", "mask", "zip", "recycling"])
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


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_experiment_on_the_server_equals_it_here(here, there, row):
    given = row.given(here, *prompts_of(here))
    told = []
    one = row.run(here, given, progress=False, report=str).to_frame()
    other = row.run(there, given, progress=False, report=told.append).to_frame()
    pd.testing.assert_frame_equal(other, one, rtol=1e-6, atol=1e-6)
    assert len(one.select_dtypes("number").columns)
    assert "request" in told[-1], "what travelled is told"
    assert no_weights(there)


@pytest.mark.parametrize("way", ["flag", "phrase", "noise"])
@pytest.mark.parametrize("engine", ["rows", "forward"])
def test_causal_tracing_on_the_server_equals_it_here(here, there, way, engine):
    prompts, corrupt = mmf.nano.trace_pairs(here, 1, "flag" if way == "noise" else way)
    if way == "noise":
        corrupt = [mmf.corruption.noisy_image(prompts[0], scale=3.0, seed=1)]
    spans = ["question", "last"] if engine == "rows" else ["last"]  # the slow one sends a request per cell
    kwargs = {
        "sites": ("mlp", "resid") if engine == "rows" else ("mlp",),
        "engine": engine,
        "window": 3 if engine == "rows" else 9,
        "max_corrupt": 1.0,
        "controls": 0,
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


def test_bytes_are_told_before_and_after(server, deep):
    """Thirty-two layers, six edges: what is foreseen is not exceeded, and little comes back."""
    graph, told = mmf.load(str(deep), remote=True), []
    prompt = graph.prompt(tiny.picture(0), "is the circle red or blue ?", options=("red", "blue"))
    edges = ["image->last", "image->question", "question->last", "last->last"]
    edges += ["true_option->last", "false_option->last"]
    before = server.seen()
    mmf.flow(graph, prompt, edges, 9, only_correct=False, progress=False, report=told.append)
    after = server.seen()
    up, down = (after[way] - before[way] for way in ("bytes_up", "bytes_down"))
    foreseen = re.search(r"1 request\(s\); at most (\d+) kB go up and (\d+) kB come back", told[0])
    assert up <= float(foreseen[1]) * 1e3 <= 4 * up
    assert down <= float(foreseen[2]) * 1e3 <= 6 * down
    assert down < 100_000
    assert told[1] == f"flow: 1 request(s), {up / 1e3:.1f} kB up, {down / 1e3:.1f} kB down."


def test_a_big_sweep_goes_in_chunks_and_goes_on(here, there, server, tmp_path):
    """No chunk that came back runs again, and the numbers are those of one request."""
    prompt, kwargs = mmf.nano.prompts(here, 1)[0], {"window": 3, "row_budget": 60, **QUIET}
    wanted = mmf.flow(there, prompt, **kwargs).to_frame()
    parts = server.seen()["requests"]
    server.set("ends_after", 2)
    try:
        with pytest.raises(mmf.ServerError, match="took too long.*chunks_per_request=8"):
            mmf.flow(there, prompt, chunks_per_request=1, folder=tmp_path, **kwargs)
    finally:
        server.set("ends_after", -1)
    first = server.seen()["requests"] - parts
    found = mmf.flow(there, prompt, chunks_per_request=1, folder=tmp_path, **kwargs).to_frame()
    assert found.equals(mmf.flow(there, prompt, chunks_per_request=1, folder=tmp_path, **kwargs).to_frame())
    assert float((found["log_probability_change"] - wanted["log_probability_change"]).abs().max()) <= 1e-6
    assert first == 3  # two came back, the third was ended
    kept = [line for line in (tmp_path / "prompts.jsonl").read_text().splitlines() if ", part " in line]
    assert server.seen()["requests"] - parts == len(kept) + 1  # each part once, and the one that was ended
    assert len(kept) > 3


def test_a_chunk_that_does_not_fit_is_named(here, there, server):
    server.set("room", 150)
    try:
        with pytest.raises(
            mmf.MMFlowError, match=r"chunk \d+ of \d+ .* ran out of memory .* give row_budget below \d+"
        ):
            mmf.flow(there, mmf.nano.prompts(here, 1), window=3, row_budget=400, **QUIET)
        smaller = mmf.flow(there, mmf.nano.prompts(here, 1), window=3, row_budget=90, **QUIET).to_frame()
    finally:
        server.set("room", 0)
    assert len(smaller)


def test_cells_share_a_request(here, there, server):
    prompt, before = mmf.nano.prompts(here, 1)[0], server.seen()["requests"]
    mmf.skip_flow(there, prompt, ["image"], **QUIET)
    assert server.seen()["requests"] - before == 2  # the answer, and all layers
    mmf.disruption(there, prompt, **QUIET)
    assert server.seen()["requests"] - before == 2 + 4  # the plain model, and each of three ways


def test_a_wrong_answer_is_told_apart(here, there):
    """The rows do not run for it, and the result says that it was wrong."""
    prompts = mmf.nano.prompts(here, 2)
    prompts = [prompts[0], replace(prompts[1], answer="heron", options=None)]
    one, other = (mmf.flow(graph, prompts, window=3, **QUIET) for graph in (here, there))
    assert one.to_frame().equals(other.to_frame())
    assert one.header["n_correct"] == other.header["n_correct"] if "n_correct" in one.header else True


# The command that runs against the real service.


def test_mmflow_check_remote(server, capsys, monkeypatch):
    """An ordinary key's, and both in bfloat16, are in number_types.py."""
    from nnsight.schema.config import CONFIG

    from nnsight_mmflow.command_line import main

    assert main(["check", str(FOLDER), "--remote"]) == 0
    shown = capsys.readouterr().out
    assert "all that applies passed" in shown
    assert "in the model's process" in shown
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


# Edits: found and used on the server, whose weights stay as they are.


def test_an_edit_on_the_server_equals_it_here(here, there, server, tmp_path):
    fact = mmf.nano.edits(here, 1)[0]
    before = server.seen()["requests"]
    one, other = (mmf.edit(graph, fact, [3, 4], **QUIET) for graph in (here, there))
    assert server.seen()["requests"] - before < 10  # one for the optimisation, two keys, digests, four answers
    numbers = one.table.select_dtypes("number").columns
    assert float((one.table[numbers] - other.table[numbers]).abs().max().max()) <= 1e-4
    assert one.header["weights"] == other.header["weights"]
    for layer in (3, 4):
        assert (one.updates[layer].matrix() - other.updates[layer].matrix()).abs().max() <= 1e-4
    found = []
    for graph in (one.graph, other.graph, there):
        with torch.no_grad(), graph.trace(fact.prompt, use_cache=False):
            logits = graph.unembed.output[0, -1].save()
        found.append(logits.detach())
    assert (found[0] - found[1]).abs().max() <= 1e-3
    assert (found[1] - found[2]).abs().max() > 1  # and the model itself is as it was
    written = []
    for graph in (one.graph, other.graph):
        with graph.generate(fact.prompt, max_new_tokens=3, do_sample=False) as tracer:
            ids = tracer.result.save()
        written.append(ids.tolist())
    assert written[0] == written[1]
    other.save(tmp_path)
    assert mmf.results.EditResult.load(tmp_path, here).graph.name == "nano, edited"
    asked = replace(fact.prompt, answer=fact.target)  # a sweep's session runs with the edit, too
    swept = mmf.flow(mmf.results.EditResult.load(tmp_path, there).graph, asked, window=9, **QUIET)
    assert set(swept.to_frame()["prediction"]) == {fact.target}
    with pytest.raises(mmf.MMFlowError, match="shared with others"):
        other.apply()
    assert no_weights(there)


def test_an_edit_that_rounds_away_is_an_error_there_too(here, there):
    """Planted: a clip so small that no number of the output moves."""
    fact, tiny_clip = mmf.nano.edits(here, 1), mmf.EditSettings(steps=2, clip=1e-12)
    for graph in (here, there):
        with pytest.raises(mmf.NoEffectError, match="the edit would change nothing.*Is the clip"):
            mmf.edit(graph, fact, 4, settings=tiny_clip, **QUIET)


def test_an_edit_report_on_the_server(here, there):
    facts, others = mmf.nano.edits(here, 2), mmf.nano.prompts(here, 4)
    kwargs = {"fine_tuning": False, **QUIET}
    one, other = (mmf.edit_report(graph, facts, others, 4, **kwargs).overall() for graph in (here, there))
    assert one.equals(other)
    with pytest.raises(mmf.ModelError, match="fine_tuning=False"):
        mmf.edit_report(there, facts, others, 4, **QUIET)


# Code of one's own: what a server lacks travels with it.

OWN = '''
"""A user's module, of two files."""
from dataclasses import dataclass

import nnsight_mmflow as mmf
from {tools} import times


@dataclass(frozen=True, kw_only=True)
class Doubled(mmf.Pattern):
    at: str
    layers: range
    site: str = "mlp"

    def change(self, values, layer):
        return times(values)


def doubled(values):
    return times(values)
'''


def test_a_users_module_travels_by_itself(here, there, server, tmp_path, monkeypatch):
    """It comes onto the path after nnsight looked at that, and has a helper in a module of its own."""
    prompt = mmf.nano.prompts(here, 1)[0]
    with torch.no_grad(), there.trace(prompt, mmf.Skip(layers=1, at="image"), use_cache=False):
        there.unembed.output[0, -1].save()
    (tmp_path / "users_package").mkdir()
    (tmp_path / "users_package" / "__init__.py").write_text("")
    (tmp_path / "users_package" / "tools.py").write_text("def times(values):\n    return values * 2\n")
    (tmp_path / "users_package" / "own.py").write_text(OWN.format(tools="users_package.tools"))
    monkeypatch.syspath_prepend(tmp_path)
    own, tools = (importlib.import_module(f"users_package.{name}") for name in ("own", "tools"))
    assert httpx.get(f"{server.host}/test/imports/users_package").text == "No module named 'users_package'"
    given, found = {"at": "image", "layers": range(3), "site": "mlp"}, []
    for pattern in (
        own.Doubled(at="image", layers=range(3)),
        mmf.Change(**given, value=own.doubled),
        mmf.Change(**given, value=lambda values: tools.times(values)),
    ):
        for graph in (here, there):
            with torch.no_grad(), graph.trace(prompt, pattern, use_cache=False):
                logits = graph.unembed.output[0, -1].save()
            found.append(logits.detach())
    assert len(found) == 6
    assert max(float((one - found[0]).abs().max()) for one in found) <= 1e-6
    assert no_weights(there)
    pattern = mmf.Change(**given, value=lambda values: own.doubled(values))  # a module that holds this package
    with pytest.raises(mmf.ServerError, match="cannot be sent: cannot pickle.*from the_module import"):
        with torch.no_grad(), there.trace(prompt, pattern, use_cache=False):
            there.unembed.output[0, -1].save()


def test_a_notebooks_own_pattern_travels(here, server, tmp_path):
    """In another process, as its main module; the server has neither."""
    script = tmp_path / "notebook.py"
    script.write_text(NOTEBOOK)
    given = [sys.executable, str(script), server.host, KEY, str(FOLDER)]
    done = subprocess.run(given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.split()[-1]) <= 1e-6


NOTEBOOK = '''
import sys
from dataclasses import dataclass

import torch
from nnsight.modeling import huggingface
from nnsight.schema.config import CONFIG

import nnsight_mmflow as mmf

CONFIG.API.HOST, CONFIG.API.APIKEY, CONFIG.APP.REMOTE_LOGGING = sys.argv[1], sys.argv[2], False
huggingface._ID_CACHE[sys.argv[3]] = sys.argv[3]
STRENGTH = 3.0


@dataclass(frozen=True, kw_only=True)
class Steered(mmf.Pattern):
    """Steers."""

    at: str
    layers: range
    direction: torch.Tensor

    def change(self, values, layer):
        return values + STRENGTH * self.direction.to(values)


here = mmf.load("nano")
there = mmf.load(sys.argv[3], remote=True).at(True, trusted=True)
prompt, found = mmf.nano.prompts(here, 1)[0], []
for pattern in (
    Steered(at="last", layers=range(3), direction=torch.linspace(-1, 1, 128)),
    mmf.Change(at="last", layers=range(3), value=lambda values: values + STRENGTH * torch.linspace(-1, 1, 128)),
):
    for graph in (here, there):
        with torch.no_grad(), graph.trace(prompt, pattern, use_cache=False):
            logits = graph.unembed.output[0, -1].save()
        found.append(logits.detach())
print(max(float((one - found[0]).abs().max()) for one in found))
'''
