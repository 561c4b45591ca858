"""How many processes measure, and where they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._kinds import came, text, whole

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph


@dataclass(frozen=True)
class Workers:
    """Processes that hold a model each and measure a prompt at a time; `workers=4` is `workers=mmf.Workers(4)`.

    One that dies is replaced, and its prompt runs again. Needs the extra `ray`.

    Attributes:
        count: how many. GPUs are divided among them as Ray counts them, if `load` names a device_map.
        address: of a Ray cluster, such as "10.0.0.1:6379" or "auto". None: the one this process is connected to, or
            RAY_ADDRESS; else workers on this machine.
        load: keyword arguments of `mmf.load` for each worker, "name" included; None: as the graph was loaded.

    Raises:
        MMFlowError: less than one worker, or a `load` without "name".

    Example:
        >>> import nnsight_mmflow as mmf
        >>> mmf.Workers(0)
        Traceback (most recent call last):
        ...
        nnsight_mmflow._errors.MMFlowError: workers=0: at least 1 is needed.
    """

    count: int
    address: str | None = None
    load: Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        """Refuses what is no number of workers, no address, or no way to load a model."""
        if whole("workers", self.count) < 1:
            raise MMFlowError(f"workers={self.count}: at least 1 is needed.")
        if self.address is not None and not text("address", self.address):
            raise MMFlowError("address is empty: leave it out, or say where the Ray cluster is.")
        if self.load is None:
            return
        if not isinstance(self.load, Mapping) or not all(isinstance(name, str) for name in self.load):
            raise MMFlowError(f"load holds keyword arguments of mmf.load, by name, but {came(self.load)} came.")
        if "name" not in self.load:
            raise MMFlowError(f"load={sorted(self.load)} lacks 'name', the model that each worker loads.")


def as_workers(graph: Graph, workers: int | Workers) -> Workers | None:
    """The workers that are asked for; None for none.

    Raises:
        MMFlowError: the graph runs on a server.
    """
    if isinstance(workers, int) and workers == 0:
        return None
    asked = workers if isinstance(workers, Workers) else Workers(workers)
    if graph.remote:
        raise MMFlowError("remote= and workers exclude each other: NDIF runs on its own machines. Use one of them.")
    return asked
