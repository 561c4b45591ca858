"""The house: arrows point one way, no circle, few modules at the root, and what is asked of a higher room exists."""

import shutil
import subprocess
import sys
from pathlib import Path

from kit.order import FIRST, QUICK

from nnsight_mmflow._later import WHERE, later

ROOT = Path(__file__).parents[2]
AT_THE_ROOT = 11  # the package's own __init__, and ten beside it


def assembled(folder):
    """The package as it is installed: adapters and patterns inside."""
    shutil.copytree(ROOT / "nnsight_mmflow", folder / "nnsight_mmflow", ignore=shutil.ignore_patterns("data", "*.js"))
    (folder / "nnsight_mmflow" / "data").mkdir(exist_ok=True)
    shutil.copytree(ROOT / "nnsight_mmflow" / "data", folder / "nnsight_mmflow" / "data", dirs_exist_ok=True)
    for part in ("adapters", "patterns"):
        shutil.copytree(ROOT / part, folder / "nnsight_mmflow" / part)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(folder):
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True)


def test_contracts_are_kept(tmp_path):
    done = lint(assembled(tmp_path))
    assert done.returncode == 0, done.stdout


def test_planted_an_arrow_upwards_is_found(tmp_path):
    folder = assembled(tmp_path)
    file = folder / "nnsight_mmflow" / "spans" / "windows.py"
    file.write_text(file.read_text() + "\n\ndef planted():\n    from nnsight_mmflow.show import curves\n")
    done = lint(folder)
    assert done.returncode == 1
    assert "nnsight_mmflow.spans.windows -> nnsight_mmflow.show" in done.stdout


def test_few_modules_lie_at_the_root():
    assert len(list((ROOT / "nnsight_mmflow").glob("*.py"))) <= AT_THE_ROOT


def test_what_is_named_quick_or_first_is_there():
    tests = ROOT / "tests"
    files = [tests / folder / f"test_{name}.py" for folder, names in QUICK.items() for name in names.split()]
    assert [str(file) for file in files if not file.exists()] == []
    assert [folder for folder in QUICK if not (tests / folder).is_dir()] == []
    told = "".join(file.read_text() for file in tests.glob("*/test_*.py"))
    assert [name for name in FIRST if f"def {name}(" not in told] == []


def test_what_is_asked_of_a_higher_room_is_there():
    assert all(callable(later(name)) for name in WHERE)


def test_every_folder_is_packed_and_says_what_it_holds():
    import tomllib

    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    for top, package in (
        ("nnsight_mmflow", "nnsight_mmflow"),
        *((p, f"nnsight_mmflow.{p}") for p in ("adapters", "patterns")),
    ):
        for init in (ROOT / top).rglob("__init__.py"):
            name = ".".join([package, *init.parent.relative_to(ROOT / top).parts])
            assert name in packed, f"pyproject.toml does not pack {name}"
            assert not init.read_text().startswith('"""To be said'), name
