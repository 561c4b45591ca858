"""A stand-in for NDIF: a process of its own, on loopback, without nnsight_mmflow. Test equipment, no product.

Run: python tests/ndif_server.py PORT FOLDER...

It speaks what nnsight 0.8.1's client speaks, and runs blocks with nnsight's own deserialisation, each on the model that
the request names: one of the folders (of `save_pretrained`). What NDIF does not have cannot be imported here.
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
import io  # noqa: E402
import linecache  # noqa: E402
import os  # noqa: E402
import pickle  # noqa: E402
import threading  # noqa: E402
import traceback  # noqa: E402
import uuid  # noqa: E402
from importlib.metadata import version  # noqa: E402

import torch  # noqa: E402
import uvicorn  # noqa: E402
import zstandard  # noqa: E402
from fastapi import FastAPI, Form, HTTPException, Request, Response, UploadFile, WebSocket  # noqa: E402
from fastapi.responses import PlainTextResponse  # noqa: E402
from nnsight import TransformersModel  # noqa: E402
from nnsight.intervention.interleaver import Mediator  # noqa: E402
from nnsight.schema.request import RequestModel  # noqa: E402
from nnsight.schema.response import ResponseModel, Status  # noqa: E402
from nnsight.tracing.tracer import _saves, dec, inc  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: E402

KEY = "secret-of-the-tests"
PORT, FOLDERS = int(sys.argv[1]), sys.argv[2:]
app = FastAPI()
models, sessions, stored, results = {}, {}, {}, {}
one_at_a_time = threading.Lock()
seen = {"split": False, "requests": 0, "bytes_up": 0, "bytes_down": 0, "die_before": None, "by_url": False}
seen |= {"room": 0, "ends_after": -1}
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


Mediator.handle = split_handle


def model_of(folder):
    """The model of a folder, loaded once."""
    if folder not in models:
        loaded = AutoModelForImageTextToText.from_pretrained(folder).eval()
        loaded.get_decoder().layers[-1].register_forward_pre_hook(check_room, with_kwargs=True)
        processor = AutoProcessor.from_pretrained(folder, backend="pil")
        models[folder] = TransformersModel(loaded, task="image-text-to-text", processor=processor)
    return models[folder]


def check_room(module, arguments, named):
    """As a device does that is too small for so many positions."""
    if seen["room"] and arguments[0].shape[1] > seen["room"]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def execute(request, blob):
    """The saved values of a request, as the bytes that go back."""
    import json

    folder = json.loads(request.model_key.split(":", 1)[1])["repo_id"]
    with one_at_a_time:
        model = model_of(folder)
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
    with io.BytesIO() as file:
        torch.save(saved, file)
        content = file.getvalue()
    return zstandard.ZstdCompressor(level=6).compress(content) if request.compress else content


def work(job, request, blob):
    def tell(status, description="", data=None):
        told = ResponseModel(id=job, status=status, description=description, data=data)
        stored[job] = told
        if request.session_id in sessions:
            loop, queue = sessions[request.session_id]
            loop.call_soon_threadsafe(queue.put_nowait, told)

    tell(Status.RUNNING, "running")
    try:
        if not seen["ends_after"]:
            raise TimeoutError("the job was ended after 3600 s, the time limit")
        seen["ends_after"] -= 1
        content = execute(request, blob)
    except BaseException:
        tell(Status.ERROR, traceback.format_exc())
        return
    seen["bytes_down"] += len(content)
    if seen["by_url"] or request.session_id not in sessions:
        results[job] = content
        tell(Status.COMPLETED, data=f"http://127.0.0.1:{PORT}/result/{job}")
    else:
        tell(Status.COMPLETED, data=content)


@app.post("/request")
async def take(request: Request, blob: UploadFile, data: str = Form()):
    if request.headers.get("ndif-api-key") != KEY:
        raise HTTPException(401, "the API key is not known")
    asked = RequestModel.model_validate_json(data)
    if not any(f'"{folder}"' in asked.model_key for folder in FOLDERS):
        raise HTTPException(404, f"no deployment of {asked.model_key}")
    content = await blob.read()
    seen["requests"] += 1
    seen["bytes_up"] += len(content)
    if seen["die_before"] is not None and seen["requests"] > seen["die_before"]:
        os._exit(1)
    job = uuid.uuid4().hex
    stored[job] = ResponseModel(id=job, status=Status.RECEIVED)
    threading.Thread(target=work, args=(job, asked, content), daemon=True).start()
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
        raise HTTPException(404)
    told = stored[job]
    return Response(told.model_dump_json(), media_type="application/json")


@app.get("/result/{job}")
def result(job: str):
    return Response(results[job], media_type="application/octet-stream")


@app.get("/env")
def env():
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
def change(name: str, value: int):
    seen[name] = value
    return seen


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning")
