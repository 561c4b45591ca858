"""NDIF loads models in bfloat16 whatever their configuration says: runs there equal runs here in bfloat16."""

import pandas as pd
import pytest
import torch
from kit.experiments import ROWS, prompts_of
from kit.remote_server import KEY, ORDINARY_KEY, PATTERNS

import nnsight_mmflow as mmf
from nnsight_mmflow.nano import FOLDER


@pytest.fixture(scope="module")
def half():
    return mmf.load(str(FOLDER), dtype=torch.bfloat16)


@pytest.fixture(params=["trusted", "ordinary"])
def place(request, server, there, client, monkeypatch):
    """The graph of a key of either kind, on a server that loads in bfloat16; its configuration says float32."""
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", KEY if request.param == "trusted" else ORDINARY_KEY)
    server.set("float32", 0)
    yield there.at(True, trusted=request.param == "trusted")
    server.set("float32", 1)


@pytest.mark.parametrize("name", ["none", "knockout", "from_run", "himap", "mask", "skip_image"])
def test_a_pattern_equals_it_here_in_bfloat16(half, place, name):
    prompts, found = mmf.nano.prompts(half, 2), []
    for graph in (half, place):
        with torch.no_grad(), graph.trace(prompts[0], *PATTERNS[name](prompts), use_cache=False):
            logits = graph.unembed.output[0, -1].save()
        found.append(logits.detach())
    assert found[0].dtype == found[1].dtype == torch.bfloat16
    assert torch.equal(*found)


TRIED = ("flow", "lens", "contributions", "attention", "attention_and_effect")


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in TRIED], ids=lambda row: row.name)
def test_an_experiment_equals_it_here_in_bfloat16(half, place, row):
    given = row.given(half, *prompts_of(half))
    one, other = (row.run(graph, given, progress=False, report=str).to_frame() for graph in (half, place))
    pd.testing.assert_frame_equal(other, one, rtol=1e-6, atol=1e-6)


def test_what_is_allowed_is_the_rounding_of_that_type():
    from nnsight_mmflow.inside.heads import differs

    assert differs(0.03, 1.0, "bfloat16")
    assert not differs(0.01, 1.0, "bfloat16")
    assert differs(0.01, 1.0, "float32")
    assert differs(float("nan"), 1.0, "bfloat16")


def test_mmflow_check_remote_in_bfloat16(place, server, capsys):
    from nnsight_mmflow.command_line import main

    assert main(["check", str(FOLDER), "--remote", server.host]) == 0
    shown = capsys.readouterr().out
    assert "all that applies passed" in shown
    assert ("in the model's process" if place.trusted else "beside") in shown


def test_what_is_not_known_here_is_not_said(place, half, tmp_path):
    """The number type of a server's weights, in a folder's settings and in a plan's memory."""
    told = []
    mmf.flow(place, mmf.nano.prompts(half, 1), window=9, folder=tmp_path, progress=False, report=told.append)
    assert '"dtype"' not in (tmp_path / "settings.json").read_text()
    assert "MB (at 4 bytes a number, which the server decides) beside the weights" in told[0]
    local = []
    mmf.flow(half, mmf.nano.prompts(half, 1), window=9, progress=False, report=local.append)
    assert "MB beside the weights" in local[0]
