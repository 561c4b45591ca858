"""A stand-in for NDIF: a process of its own, on loopback, without nnsight_mmflow. Test equipment, no product.

Run: python tests/kit/ndif_server.py PORT FOLDER..., for one server. Or without arguments, for several: each line of
JSON that it reads (port, folders, log, working directory) starts one, whose process number comes back. These are forks,
so that the imports are paid once, and end with this process.

It speaks what nnsight 0.8.1's client speaks, and runs blocks with nnsight's own deserialisation, each on the model that
the request names: one of the folders (of `save_pretrained`). What NDIF does not have cannot be imported here.

It does as ndif 0.1.2: keys of two kinds, and for an ordinary one copies of what is read, and modules without weights;
weights that ask for no gradients, in bfloat16, or in float32 as `ndif deploy --dtype float32` has them; refusals and
failures in its own words; results by a link above 8 MiB.
"""

import importlib
import sys

HIDDEN = ("nnsight_mmflow", "jaxtyping", "beartype", "transformer_lens", "circuitsvis")


class Hidden:
    """Import fails for what NDIF does not have, as if it were not installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Hidden)

# nnsight mounts .save on every object, which breaks the classes that anyio defines afterwards
importlib.import_module("anyio._backends._asyncio")
importlib.import_module("anyio.abc")

import asyncio  # noqa: E402
import contextlib  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import linecache  # noqa: E402
import os  # noqa: E402
import pickle  # noqa: E402
import signal  # noqa: E402
import threading  # noqa: E402
import traceback  # noqa: E402
import uuid  # noqa: E402
from importlib.metadata import version  # noqa: E402

import nnsight  # noqa: E402
import torch  # noqa: E402
import uvicorn  # noqa: E402
import zstandard  # noqa: E402
from fastapi import FastAPI, Form, HTTPException, Request, Response, UploadFile, WebSocket  # noqa: E402
from fastapi.responses import PlainTextResponse  # noqa: E402
from nnsight import TransformersModel  # noqa: E402
from nnsight.intervention.envoy import Envoy  # noqa: E402
from nnsight.intervention.interleaver import Mediator  # noqa: E402
from nnsight.schema.request import RequestModel  # noqa: E402
from nnsight.schema.response import ResponseModel, Status  # noqa: E402
from nnsight.tracing.tracer import _saves, dec, inc  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402

KEY = "5ec2e700-0000-4000-8000-00000000f1e5"  # NDIF trusts it: its blocks run in the model's process
ORDINARY_KEY = "5ec2e700-0000-4000-8000-00000000f1e6"  # its blocks run in a process beside
RECONNECTING = "Service temporarily unavailable: compute backend is reconnecting. Please try again in a few minutes."
LATER = "Please try again later. Sorry for the inconvenience."
FAILS = {  # by name, how a job ends that is not its block's fault
    "evicted": f"Replica was evicted while processing your request. {LATER}",
    "starting": f"Error starting model. {LATER}",
    "provisioning": f"Error provisioning model. {LATER}",
    "submitting": f"Error submitting request to model deployment. {LATER}",
    "critical": f"Critical server error occurred. {LATER}",
    "cancelled": "Your job was cancelled or preempted by the server.",
    "operator": "Request cancelled by operator.",
    "timeout": "Your job exceeded the execution timeout of 3600.0s.",
    "too_big": "Could not deploy this model. CANT_ACCOMMODATE: not enough memory on any node.",
    "payload": "Your request payload could not be read (ZstdError: bad). It may be truncated or corrupted in transit,"
    " or compressed differently than the request declared. Re-sending it usually resolves this; if it persists, check"
    " that the client and server nnsight versions match.",
    "architecture": "The model architecture on this server doesn't match the one your code was traced against: it has"
    " no module at 'Module:model.model.visual'.\n\nThis usually means the package versions differ.",
}
INLINE, PART = 8 << 20, 1 << 20
PORT, FOLDERS = 0, []
app = FastAPI()
models, sessions, stored, results = {}, {}, {}, {}
one_at_a_time = threading.Lock()
seen = {"split": False, "requests": 0, "bytes_up": 0, "bytes_down": 0, "die_before": None, "by_url": False}
seen |= {"room": 0, "ends_after": -1, "float32": 1, "parts": 0, "fails": "", "reconnecting": 0, "expired": 0}
torch.set_num_threads(1)


def across(value):
    """A value as it comes out of another process."""
    return pickle.loads(pickle.dumps(value))


def split_handle(self, provider, value, whole=Mediator.handle):
    """As NDIF runs ordinary users' blocks, in a runner apart from the model: what is read is a copy, written back."""
    pending = self.pending
    if not seen["split"] or pending is None or pending.provider != provider:
        return whole(self, provider, value)
    return across(whole(self, provider, across(value)))


