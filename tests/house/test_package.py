"""What is installed, what is imported when, and what may run on a server."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import nnsight_mmflow as mmf

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the tree, so that nothing is left in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    skip = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "__pycache__", "build", ".hypothesis", "mmflow-*")
    shutil.copytree(ROOT, tree, ignore=skip)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", folder, tree]
    subprocess.run([str(part) for part in command], check=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_and_nothing_beside_it(wheel):
    with zipfile.ZipFile(wheel) as opened:
        sizes = {entry.filename: entry.file_size for entry in opened.infolist()}
    tops = {name.split("/")[0] for name in sizes}
    assert tops == {"nnsight_mmflow", next(top for top in tops if top.endswith(".dist-info"))}
    for part in ("adapters/llava.py", "patterns/knockout.py", "nano/data/config.json", "command_line/flow.py"):
        assert f"nnsight_mmflow/{part}" in sizes
    assert sizes["nnsight_mmflow/nano/data/model.safetensors"] <= 12_000_000
    for folder in ("adapters", "patterns"):
        for path in (ROOT / folder).glob("*.py"):
            assert f"nnsight_mmflow/{folder}/{path.name}" in sizes
    for path in (ROOT / "nnsight_mmflow").rglob("*.py"):
        assert str(path.relative_to(ROOT)) in sizes


def test_the_wheel_works_alone(wheel, tmp_path):
    """Unpacked somewhere else, the wheel's own files serve, not the tree's."""
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tmp_path)
    code = (
        "import nnsight_mmflow as m, nnsight_mmflow.adapters as a, nnsight_mmflow.patterns as p;"
        "print(m.__file__, a.__file__, p.__file__)"
    )
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; {code}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()
    assert all(path.startswith(str(tmp_path)) for path in shown)


def test_nothing_named_plain_adapters_is_importable():
    code = "import importlib.util as u; print(u.find_spec('adapters'), u.find_spec('patterns'))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert shown.stdout.split() == ["None", "None"]


@pytest.mark.parametrize(
    "code", ["import nnsight_mmflow", "import nnsight_mmflow.command_line as c; c.build_parser().format_help()"]
)
def test_importing_loads_nothing_heavy(code):
    heavy = ("torch", "transformers", "nnsight", "pandas", "numpy", "matplotlib", "PIL", "pyarrow")
    code = f"import sys; {code}; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert shown.stdout.strip() == "[]"


def test_every_public_name_resolves_and_others_are_errors():
    for name in mmf.__all__:
        assert getattr(mmf, name) is not None
    with pytest.raises(AttributeError, match="nnsight_mmflow has no 'Knockut'; it has .*Knockout"):
        _ = mmf.Knockut


def test_a_graph_travels_without_its_weights(graph):
    kept = graph.__getstate__()
    assert "adapter" not in kept
    assert "processor" not in kept
    assert {"layers", "unembed", "n_layers", "n_heads"} <= set(kept)


def test_tested_versions_are_pinned_and_within_the_ranges():
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
    tested = {
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "nnsight": "0.8.1",
        "transformer-lens": "4.3.0",
        "circuitsvis": "1.43.3",
        "jaxtyping": "0.3.11",
    }
    assert {name: pins[name] for name in tested} == tested
    assert any(line.startswith("pillow") for line in PROJECT["project"]["dependencies"])
    assert not any(line.startswith("torchvision") for line in PROJECT["project"]["dependencies"])
