"""The package under other releases of what it stands on: `python tests/matrix.py`, or with the names of some sets.

Each set is a new virtual environment that pip fills, and tests/smoke.py in it. `oldest` is what pyproject.toml allows
at least, `newest` what an install without constraints gets, `tested` the constraints of the whole test suite. What the
smoke finds has to be what it finds under the tested set (tests/kit/recorded.py): words and ids equal, numbers to 1e-5.
The tested set is this Python's where it holds those constraints (as in CI), else `tested` runs first. torch is taken
from the files that pip is told of (PIP_FIND_LINKS), where they hold a CPU build for that Python, so that no CUDA build
of gigabytes is fetched; without one, sources are compiled and nothing is run, and the table says so.

    python tests/matrix.py                  # all but the large ones; their lines in README are written anew
    python tests/matrix.py "newest torch"   # with torch as the index offers it, CUDA and all
    python tests/matrix.py --check newest oldest    # writes nothing; CI
"""

import argparse
import datetime
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kit.recorded import compared

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
START, END = "<!-- versions: written by tests/matrix.py -->", "<!-- end of versions -->"
EXTRAS = "transformer-lens"
BESIDE = ("num2words", "sentencepiece")  # processors of two families need them
SHOWN = 20  # failures of a set that are told at the end
SETS = {"tested": "3.11", "newest": "3.11", "oldest": "3.11", "python3.12": "3.12", "python3.13": "3.13"}
# With torch as the index offers it, CUDA and all: 5.5 GB each; by name alone.
LARGE = {"newest torch": "3.11", "python3.12, newest torch": "3.12", "python3.13, newest torch": "3.13"}
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


def is_tested() -> bool:
    """Whether this Python holds what constraints.txt names, and the package."""
    pins = re.findall(r"^([\w-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    run_with = [(name, wanted) for name, wanted in pins if name in ("torch", "transformers", "nnsight", EXTRAS)]
    try:
        version("nnsight-mmflow")
        return all(version(name).partition("+")[0] == wanted for name, wanted in run_with)
    except PackageNotFoundError:
        return False


def smoke(python: str | Path) -> tuple[dict, dict]:
    """What tests/smoke.py says in an environment, and the numbers of each of its steps."""
    with tempfile.TemporaryDirectory(prefix="matrix-numbers-") as folder:
        file = Path(folder) / "numbers.json"
        done = run(python, ROOT / "tests" / "smoke.py", "--numbers", file)
        try:
            return json.loads(done.stdout.splitlines()[-1]), json.loads(file.read_text())
        except (json.JSONDecodeError, IndexError, FileNotFoundError):
            told = ((done.stderr or done.stdout).strip().splitlines() or ["nothing was said"])[-1][:200]
            return {"told": f"fails: {told}", "failed": {"": told}}, {}


def one_set(name: str) -> tuple[dict, dict]:
    """What the smoke of a set found, and its numbers; `told` where it could not be run."""
    wanted = (SETS | LARGE)[name]
    python = interpreter(wanted)
    if python is None:
        return {"told": f"not tried: no Python {wanted} here"}, {}
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        before = time.time()
        checked(python, "-m", "venv", folder)
        pip = [Path(folder) / "bin" / "pip", "install", "-q"]
        if run(*pip, *([] if name in LARGE else ["--no-index", "--no-deps"]), "torch").returncode:
            checked(python, "-W", "error", "-m", "compileall", "-q", "-f", "nnsight_mmflow", "adapters", "patterns")
            return {"told": f"compiled with Python {wanted}, not run: no CPU build of torch for it here"}, {}
        given = {"tested": ["-c", "constraints.txt"], "oldest": floors()}.get(name, [])
        checked(*pip, *given, f"-e.[{EXTRAS}]", *BESIDE)
        installed = round(time.time() - before)
        found, numbers = smoke(Path(folder) / "bin" / "python")
        return {**found, "installed": installed}, numbers


def against(found: dict, numbers: dict, wanted: dict) -> dict:
    """The same with what differs from the tested set's numbers among the failures; steps that were refused aside."""
    left_out = {*found["refused"], *found["failed"]}
    told, largest = compared(numbers, {step: one for step, one in wanted.items() if step not in left_out})
    more = {f"other numbers: {place}": words for place, words in told.items()}
    return {**found, "failed": {**found["failed"], **more}, "largest_difference": largest}


def row(name: str, found: dict) -> str:
    """A line of the table."""
    if "versions" not in found:
        cells, said = ["-" for _ in COLUMNS], found["told"]
    else:
        cells = [found["versions"][column] for column in COLUMNS]
        failed, refused = found["failed"], found["refused"]
        steps = {words.removeprefix("other numbers: ").partition(".")[0] for words in failed}
        said = f"{found['steps'] - len(steps) - len(refused)} of {found['steps']}"
        said += f"; refused: {', '.join(refused)}" if refused else ""
        said += f"; fails: {', '.join(sorted(steps))}" if failed else ""
    largest = found.get("largest_difference")
    numbers = "-" if largest is None else "the same" if not largest else f"{largest:.0e}"
    return f"| {name} | {' | '.join(cells)} | {numbers} | {said} | {datetime.date.today()} |"


def table(found: dict[str, dict], written: str) -> str:
    """README's table, with the lines of what ran now in place of those that were written before."""
    before = {line.removeprefix("| ").split(" | ")[0]: line for line in written.strip().splitlines()[2:]}
    lines = before | {name: row(name, one) for name, one in found.items()}
    head = f"| set | {' | '.join(COLUMNS)} | numbers | smoke passes | on |"
    ordered = [lines[name] for name in SETS | LARGE if name in lines]
    return "\n".join(["", head, "|" + "---|" * (len(COLUMNS) + 4), *ordered, ""])


def main() -> int:
    """Runs the sets, prints the table, and writes it into README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help=", ".join(SETS | LARGE))
    parser.add_argument("--check", action="store_true", help="leave README as it is")
    given = parser.parse_args()
    unknown = set(given.sets) - set(SETS | LARGE)
    if unknown:
        parser.error(f"no set {', '.join(sorted(unknown))}: there are {', '.join(SETS | LARGE)}")
    names, found, wanted, before = list(given.sets or SETS), {}, {}, time.time()
    if "tested" not in names and is_tested():
        here, wanted = smoke(sys.executable)
        print("this Python", json.dumps(here), flush=True)
    elif "tested" not in names:
        names = ["tested", *names]
    for name in sorted(names, key=lambda one: one != "tested"):
        found[name], numbers = one_set(name)
        if name == "tested":
            wanted = numbers
        elif "versions" in found[name]:
            found[name] = against(found[name], numbers, wanted)
        print(name, json.dumps(found[name]), flush=True)
    head, rest = README.read_text().split(START)
    made = table(found, "" if given.check else rest.split(END)[0])
    print(made)
    if not given.check:
        README.write_text(head + START + made + END + rest.split(END)[1])
    for name, one in found.items():
        for place, words in list(one.get("failed", {}).items())[:SHOWN]:
            print(f"{name}: {place}: {words}")
    wrong = sum(bool(one.get("failed")) or (given.check and "versions" not in one) for one in found.values())
    spent, used = time.time() - before, resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{spent:.0f} s; {used.ru_utime + used.ru_stime:.0f} s of one core")
    print(f"{len(found) - wrong} passed, {wrong} failed")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