def split_call(self, *args, hook=False, whole=Envoy.__call__, **kwargs):
    """A module that a block calls runs in the model's process."""
    if not (seen["split"] and self.interleaver.interleaving):
        return whole(self, *args, hook=hook, **kwargs)
    return across(whole(self, *across(args), hook=hook, **across(kwargs)))


def split_attribute(self, name, whole=Envoy.__getattr__):
    """Through an envoy too, a block sees no weight."""
    found = whole(self, name)
    return found.to("meta") if isinstance(found, torch.Tensor) and in_a_runner() else found


def split_module(self):
    """What a block sees of a module: the runner's own, built on the meta device."""
    return empty.get(self.path, self.__dict__["_module"]) if in_a_runner() else self.__dict__["_module"]


def in_a_runner():
    """Whether the caller of the caller is an ordinary key's block: code of neither nnsight nor this file."""
    return seen["split"] and not sys._getframe(2).f_code.co_filename.startswith(OUTSIDE)


OUTSIDE = (os.path.dirname(nnsight.__file__), __file__)
Mediator.handle, Envoy.__call__, Envoy.__getattr__ = split_handle, split_call, split_attribute
Envoy._module = property(split_module, lambda self, module: self.__dict__.update(_module=module))
empty = {}  # by path, the modules without weights of the model that runs


def model_of(folder):
    """The model of a folder, loaded once."""
    dtype = torch.float32 if seen["float32"] else torch.bfloat16
    if (folder, dtype) not in models:
        loaded = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)
        loaded.get_decoder().layers[-1].register_forward_pre_hook(check_room, with_kwargs=True)
        processor = AutoProcessor.from_pretrained(folder, backend="pil")
        model = TransformersModel(loaded, task="image-text-to-text", processor=processor)
        with torch.device("meta"):
            bare = AutoModelForImageTextToText.from_config(loaded.config, dtype=dtype)
        models[folder, dtype] = model, {f"model.{name}" if name else "model": one for name, one in bare.named_modules()}
    return models[folder, dtype]


def check_room(module, arguments, named):
    """As a device does that is too small for so many positions."""
    if seen["room"] and arguments[0].shape[1] > seen["room"]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def execute(request, blob, split):
    """The saved values of a request, as the bytes that go back."""
    folder = json.loads(request.model_key.split(":", 1)[1])["repo_id"]
    with one_at_a_time:
        model, without_weights = model_of(folder)
        empty.clear()
        empty.update(without_weights)
        seen["split"] = split
        model._remoteable_set_env(request.env)
        lines = dict(linecache.cache)
        try:
            tracer = RequestModel.deserialize(blob, model._remoteable_persistent_objects(), compress=request.compress)
            inc()
            try:
                tracer.execute(tracer.info.code)
                marked = _saves()
                saved = {k: v for k, v in tracer.info.frame.f_locals.items() if id(v) in marked}
            finally:
                dec()
        finally:
            linecache.cache.clear()
            linecache.cache.update(lines)
            seen["split"] = False
    with io.BytesIO() as file:
        torch.save(saved, file)
        content = file.getvalue()
    return zstandard.ZstdCompressor(level=6).compress(content) if request.compress else content


def work(job, request, blob, split):
    def tell(status, description="", data=None):
        told = ResponseModel(id=job, status=status, description=description, data=data)
        stored[job] = told
        if request.session_id in sessions:
            loop, queue = sessions[request.session_id]
            loop.call_soon_threadsafe(queue.put_nowait, told)

    folder = json.loads(request.model_key.split(":", 1)[1])["repo_id"]
    if folder not in FOLDERS:  # it is not refused when it is asked for, but deployed on demand
        tell(Status.PROVISIONING, "Model Provisioning...")
        tell(Status.ERROR, f"Could not deploy this model. 404 Client Error. Repository Not Found for url: {folder}.")
        return
    fails = "timeout" if not seen["ends_after"] else seen["fails"]
    if fails:
        tell(Status.ERROR, FAILS[fails])
        return
    tell(Status.RUNNING, "Your job has started running.")
    try:
        seen["ends_after"] -= 1
        content = execute(request, blob, split)
    except BaseException:
        tell(Status.ERROR, traceback.format_exc())
        return
    seen["bytes_down"] += len(content)
    if seen["by_url"] or len(content) > INLINE or request.session_id not in sessions:
        results[job] = content
        tell(Status.COMPLETED, data=f"http://127.0.0.1:{PORT}/result/{job}")
    else:
        tell(Status.COMPLETED, data=content)


