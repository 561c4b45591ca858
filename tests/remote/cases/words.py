"""What NDIF refuses, and how jobs end that are not at fault: in its own words there, in words with what to do here."""

import re

import httpx
import pytest
import torch
from kit.remote_server import QUIET

import nnsight_mmflow as mmf
from nnsight_mmflow.remote import ready
from nnsight_mmflow.remote import words as _words

FAILED = {  # by the stand-in's name
    "evicted": r"took the model away while the job ran.*with folder= it goes on",
    "starting": r"server failed starting model: it is not your code.*tell NDIF, or take another model.*Deployed are",
    "provisioning": r"server failed provisioning model: it is not your code",
    "submitting": r"server failed submitting request: it is not your code",
    "critical": r"server failed: it is not your code",
    "cancelled": r"server cancelled the job\. Run it again",
    "operator": r"server cancelled the job\. Run it again",
    "timeout": r"took too long.*chunks_per_request=8.*execution timeout of 3600.0s",
    "too_big": r"not deployed on the server, and it could not deploy it: CANT_ACCOMMODATE.*small enough",
    "payload": r"could not read what was sent \(ZstdError: bad\): it was damaged on its way, or another nnsight",
    "architecture": r"has no module Module:model\.model\.visual.*its transformers is another version.*ndif\.compare",
}


@pytest.fixture
def prompts(here):
    return mmf.nano.prompts(here, 1)


def told(graph, prompts):
    with pytest.raises(mmf.ServerError) as error:
        mmf.lens(graph, prompts, progress=False)
    return str(error.value)


def test_every_end_of_a_job_is_told(there, server, prompts):
    missing = []
    for name, expected in FAILED.items():
        server.set("fails", name)
        text = told(there, prompts)
        server.set("fails", "''")
        if not re.search(expected, text, re.DOTALL):
            missing.append((name, text))
    assert not missing


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("my-own-and-private-key", "refuses the API key: it is malformed"),
        ("k7", "refuses the API key: it is malformed"),  # too short to be found in a text, and told all the same
        ("5ec2e700-0000-4000-8000-0000000000ff", "refuses the API key: it does not know it"),
    ],
)
def test_a_refused_key_is_told_and_never_shown(there, prompts, monkeypatch, capfd, key, expected):
    from nnsight.intervention.backends.remote import RemoteError
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", key)
    text = told(there, prompts)
    assert expected in text
    with pytest.raises(RemoteError) as error, there.trace(prompts[0]):
        logits = there.unembed.output.save()  # noqa: F841
    shown = capfd.readouterr()
    assert f"'{key}'" not in str(error.value)
    assert key not in text + shown.out + shown.err
    if len(key) > 3:
        assert key not in str(error.value)


def test_a_key_that_does_not_arrive(server, there, prompts, monkeypatch):
    """A proxy may take it away."""
    from nnsight.intervention.backends.remote import RemoteBackend

    real = RemoteBackend._post

    def without(self, request, blob):
        self.api_key = ""
        return real(self, request, blob)

    monkeypatch.setattr(RemoteBackend, "_post", without)
    assert "refuses the API key: none reached it" in told(there, prompts)


def test_a_server_that_reconnects(there, server, prompts, monkeypatch):
    """It says so of /env too, before anything is sent."""
    server.set("reconnecting", 1)
    try:
        assert "reconnecting to them. Run it again in a few minutes" in told(there, prompts)
        monkeypatch.setitem(ready.READY, server.host, {})
        assert "reconnecting to them. Run it again in a few minutes" in told(there, prompts)
    finally:
        server.set("reconnecting", 0)


def test_a_result_whose_link_has_expired(here, there, server, prompts, tmp_path):
    """And a job is sent again: its result is gone."""
    server.set("by_url", 1)
    job = mmf.flow(there, prompts, window=9, folder=tmp_path, blocking=False, report=str)
    server.set("expired", 1)
    try:
        text = told(there, prompts)
        with pytest.raises(mmf.ServerError, match="kept for an hour, and its link has expired"):
            job.result(every=0.05, timeout=30)
    finally:
        server.set("expired", 0)
        server.set("by_url", 0)
    assert "kept for an hour, and its link has expired: send it again" in text
    assert "/result/" not in text  # the link opens the result to whoever has it
    assert job.status == {"ENDED": 1}
    again = mmf.flow(there, prompts, window=9, folder=tmp_path, blocking=False, report=str)
    assert len(again.jobs) == 1
    assert again.result(every=0.05, timeout=30).to_frame().equals(mmf.flow(here, prompts, window=9, **QUIET).to_frame())


def test_a_big_result_comes_by_a_link(here, there, server, prompts):
    """Above 8 MiB, as Redis lets through."""
    with torch.no_grad(), there.trace(prompts[0], use_cache=False):
        noise = torch.rand(3_000_000, generator=torch.Generator().manual_seed(0)).save()
    assert torch.equal(noise, torch.rand(3_000_000, generator=torch.Generator().manual_seed(0)))
    assert httpx.get(f"{server.host}/test/seen").json()["by_url"] == 0


def test_what_is_large_is_told_before_and_when_it_is_refused(there, server, prompts, capsys):
    """Pixels that have no small form: of floats, as a processor of a user's own may make them."""
    from nnsight.intervention.backends.remote import RemoteError

    ids = torch.full((30, len(prompts[0].spans["image"])), there.image_token_id)
    noise = {"input_ids": ids, "pixel_values": torch.rand(30, 3, 64, 64)}
    server.set("parts", 1)
    try:
        with pytest.raises(RemoteError) as error, there.trace(noise):
            logits = there.unembed.output[:, -1].save()  # noqa: F841
        sent = int(re.search(r"a request of (\d+) bytes is sent; some servers refuse more", capsys.readouterr().err)[1])
        assert sent > 1 << 20
        assert f"parsing the body ({sent} bytes were sent)" in str(error.value)
        text = str(_words.told(there, str(error.value)))
        assert f"could not take the request ({sent} bytes): servers with anyio >= 4.15 refuse more than 1048576" in text
        assert "Send less: a smaller picture" in text
        with torch.no_grad(), there.trace(prompts[0], use_cache=False):
            logits = there.unembed.output[0, -1].save()  # noqa: F841, a small request passes
    finally:
        server.set("parts", 0)
    assert "is sent;" not in capsys.readouterr().err
