"""What is published: wheel and sdist, installed outside of the repository, and run there as a newcomer would."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from kit.recorded import compared

import nnsight_mmflow as mmf

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MINUTES = 60 * 10


def ran(*command, cwd, **more):
    """What a command printed; it is shown if it fails."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is built of it; the tree stays as it is."""
    folder = tmp_path_factory.mktemp("built")
    skip = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "__pycache__", "build", ".hypothesis", "mmflow-*")
    shutil.copytree(ROOT, folder / "tree", ignore=skip)
    make = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    ran(sys.executable, "-c", make, cwd=folder / "tree")
    sdist = next(folder.glob("*.tar.gz"))
    wheel = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", folder, sdist)
    ran(*wheel, cwd=folder)
    return sdist, next(folder.glob("*.whl"))


def names_in(sdist):
    with tarfile.open(sdist) as opened:
        return {entry.name.split("/", 1)[1] for entry in opened if entry.isfile()}


def test_the_sdist_holds_the_repository(built):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert sorted(set(listed.stdout.split("\n")) - {""} - names_in(built[0])) == []
    assert not [name for name in names_in(built[0]) if name.endswith(".pyc") or name.startswith((".venv", ".git/"))]


def test_the_wheel_of_the_sdist_holds_every_module_and_what_they_read(built):
    with zipfile.ZipFile(built[1]) as opened:
        names = set(opened.namelist())
        told = opened.read(next(name for name in names if name.endswith("METADATA"))).decode()
    for folder in ("adapters", "patterns"):
        wanted = {f"nnsight_mmflow/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.py")}
        assert wanted - names == set()
    here = ROOT / "nnsight_mmflow"
    files = [path for path in here.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    wanted = {str(path.relative_to(ROOT)) for path in files}
    assert wanted - names == set()
    assert {"nnsight_mmflow/py.typed", "nnsight_mmflow/show/pages/page.js"} <= wanted
    assert "nnsight_mmflow/show/pages/page.css" in wanted
    for line in (
        f"Version: {PROJECT['version']}",
        "License-Expression: MIT",
        "Author: nnsight_mmflow developers",
        "Classifier: Typing :: Typed",
        "Provides-Extra: all",
        "Requires-Dist: jaxtyping>=0.3",
    ):
        assert f"\n{line}\n" in told


def test_one_version():
    assert mmf.__version__ == version("nnsight-mmflow")
    assert f"\n## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_extra_all_holds_the_extras():
    extras = {name: wanted for name, wanted in PROJECT["optional-dependencies"].items() if name != "test"}
    named = extras.pop("all")[0].partition("[")[2].rstrip("]").split(",")
    assert sorted(named) == sorted(extras)
    readme = (ROOT / "README.md").read_text()
    assert [name for name in (*extras, "all") if f"| `{name}` |" not in readme] == []


def environment(folder, wheel):
    """A new environment that holds the wheel, and finds what it depends on where these tests do; nothing is fetched."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    ran(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=folder)
    beside = [path for path in sys.path if path.endswith("site-packages")]
    next(folder.glob("lib/python*/site-packages")).joinpath("beside.pth").write_text("\n".join(beside))
    return folder / "bin"


def are_used(told):
    """What the two commands say, in whatever way they were run."""
    assert "image->last: lowest at layer 4" in told
    assert "written to mmflow-flow" in told
    assert ": all that applies passed" in told
    assert told.count(" pass ") > 15


@pytest.mark.slow
def test_the_wheel_runs_outside_the_repository(built, tmp_path):
    """Both commands in one process: most of the time goes into imports."""
    folder = environment(tmp_path / "fresh", built[1])
    assert "image tokens" in ran(folder / "mmflow", "--help", cwd=tmp_path)
    code = (
        "import nnsight_mmflow as mmf; from nnsight_mmflow.command_line import main;"
        "print(mmf.__version__, mmf.__file__);"
        "print(main(['flow', '--window', '1', '--limit', '12']), main(['check', 'nano']))"
    )
    told = ran(folder / "python", "-c", code, cwd=tmp_path)
    assert told.startswith(f"{PROJECT['version']} {tmp_path / 'fresh'}")
    are_used(told)
    assert (tmp_path / "mmflow-flow" / "flow.png").stat().st_size > 10_000


def lines_of_the_readme(python, folder):
    """The numbers of the README's ten lines and of a HiMAP generation, run by a Python outside the repository."""
    (folder / "kit").mkdir(parents=True)
    shutil.copy(ROOT / "README.md", folder)
    for name in ("ten_lines.py", "recorded.py"):
        shutil.copy(ROOT / "tests" / "kit" / name, folder / "kit")
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = ran(python, "-W", "error::FutureWarning", "-m", "kit.ten_lines", "README.md", cwd=folder, env=alone)
    return json.loads(next(line for line in told.splitlines() if line.startswith("{")))


@pytest.mark.install
def test_the_wheel_installs_with_what_it_depends_on(built, tmp_path):
    """As a newcomer's pip resolves it: the newest of everything that pyproject allows; the same numbers as here.

    torch alone is pinned: its newest build may be gigabytes of CUDA.
    """
    venv.create(tmp_path / "fresh", with_pip=True)
    folder = tmp_path / "fresh" / "bin"
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    torch = next(line for line in pins if line.startswith("torch=="))
    ran(folder / "python", "-m", "pip", "install", "-q", built[1], torch, cwd=tmp_path, timeout=MINUTES)
    wanted = lines_of_the_readme(sys.executable, tmp_path / "here")
    assert len(wanted["generation"]["HiMAP"]["ids"]) > 8
    assert compared(lines_of_the_readme(folder / "python", tmp_path / "there"), wanted)[0] == {}
    told = ran(folder / "mmflow", "flow", "--window", "1", cwd=tmp_path)
    are_used(told + ran(folder / "mmflow", "check", "nano", cwd=tmp_path))
    where = ran(folder / "python", "-c", "import nnsight_mmflow as m; print(m.__version__, m.__file__)", cwd=tmp_path)
    assert where.startswith(f"{PROJECT['version']} {tmp_path / 'fresh'}")