@app.post("/request")
async def take(request: Request, blob: UploadFile, data: str = Form()):
    if seen["reconnecting"]:
        raise HTTPException(503, RECONNECTING)
    content = await blob.read()
    if seen["parts"] and len(content) > PART:  # nnsight mounts .save on what anyio 4.15 opens such files with
        raise HTTPException(400, "There was an error parsing the body")
    key = request.headers.get("ndif-api-key")
    if not key:
        where = "Please visit https://login.ndif.us/ to create a new one."
        raise HTTPException(401, f"Missing or invalid API key. {where}")
    try:
        uuid.UUID(key)
    except ValueError:
        form = "API keys must be in the format: xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx."
        raise HTTPException(400, f"Invalid API key format: '{key}'. {form}") from None
    if key not in (KEY, ORDINARY_KEY):
        raise HTTPException(403, "Invalid API key.")
    asked = RequestModel.model_validate_json(data)
    seen["requests"] += 1
    seen["bytes_up"] += len(content)
    if seen["die_before"] is not None and seen["requests"] > seen["die_before"]:
        os._exit(1)
    job = uuid.uuid4().hex
    stored[job] = ResponseModel(id=job, status=Status.RECEIVED)
    threading.Thread(target=work, args=(job, asked, content, key == ORDINARY_KEY), daemon=True).start()
    return Response(ResponseModel(id=job, status=Status.RECEIVED).model_dump_json(), media_type="application/json")


@app.websocket("/subscribe")
async def subscribe(socket: WebSocket):
    await socket.accept()
    name, queue = uuid.uuid4().hex, asyncio.Queue()
    sessions[name] = (asyncio.get_running_loop(), queue)
    await socket.send_json({"session_id": name})
    while True:
        told = await queue.get()
        if isinstance(told.data, bytes):
            await socket.send_bytes(told.pickle())
        else:
            await socket.send_text(told.model_dump_json())
        if told.status in (Status.COMPLETED, Status.ERROR):
            break
    sessions.pop(name, None)
    await socket.close()


@app.get("/response/{job}")
def response(job: str):
    if job not in stored:
        raise HTTPException(404, f"No response for request {job}.")
    told = stored[job]
    return Response(told.model_dump_json(), media_type="application/json")


@app.get("/result/{job}")
def result(job: str):
    if seen["expired"]:  # an hour later
        told = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
        return Response(told, 403, media_type="application/xml")
    return Response(results[job], media_type="application/octet-stream")


@app.get("/env")
def env():
    if seen["reconnecting"]:
        raise HTTPException(503, RECONNECTING)
    names = ("torch", "transformers", "nnsight", "numpy", "einops", "accelerate")
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except Exception:
            continue
    return {"python_version": sys.version, "packages": found}


@app.get("/status")
def status():
    def entry(folder):
        return {
            "model_key": f'nnsight.modeling.transformers.TransformersModel:{{"repo_id": "{folder}"}}',
            "repo_id": folder,
            "revision": "main",
            "deployment_level": "HOT",
            "application_state": "RUNNING",
            "task": "image-text-to-text",
        }

    return {"deployments": {folder: entry(folder) for folder in FOLDERS}}


@app.get("/whoami")
def whoami():
    return {"email": "tests", "tags": []}


@app.get("/ping", response_class=PlainTextResponse)
def ping():
    return "pong"


@app.get("/test/imports/{name}", response_class=PlainTextResponse)
def imports(name: str):
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        return str(error)
    return "imported"


@app.get("/test/seen")
def counts():
    return seen


@app.get("/test/set/{name}/{value}")
def change(name: str, value: str):
    seen[name] = int(value) if value.lstrip("-").isdigit() else value.strip("'")
    return seen


def serve(port, folders):
    """One server: its own models, sessions and counts."""
    global PORT, FOLDERS
    PORT, FOLDERS = port, folders
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning")


def forked(port, folders, log, where):
    """A server in a fork of this process."""
    os.chdir(where)
    with open(log, "a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    serve(port, folders)


def main():
    """One server by the arguments, or one for each line that comes."""
    if sys.argv[1:]:
        serve(int(sys.argv[1]), sys.argv[2:])
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who ended leaves nothing behind
    started = []
    for line in sys.stdin:
        process = os.fork()
        if not process:
            forked(**json.loads(line))
            os._exit(0)
        started.append(process)
        print(process, flush=True)  # noqa: T201
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
