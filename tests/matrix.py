"""The package under other releases of what it stands on: `python tests/matrix.py`, or with the names of some sets.

Each set is a new virtual environment that pip fills, and tests/smoke.py in it. `oldest` is what pyproject.toml allows
at least, `newest` what an install without constraints gets, `tested` the constraints of the whole test suite. torch is
taken from the files that pip is told of (PIP_FIND_LINKS), where they hold a CPU build for that Python, so that no
CUDA build of gigabytes is fetched; without one, sources are compiled and nothing is run, and the table says so.

    python tests/matrix.py                       # all sets; writes README's table
    python tests/matrix.py --short newest oldest # what CI does: fewer families, no table
    python tests/matrix.py --torch torch newest  # torch as the index offers it
"""

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
START, END = "<!-- versions: written by tests/matrix.py -->", "<!-- end of versions -->"
EXTRAS = "transformer-lens"
BESIDE = ("num2words", "sentencepiece")  # processors of two families need them
SETS = {"tested": "3.11", "newest": "3.11", "oldest": "3.11", "python3.12": "3.12", "python3.13": "3.13"}
COLUMNS = "python torch transformers nnsight numpy pandas pillow matplotlib pyarrow".split()


def requirements() -> list[str]:
    """What pyproject.toml requires."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def floors() -> list[str]:
    """The oldest releases that pyproject.toml allows, torch aside."""
    found = [re.match(r"([\w-]+)>=([\w.]+)", one) for one in requirements()]
    return [f"{one[1]}=={one[2]}" for one in found if one and one[1] != "torch"]


def interpreter(wanted: str) -> str | None:
    """A Python of that version, if there is one."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" == wanted:
        return sys.executable
    homes = sorted(Path.home().glob(f".pyenv/versions/{wanted}.*/bin/python"))
    return str(homes[-1]) if homes else shutil.which(f"python{wanted}")


def run(*command: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
    """A command, its output kept."""
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT, **more)  # type: ignore[call-overload, no-any-return]


def checked(*command: str | Path) -> None:
    """A command that must not fail."""
    done = run(*command)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-1500:])


def one_set(name: str, torch: str | None, short: bool) -> dict[str, object]:
    """What the smoke of a set found; `told` where it could not be run."""
    wanted = SETS[name]
    python = interpreter(wanted)
    if python is None:
        return {"told": f"not tried: no Python {wanted} here"}
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        checked(python, "-m", "venv", folder)
        pip = [Path(folder) / "bin" / "pip", "install", "-q"]
        offline = [] if torch else ["--no-index", "--no-deps"]
        before = time.time()
        if run(*pip, *offline, torch or "torch").returncode:
            checked(python, "-W", "error", "-m", "compileall", "-q", "-f", "nnsight_mmflow", "adapters", "patterns")
            return {"told": f"compiled with Python {wanted}, not run: no CPU build of torch for it here"}
        given = {"tested": ["-c", "constraints.txt"], "oldest": floors()}.get(name, [])
        checked(*pip, *given, f"-e.[{EXTRAS}]", *BESIDE)
        installed = round(time.time() - before)
        more = {"env": {**os.environ, **({"MMFLOW_SMOKE": "short"} if short else {})}}
        done = run(Path(folder) / "bin" / "python", ROOT / "tests" / "smoke.py", **more)
        try:
            return {**json.loads(done.stdout.splitlines()[-1]), "installed": installed}
        except (json.JSONDecodeError, IndexError):
            return {
                "told": f"**failed**: {(done.stderr or done.stdout).strip().splitlines()[-1][:200]}",
                "failed": {"": ""},
            }


def row(name: str, found: dict) -> str:
    """A line of the table."""
    if "versions" not in found:
        return f"| {name} | " + " | ".join("" for _ in COLUMNS) + f" | {found['told']} |"
    failed = found["failed"]
    said = f"{found['steps'] - len(failed)} of {found['steps']}" + (f"; fails: {', '.join(failed)}" if failed else "")
    return f"| {name} | " + " | ".join(found["versions"][column] for column in COLUMNS) + f" | {said} |"


def table(found: dict[str, dict]) -> str:
    """The README's table."""
    lines = [f"| {datetime.date.today()} | {' | '.join(COLUMNS)} | smoke passes |", "|" + "---|" * (len(COLUMNS) + 2)]
    return "\n".join(["", *lines, *(row(name, one) for name, one in found.items()), ""])


def main() -> int:
    """Runs the sets, prints the table, and writes it where all ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help=", ".join(SETS))
    parser.add_argument("--short", action="store_true", help="fewer families")
    parser.add_argument("--torch", help="a requirement for pip, instead of a file on this disk")
    given = parser.parse_args()
    unknown = set(given.sets) - set(SETS)
    if unknown:
        parser.error(f"no set {', '.join(sorted(unknown))}: there are {', '.join(SETS)}")
    found = {}
    for name in given.sets or SETS:
        found[name] = one_set(name, given.torch, given.short)
        print(name, json.dumps(found[name]), flush=True)
    print(table(found))
    if not given.sets:
        before, rest = README.read_text().split(START)
        README.write_text(before + START + table(found) + END + rest.split(END)[1])
    wrong = sum(bool(one.get("failed")) for one in found.values())
    print(f"{len(found) - wrong} passed, {wrong} failed")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
