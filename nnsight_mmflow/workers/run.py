"""The crew of a run: each worker loads the model of the graph, and the driver knows which one that is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.workers.crew import Crew, facts, outline

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.runs.workers import Workers


def crew_of(graph: Graph, workers: Workers, report: Callable[[str], None]) -> Crew:
    """The crew, to be entered; its workers start when there is something to do.

    Raises:
        MMFlowError: the graph was not loaded by name, and `workers.load` does not say which model they load.
    """
    how = dict(workers.load) if workers.load is not None else as_loaded(graph)
    # asked for otherwise, such as in another dtype
    same = facts(graph) if workers.load is None else outline(graph)
    return Crew(workers.count, how, same, workers.address, report)


def as_loaded(graph: Graph) -> dict[str, Any]:
    """The keyword arguments with which `mmf.load` made the graph.

    Raises:
        MMFlowError: it was made by `mmf.adapt`, so that no name stands for its weights.
    """
    model = graph.model
    name = graph.name if graph.name == "nano" else next(iter(getattr(model, "args", ())), None)
    if not isinstance(name, str):
        raise MMFlowError(
            f"{graph!r} was not made by mmf.load, and workers load their model by name. Save it (model.save_pretrained,"
            ' processor.save_pretrained) and mmf.load the folder, or say load={"name": ...}.'
        )
    if Path(name).is_dir():
        name = str(Path(name).resolve())  # workers may start elsewhere
    revision = {"revision": model.revision} if model.revision else {}
    return {"name": name, "processor": graph.processor, **revision, **model.kwargs}
