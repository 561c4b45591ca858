"""Ray, found or started: imported when a run asks for workers, ended only if it was begun here."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from nnsight_mmflow._errors import MMFlowError


def import_ray() -> ModuleType:
    """The module `ray`.

    Raises:
        MMFlowError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise MMFlowError(
            f"workers are processes that Ray starts, and Ray cannot be imported ({error}). It is an extra:"
            ' pip install -c constraints.txt -e ".[ray]"'
        ) from error
    return ray


@contextmanager
def cluster(workers: int, address: str | None) -> Iterator[ModuleType]:
    """The module `ray`, connected: to the cluster at the address, or to one of this machine's own.

    Args:
        workers: for how many workers a cluster started here has to have room.
        address: of a cluster; None takes what the process has connected to (ray.init), then RAY_ADDRESS, which
            `ray job submit` sets; else a cluster is started here, and stopped at the end.

    Raises:
        MMFlowError: Ray is not installed, or no cluster answers there.
    """
    if not address and "RAY_ADDRESS" not in os.environ:
        # Read when Ray is imported: without it Ray 2.60 listens at the host's address, not the loopback one given.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    ray = import_ray()
    if ray.is_initialized():
        if address is not None:
            raise MMFlowError(
                f"this process is connected to Ray already, so it cannot connect to {address}: leave the address out,"
                " or call ray.shutdown() first."
            )
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _knock(address)
    # Both are read by the processes that Ray starts: reports of use are off, and a worker that is given no GPU keeps
    # seeing what this process sees.
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(name, "0")
    own = {"num_cpus": workers, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(
            address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(own if address == "local" else {}),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _silent(address, error) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Tries the address first: Ray would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():  # "local" or "auto"
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise _silent(address, error) from error


def _silent(address: str, error: Exception) -> MMFlowError:
    return MMFlowError(
        f"no Ray cluster answers at {address!r} ({error}). `ray status` on its first machine says whether it runs;"
        " without an address, workers are started on this machine."
    )


def share(per_node: Sequence[int | float], workers: int) -> int | float:
    """How many CPUs or GPUs each worker gets so that all fit: a whole number, or a part of one; 0 where there are none.

    A worker's lie on one machine, and a part lies on one GPU, so it is not simply the sum over the workers.

    Args:
        per_node: how many each machine has.
        workers: how many workers there are.

    Example:
        >>> share([8], 2), share([3], 2), share([1, 1, 1, 1], 2), share([2], 3)
        (4, 1, 1, 0.5)
    """
    units = sum(int(units_there) for units_there in per_node)
    if not units:
        return 0
    for whole in range(units // workers, 0, -1):
        if sum(int(units_there) // whole for units_there in per_node) >= workers:
            return whole
    parts = -(-workers // units)
    return int(10_000 / parts) / 10_000  # Ray counts in ten-thousandths: rounded up, the last would not fit


def per_node(nodes: Sequence[Mapping[str, Any]], what: str) -> list[float]:
    """How many of "CPU" or "GPU" each of the machines that `ray.nodes()` lists has."""
    return [float(node["Resources"].get(what, 0)) for node in nodes if node["Alive"]]
