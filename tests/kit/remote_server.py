"""What the remote cases share: the stand-in server, graphs here and there, patterns."""

import contextlib
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import nnsight
import pytest
import torch
from kit import tiny

import nnsight_mmflow as mmf
from nnsight_mmflow.nano.questions import FOLDER
from nnsight_mmflow.remote import ready

nnsight.register(__name__)  # a user's own module lies on the working path and travels by itself; pytest's does not
KEY, ORDINARY_KEY = (f"5ec2e700-0000-4000-8000-00000000f1e{n}" for n in (5, 6))  # as in ndif_server.py
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
        deep = self.folder / "deep"
        if not deep.exists():  # as deep as a 7B model
            tiny.tiny_model(n_layers=32).save_pretrained(deep)
            tiny.tiny_processor().save_pretrained(deep)
        command = [sys.executable, str(script), str(self.port), str(FOLDER), str(deep)]
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

    for folder in (FOLDER, server.folder / "deep"):
        monkeypatch.setitem(huggingface._ID_CACHE, str(folder), str(folder))
    monkeypatch.setattr(CONFIG.API, "HOST", server.host)
    monkeypatch.setattr(CONFIG.API, "APIKEY", KEY)
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    monkeypatch.setattr(ready, "READY", {})


@pytest.fixture(scope="module")
def here():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def there():
    return mmf.load(str(FOLDER), remote=True).at(True, trusted=True)


@pytest.fixture
def beside(client, monkeypatch):
    """The graph of an ordinary key: its blocks run in a process beside the model's, here emulated."""
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", ORDINARY_KEY)
    return mmf.load(str(FOLDER), remote=True)


def no_weights(graph):
    return all(parameter.is_meta for parameter in graph.adapter.model.parameters())


PATTERNS = {
    "none": lambda prompts: (),
    "knockout": lambda prompts: (mmf.Knockout(source="image", target="last", layers=range(3, 6)),),
    "heads": lambda prompts: (mmf.Knockout(source="image", target="question", layers=[4], heads=[1]),),
    "bias": lambda prompts: (mmf.Bias(source="image", target="last", layers=range(3, 6), value=1.5, heads=[0, 2]),),
    "patch": lambda prompts: (mmf.Patch(at="image", site="mlp", layers=[1, 2], value=mmf.values.zeros()),),
    "from_run": lambda prompts: (mmf.Patch(at="image", layers=[3], value=mmf.values.from_run(prompts[1])),),
    "embed": lambda prompts: (mmf.Patch(at="image", site="embed", value=mmf.values.noise(0.5, seed=1)),),
    "skip": lambda prompts: (mmf.Skip(layers=[2]),),
    "skip_image": lambda prompts: (mmf.Skip(layers=[2], at="image"),),
    "zeroed": lambda prompts: (mmf.ZeroWeights(source="image", target="question", layers=[1]),),
    "himap": lambda prompts: (mmf.HiMAP(k1=2, k2=4),),
    "mask": lambda prompts: (mmf.FastV(k=4, mode="mask"),),
    "zip": lambda prompts: (mmf.prune.VisionZip(dominant=12, contextual=4),),
    "recycling": lambda prompts: (mmf.prune.SparseVLM(layers=(2, 5), keep=(0.5, 0.25)),),
    "waiting": lambda prompts: (
        mmf.prune.VisiPruner(first_layer=2, fires_below=0.9999, keep_above=0.0, calm_above=-1.0),
    ),
    "mine": lambda prompts: (mmf.prune.Prune(own=[mmf.prune.Stage(layer=2, keep=0.5, rank=longest, reads="")]),),
    "together": lambda prompts: (mmf.Skip(layers=[7]), mmf.Knockout(source="image", target="last", layers=[4])),
}


def keep_all(seen):
    return torch.ones(len(seen.image))


def breaks(seen):
    raise RuntimeError("no such thing")


def longest(seen):
    """A method of one's own travels too."""
    return seen.hidden[seen.image].norm(dim=-1)
