"""A hub of model folders on loopback, for HF_ENDPOINT: `python hub.py PORT OWNER/NAME=FOLDER ...`. Test equipment.

It answers what huggingface_hub asks for a model that it reads: what there is, and the files.
"""

import hashlib
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse
from safetensors import safe_open

PORT = int(sys.argv[1])
FOLDERS = {name: Path(folder) for name, _, folder in (one.partition("=") for one in sys.argv[2:])}
app = FastAPI()


def digest(text):
    return hashlib.sha1(text.encode()).hexdigest()


def folder_of(name):
    if name not in FOLDERS:
        raise HTTPException(404, headers={"X-Error-Code": "RepoNotFound"})
    return FOLDERS[name]


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def weights(folder):
    """How many there are: what the server sizes a model by."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as kept:
            for name in kept.keys():  # noqa: SIM118, no mapping
                count = 1
                for size in kept.get_slice(name).get_shape():
                    count *= size
                total += count
    return total


@app.get("/api/models/{owner}/{model}")
@app.get("/api/models/{owner}/{model}/revision/{revision}")
def what_there_is(owner: str, model: str, revision: str = "main"):
    name = f"{owner}/{model}"
    folder, day = folder_of(name), "2026-01-01T00:00:00.000Z"
    total = weights(folder)
    return {
        "_id": digest(name),
        "id": name,
        "modelId": name,
        "author": owner,
        "sha": digest(name),
        "private": False,
        "disabled": False,
        "gated": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "pipeline_tag": "image-text-to-text",
        "library_name": "transformers",
        "createdAt": day,
        "lastModified": day,
        "siblings": [{"rfilename": str(path.relative_to(folder))} for path in files(folder)],
        "safetensors": {"parameters": {"F32": total}, "total": total},
    }


@app.get("/api/models/{owner}/{model}/tree/{revision}")
@app.get("/api/models/{owner}/{model}/tree/{revision}/{path:path}")
def tree(owner: str, model: str, revision: str, path: str = ""):
    folder = folder_of(f"{owner}/{model}")
    if path:
        raise HTTPException(404, headers={"X-Error-Code": "EntryNotFound"})
    named = {str(file.relative_to(folder)): file.stat().st_size for file in files(folder)}
    return [{"type": "file", "oid": digest(name), "size": size, "path": name} for name, size in named.items()]


@app.api_route("/{owner}/{model}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
def file(owner: str, model: str, revision: str, path: str, request: Request):
    name = f"{owner}/{model}"
    folder = folder_of(name).resolve()
    found = (folder / path).resolve()
    if not found.is_file() or not found.is_relative_to(folder):
        raise HTTPException(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": digest(name)})
    told = {"ETag": f'"{digest(name + path)}"', "X-Repo-Commit": digest(name), "Accept-Ranges": "bytes"}
    if request.method == "HEAD":
        return Response(headers={**told, "Content-Length": str(found.stat().st_size)})
    return FileResponse(found, headers=told)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning")
