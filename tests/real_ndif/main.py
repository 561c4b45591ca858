"""Starts NDIF's server, runs the checks for both keys in both types, and stops all that was started: see README.md."""

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from installation import NotInstalled, install_programs, install_server, versions
from services import HERE, KEYS, NotStarted, Services

CACHE = Path("~/.cache/nnsight_mmflow/real_ndif").expanduser()
TYPES = ("float32", "bfloat16")
MODELS = {name: f"mmflow/nano-{name}" for name in TYPES}  # one deployment each, so that both are there at once
SECONDS = 1800  # for the checks of one key in one type


def nano_folder(folder):
    """nano as any model is published: what save_pretrained writes."""
    import nnsight_mmflow as mmf

    graph = mmf.load("nano")
    graph.adapter.model.save_pretrained(folder)
    graph.adapter.processor.save_pretrained(folder)
    return folder


def checked(server, kind, key, names, folder):
    """What the checks of one key in one type found, which run in a process of their own, as a user's do."""
    environment = {**os.environ, **server.environment, "NDIF_API_KEY": KEYS[key]}
    found = folder / f"{kind}-{key}.json"
    asked = [sys.executable, HERE / "checks.py", MODELS[kind], kind, key, "--write", found, *names]
    subprocess.run([str(part) for part in asked], env=environment, timeout=SECONDS)
    return json.loads(found.read_text()) if found.exists() else {"the checks": {"failed": "ended early", "seconds": 0}}


def table(found):
    """What passed of how many, by kind of check, in the form of benchmarks/README.md."""
    groups = list(dict.fromkeys(name.split(": ")[0] for rows in found.values() for name in rows))
    lines = [f"| type | key | {' | '.join(groups)} | seconds |", "|" + "---|" * (len(groups) + 3)]
    for (kind, key), rows in found.items():
        cells = []
        for group in groups:
            of = [row for name, row in rows.items() if name.split(": ")[0] == group]
            cells.append(f"{sum(not row['failed'] for row in of)} of {len(of)}" if of else "-")
        seconds = sum(row["seconds"] for row in rows.values())
        lines.append(f"| {kind} | {key} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def run(given):
    """Starts, checks, stops; returns how many failed."""
    install_programs()
    programs = install_server(given.folder)
    there = versions(programs)
    here = {name: version(name) for name in ("nnsight-mmflow", "nnsight", "transformers", "torch")}
    print(f"server: {there}\nhere: {here}, python {platform.python_version()}", flush=True)
    nano, found, before = nano_folder(given.folder / "nano"), {}, time.time()
    with Services(programs, dict.fromkeys(MODELS.values(), nano)) as server:
        for kind in given.type:
            server.deploy(MODELS[kind], kind)
        elsewhere = server.listening_elsewhere()
        if given.serve:
            serve(server)
            return 0
        for kind in given.type:
            for key in given.key:
                found[kind, key] = checked(server, kind, key, given.only, server.folder)
        found["all", "-"] = {"loopback: only": {"failed": ", ".join(elsewhere), "seconds": 0}}
    rows = [row for one in found.values() for row in one.values()]
    failed = sum(bool(row["failed"]) for row in rows)
    del found["all", "-"]
    print(f"\n{datetime.date.today()}, {time.time() - before:.0f} s with starting and stopping\n{table(found)}")
    print(f"{len(rows) - failed} passed, {failed} failed")
    return failed


def serve(server):
    """Waits until it is interrupted."""
    print("\nIt runs until Ctrl-C. A client sets:")
    for name, value in server.environment.items():
        print(f"export {name}={value}")
    for key, value in KEYS.items():
        print(f"export NDIF_API_KEY={value}  # {key}")
    print(f"and loads {' or '.join(MODELS.values())}", flush=True)
    signal.pause()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", metavar="CHECK", help="run those alone whose name holds one of these")
    parser.add_argument("--folder", type=Path, default=CACHE, help="where the server is installed (%(default)s)")
    parser.add_argument("--type", nargs="+", choices=TYPES, default=TYPES)
    parser.add_argument("--key", nargs="+", choices=KEYS, default=list(KEYS))
    parser.add_argument("--serve", action="store_true", help="start it, say how to reach it, and wait for Ctrl-C")
    given = parser.parse_args()
    given.folder = given.folder.expanduser().resolve()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return int(run(given) > 0)
    except KeyboardInterrupt:
        print("interrupted; all that was started is stopped")
        return 130
    except (NotInstalled, NotStarted) as error:
        print(error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
