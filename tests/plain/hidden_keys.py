"""No API key in any text, chain or frame of an error, in what is printed, or in what is written."""

import json
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import nnsight
import pytest

import nnsight_mmflow as mmf
from nnsight_mmflow.command_line import main
from nnsight_mmflow.nano.questions import FOLDER
from nnsight_mmflow.remote import hidden_keys as _hidden_keys
from nnsight_mmflow.remote import ready
from nnsight_mmflow.remote.hidden_keys import HIDDEN, without_keys

KEY = "ndif-7c1f9b2e-very-private"
QUIET = {"progress": False, "report": str}
nnsight.register(__name__)  # as in remote_server.py: pytest's modules do not travel by themselves


class Echo(BaseHTTPRequestHandler):
    """A server that refuses every key, and says which it was: in its body, its status line and its headers."""

    def answer(self):
        key = self.headers.get("ndif-api-key", "")
        if self.path == "/env":
            return self.say(200, {"packages": {}})
        return self.say(401, {"detail": f"the API key {key!r} is malformed: {key}"}, key)

    do_GET = do_POST = answer

    def say(self, status, content, key=""):
        length = int(self.headers.get("content-length") or 0)
        self.rfile.read(length)
        body = json.dumps(content).encode()
        self.send_response(status, f"refused {key}")
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.send_header("x-key", key)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *given):
        pass


@pytest.fixture(scope="module")
def host():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def there(host, monkeypatch):
    """nano on that server, asked with the key."""
    from nnsight.modeling import huggingface
    from nnsight.schema.config import CONFIG

    monkeypatch.setitem(huggingface._ID_CACHE, str(FOLDER), str(FOLDER))
    monkeypatch.setattr(CONFIG.API, "HOST", host)
    monkeypatch.setattr(CONFIG.API, "APIKEY", KEY)
    monkeypatch.setattr(ready, "READY", {})
    return mmf.load(str(FOLDER), remote=True)


def everything(error):
    """All that an error says and holds: its text, its chain, the locals of its frames, whoever prints them."""
    told, seen = [], set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        told += [*traceback.format_exception(one), repr(one), str(one), repr(one.args), repr(vars(one))]
        told += getattr(one, "__notes__", [])
        waiting += [one.__cause__, one.__context__]
        for frame, _ in traceback.walk_tb(one.__traceback__):
            if frame.f_code.co_filename != __file__:
                held = [value for value in frame.f_locals.values() if isinstance(value, str | bytes | dict | list)]
                told += map(repr, held)
    return "\n".join(told)


def sends(graph, tmp_path):
    """Every way in which something is sent to a server."""
    prompt = mmf.nano.prompts(graph, 1)[0]

    def traced():
        with graph.trace(prompt):
            logits = graph.unembed.output.save()
        return logits

    def generated():
        with graph.generate(prompt, max_new_tokens=1) as tracer:
            ids = tracer.result.save()
        return ids

    def patterned():
        with graph.trace(prompt, mmf.Knockout(source="image", target="last", layers=3)):
            logits = graph.unembed.output.save()
        return logits

    def sent():
        with graph.trace(prompt, blocking=False) as tracer:
            logits = graph.unembed.output.save()
        return logits, tracer

    return {
        "trace": traced,
        "generate": generated,
        "pattern": patterned,
        "sent": sent,
        "flow": lambda: mmf.flow(graph, prompt, window=3, only_correct=False, **QUIET),
        "job": lambda: mmf.flow(graph, prompt, window=3, folder=tmp_path, blocking=False, only_correct=False, **QUIET),
        "lens": lambda: mmf.lens(graph, prompt, progress=False),
        "lens, a job": lambda: mmf.lens(graph, prompt, blocking=False, **QUIET).result(),
        "attention": lambda: mmf.attention(graph, prompt),
        "contributions": lambda: mmf.contributions(graph, prompt, progress=False),
        "prune_report": lambda: mmf.prune_report(graph, [prompt], [mmf.FastV(k=4)], timed=0, **QUIET),
        "saliency": lambda: mmf.saliency(graph.at(True, trusted=True), prompt, progress=False),
        "fetch": lambda: graph.backend_there(False, "some-job")(None),
        "edit": lambda: mmf.edit(graph.at(True, trusted=True), mmf.nano.edits(graph, 1)[0], 4, **QUIET),
    }


def leaks(graph, tmp_path, capfd):
    """The ways after which the key stands somewhere; each must end in an error."""
    found = []
    for name, send in sends(graph, tmp_path).items():
        with pytest.raises(Exception) as caught:  # noqa: PT011 - any: what it holds is looked at
            send()
        shown = capfd.readouterr()
        if KEY in everything(caught.value) + shown.out + shown.err:
            found.append(name)
    return found


def test_a_refused_key_is_nowhere(there, tmp_path, capfd):
    assert leaks(there, tmp_path, capfd) == []
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    assert KEY not in repr(there) + repr(vars(there))


def test_experiments_say_that_the_key_is_refused(there):
    with pytest.raises(mmf.ServerError, match="the server refuses the API key") as caught:
        mmf.lens(there, mmf.nano.prompts(there, 1)[0], progress=False)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_the_table_can_fail(there, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(_hidden_keys, "without_keys", lambda text: text)
    monkeypatch.setattr(ready, "without_keys", lambda text: text)
    monkeypatch.setattr("nnsight_mmflow.runs.experiment.without_keys", lambda text: text)
    monkeypatch.setattr(_hidden_keys, "hiding", lambda call: call)
    assert set(leaks(there, tmp_path, capfd)) >= {"trace", "generate", "sent", "fetch"}


@pytest.mark.parametrize(
    "key", [f"{KEY}\n", f" {KEY}", f"{KEY} x", f"schl\u00fcssel-{KEY}", f"{KEY}\r\nx-other: 1", f"\t{KEY}"]
)
def test_a_malformed_key_is_not_sent(there, tmp_path, capfd, monkeypatch, key):
    """A header cannot hold it; what libraries say of it holds all of it."""
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", key)
    prompt = mmf.nano.prompts(there, 1)[0]
    for send in (lambda: there.trace(prompt), lambda: mmf.lens(there, prompt, progress=False)):
        with pytest.raises(mmf.ServerError, match="the API key is malformed.*was not sent") as caught:
            send()
        assert KEY not in everything(caught.value)


def test_the_command_line_shows_none(there, capfd, tmp_path, monkeypatch):
    for more in ([], ["--debug"]):
        assert main(["lens", "--model", "nano", "--remote", "--limit", "1", "--out", str(tmp_path), *more]) == 2
        shown = capfd.readouterr()
        assert KEY not in shown.out + shown.err
        assert "mmflow lens: " in shown.err


def test_a_host_that_holds_the_key_is_not_shown(monkeypatch):
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", KEY)
    monkeypatch.setattr(CONFIG.API, "HOST", f"http://user:{KEY}@127.0.0.1:9")
    monkeypatch.setattr(ready, "READY", {})
    graph = mmf.load(str(FOLDER), remote=True)
    with pytest.raises(mmf.ServerError, match="no NDIF server answers") as caught:
        graph.trace(mmf.nano.prompts(graph, 1)[0])
    assert HIDDEN in str(caught.value)
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_short_words_stay(monkeypatch):
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", "a")
    assert without_keys("a banana") == "a banana"
    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    assert without_keys("a banana") == "a banana"
    monkeypatch.setattr(CONFIG.API, "APIKEY", "two words of it")
    assert "words" not in without_keys("it echoes words")
