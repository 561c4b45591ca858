"""Starts NDIF's server, runs the checks for both keys in both types, and stops all that was started: see README.md."""

import argparse
import contextlib
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
    from transformers.utils import logging

    import nnsight_mmflow as mmf

    logging.disable_progress_bar()
    graph = mmf.load("nano")
    graph.adapter.model.save_pretrained(folder)
    graph.adapter.processor.save_pretrained(folder)
    return folder


def checked(server, kind, key, names):
    """What the checks of one key in one type found, which run in a process of their own, as a user's do."""
    environment = {**os.environ, **server.environment, "NDIF_API_KEY": KEYS[key]}
    written = server.folder / f"{kind}-{key}.json"
    asked = [sys.executable, HERE / "checks.py", MODELS[kind], kind, key, *names, "--write", written]
    with contextlib.suppress(subprocess.TimeoutExpired):  # those that were not run are written as failed
        subprocess.run([str(part) for part in asked], env=environment, timeout=SECONDS)
    return json.loads(written.read_text()) if written.exists() else {"client: starts": failure("it does not")}


def failure(why, seconds=0.0):
    """A row of what was found; none where `why` is empty."""
    return {"failed": why, "seconds": seconds}


def about(server):
    """What must hold of the server itself."""
    found = {
        "server: listens on loopback alone": ", ".join(server.listening_elsewhere()),
        "server: holds neither nnsight_mmflow nor jaxtyping": ", ".join(server.holds("nnsight_mmflow", "jaxtyping")),
    }
    for name, why in found.items():
        print(f"{'failed' if why else 'passed'}  {name}  {why}", flush=True)
    return {name: failure(why) for name, why in found.items()}


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
        kinds, keys = ([given.type] if given.type else TYPES), ([given.key] if given.key else KEYS)
        for kind in kinds:
            server.deploy(MODELS[kind], kind)
        if given.serve:
            serve(server)
        of_server = about(server)
        for kind in kinds:
            for key in keys:
                found[kind, key] = checked(server, kind, key, given.only)
    rows = [row for one in (of_server, *found.values()) for row in one.values()]
    failed = sum(bool(row["failed"]) for row in rows)
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
    parser.add_argument("--type", choices=TYPES, help="of the two, this alone")
    parser.add_argument("--key", choices=KEYS, help="of the two, this alone")
    parser.add_argument("--serve", action="store_true", help="start it, say how to reach it, and wait for Ctrl-C")
    given = parser.parse_args()
    given.folder = given.folder.expanduser().resolve()
    for one in (signal.SIGTERM, signal.SIGHUP):  # all is stopped then too
        signal.signal(one, signal.default_int_handler)
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
