"""What the remote cases share: the stand-in server, graphs here and there, patterns."""

import contextlib
import functools
import inspect
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import httpx
import nnsight
import pytest
import torch
from kit import tiny
from nnsight.intervention import serialization

import nnsight_mmflow as mmf
from nnsight_mmflow.nano.questions import FOLDER
from nnsight_mmflow.remote import ready
from nnsight_mmflow.remote.place import Traffic

nnsight.register(__name__)  # a user's own module lies on the working path and travels by itself; pytest's does not
KEY, ORDINARY_KEY = (f"5ec2e700-0000-4000-8000-00000000f1e{n}" for n in (5, 6))  # as in ndif_server.py
QUIET = {"progress": False, "report": lambda text: None}


def remember():
    """What nnsight's client does anew for each request it does once here: three quarters of a request's time.

    It reads the source of each function that travels, looks which names that uses, and reads all certificates; and it
    raises and catches an error for each text and number.
    """
    held = {}

    def lines_of(function):
        function = inspect.unwrap(function)
        key = function.__code__, function.__code__.co_filename  # codes of two files may be equal
        if key not in held:
            try:
                held[key] = inspect.getsourcelines(function)
            except OSError:  # made by exec, as dataclasses' methods are
                held[key] = None
        if held[key] is None:
            raise OSError("could not get source code")
        return held[key]

    read = {"getsourcelines": lines_of, "getsource": lambda function: "".join(lines_of(function)[0])}
    serialization.inspect = SimpleNamespace(**{**vars(inspect), **read})
    serialization._function_referenced_names = functools.cache(serialization._function_referenced_names)
    ssl.create_default_context = functools.cache(ssl.create_default_context)
    whole = serialization.CustomCloudPickler.persistent_id

    def of_object(
        pickler, one
    ):  # what has no attributes has no such id: most of the twenty thousand parts of a request
        return None if type(one) in PLAIN else whole(pickler, one)

    serialization.CustomCloudPickler.persistent_id = of_object


PLAIN = {str, tuple, dict, type(None), int, list, bool, bytes, float}
remember()


class Server:
    """The stand-in, started on a free port; it has the models of these folders."""

    def __init__(self, folder, *models):
        with contextlib.closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.models, self.host, self.process = folder, models, f"http://127.0.0.1:{self.port}", None

    def start(self):
        log = self.folder / "server.log"
        given = {"port": self.port, "folders": list(map(str, self.models)), "log": str(log), "where": str(self.folder)}
        origin = forks()
        origin.stdin.write(json.dumps(given) + "\n")
        origin.stdin.flush()
        self.process = int(origin.stdout.readline())
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.host}/ping").text == "pong":
                    return self
            assert self.runs(), log.read_text()
            time.sleep(0.1)
        raise AssertionError("the server did not start")

    def runs(self):
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        return True

    def seen(self):
        return httpx.get(f"{self.host}/test/seen").json()

    def set(self, name, value):
        httpx.get(f"{self.host}/test/set/{name}/{value}")

    def stop(self):
        os.kill(self.process, signal.SIGKILL)
        self.wait()

    def wait(self):
        while self.runs():
            time.sleep(0.05)


@functools.cache
def forks():
    """The process whose forks are the servers: it ends when this one closes its stdin."""
    script = Path(__file__).with_name("ndif_server.py")
    return subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="session")
def deep(tmp_path_factory):
    """The folder of a random model as deep as a 7B one."""
    folder = tmp_path_factory.mktemp("deep")
    tiny.tiny_model(n_layers=32).save_pretrained(folder)
    tiny.tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory, deep):
    made = Server(tmp_path_factory.mktemp("ndif"), FOLDER, deep).start()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def client(server, deep, monkeypatch):
    """nnsight's client, pointed at the server; a folder stands for a Hugging Face id."""
    from nnsight.modeling import huggingface
    from nnsight.schema.config import CONFIG

    for folder in (FOLDER, deep):
        monkeypatch.setitem(huggingface._ID_CACHE, str(folder), str(folder))
    monkeypatch.setattr(CONFIG.API, "HOST", server.host)
    monkeypatch.setattr(CONFIG.API, "APIKEY", KEY)
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    monkeypatch.setattr(ready, "READY", {})


@pytest.fixture(scope="session")
def here():
    return mmf.load("nano")


@pytest.fixture(scope="session")
def there():
    return mmf.load(str(FOLDER), remote=True).at(True, trusted=True)


@pytest.fixture
def beside(client, there, monkeypatch):
    """The graph of an ordinary key: its blocks run in a process beside the model's, here emulated."""
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", ORDINARY_KEY)
    return there.but(trusted=False, traffic=Traffic())


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
    "change": lambda prompts: (mmf.Change(at="image", site="attn", layers=[2, 3], heads=[1], value=halved),),
    "add": lambda prompts: (mmf.Add(at="question", layers=[3], vector=torch.linspace(-1, 1, 128), scale=4),),
    "own": lambda prompts: (Turned(at="image", layers=[2, 3], by=5),),
    "through": lambda prompts: (mmf.Change(at="image", layers=[4], value=autoencoder()),),
    "features": lambda prompts: (
        mmf.Patch(at="image", layers=[4], value=autoencoder(mmf.values.from_run(prompts[1]))),
    ),
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


def halved(values, layer):
    """A change of one's own."""
    return values / (layer + 1)


@dataclass(frozen=True, kw_only=True)
class Turned(mmf.Pattern):
    """A pattern of one's own, with a helper of its module."""

    at: str
    layers: int | Iterable[int]
    by: int
    site: str = "resid"
    when: str = "prefill"

    def change(self, values, layer):
        return turned(values, self.by) + layer


def turned(values, by):
    return values.roll(by, -1)


def autoencoder(edit=None):
    """A small one, of modules; its edit takes some features away."""
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Linear(128, 32), torch.nn.ReLU())
    return mmf.values.through(encoder, torch.nn.Linear(32, 128), edit or torch.zeros_like, features=range(20))


def keep_all(seen):
    return torch.ones(len(seen.image))


def breaks(seen):
    raise RuntimeError("no such thing")


def longest(seen):
    """A method of one's own travels too."""
    return seen.hidden[seen.image].norm(dim=-1)
