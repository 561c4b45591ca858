"""What NDIF's server needs, installed where it is missing: two Debian packages, and a virtual environment of its own.

The environment holds neither nnsight_mmflow nor jaxtyping: what a trace needs has to travel.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

DEBIAN = {"redis-server": "redis-server", "initdb": "postgresql"}  # program: package
NDIF = "ndif==0.1.2"  # asks for Python 3.12 and runs on 3.11
TORCH = "torch==2.13.0"
BESIDE = (  # what ndif's metadata names for its API, Ray and Postgres, and moto, which stands for S3
    "nnsight==0.8.1",
    "transformers==5.17.0",  # with 5.23 `ndif deploy` finds no processor
    "ray[default]==2.60.0",
    "accelerate",
    "asyncpg",
    "boto3",
    "click",
    "einops",
    "fastapi",
    "gunicorn",
    "moto[server]",
    "numpy",
    "peft",
    "pillow",
    "pydantic",
    "python-dotenv",
    "python-multipart",
    "pyyaml",
    "redis",
    "uvicorn[standard]",
    "zstandard",
)


class NotInstalled(Exception):
    """Something is missing that could not be installed; the text says what to type."""


def program(name: str) -> str | None:
    """Where a program is; Debian keeps most of PostgreSQL's off the path."""
    kept = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(kept[-1]) if kept else None)


def install_programs() -> None:
    """redis and PostgreSQL, by apt-get where they are missing."""
    missing = [package for name, package in DEBIAN.items() if program(name) is None]
    if not missing:
        return
    asked = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NotInstalled(f"{' and '.join(missing)} are missing: `sudo {' '.join(asked)}`, then run this again.")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], asked):
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def install_server(folder: Path) -> Path:
    """The server's virtual environment in `folder`, filled once; returns its folder of programs."""
    where, wanted = folder / "server", "\n".join([sys.version, NDIF, TORCH, *BESIDE])
    filled = where / "filled_with.txt"
    if filled.exists() and filled.read_text() == wanted:
        return where / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", where], check=True)
    pip = [where / "bin" / "pip", "install", "-qq"]
    # The CPU build, where pip is told of one (PIP_FIND_LINKS), else what the index has: with CUDA, gigabytes.
    if subprocess.run([*pip, "--no-index", "--no-deps", TORCH], capture_output=True).returncode:
        subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, "--no-deps", "--ignore-requires-python", NDIF], check=True)
    subprocess.run([*pip, TORCH, *BESIDE], check=True)
    filled.write_text(wanted)
    return where / "bin"


def versions(bin_folder: Path) -> dict[str, str]:
    """What is installed on the server, as its Python says."""
    script = (
        "import json, platform; from importlib.metadata import version;"
        "names = 'ndif nnsight transformers torch ray anyio'.split();"
        "print(json.dumps({'python': platform.python_version(), **{name: version(name) for name in names}}))"
    )
    done = subprocess.run([bin_folder / "python", "-c", script], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)
