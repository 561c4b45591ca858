"""Knockout curves over a data set, on several processes or machines: the same numbers as one process gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnsight_mmflow.patterns.flow.flow import flow, measure

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.workers.crew import Crew, facts, outline

if TYPE_CHECKING:
    from nnsight_mmflow.patterns.flow.result import FlowResult

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt

NOT_HERE = {
    "remote": "NDIF runs on its own machines",
    "blocking": "the workers end with the call",
    "measured_by": "the workers measure",
}


@checked
def flow_on_workers(
    graph: Graph,
    prompts: Prompt | Sequence[Prompt],
    edges: Sequence[str] | None = None,
    window: int | Sequence[int] = 9,
    *,
    workers: int = 2,
    address: str | None = None,
    load: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = say,
    **settings: Any,
) -> FlowResult:
    """The FlowResult that `mmf.flow` gives, measured by workers that hold a model each and take a prompt at a time.

    This process makes the plans, writes the folder and collects the result; so the files are those of one process, and
    a run may go on with another number of workers, or with `mmf.flow`. A worker that dies is replaced, and its prompt
    runs again. Needs the extra `ray`. Whose numbers a folder holds depends on the weights: where this process has none,
    a worker is started to tell, even if all is finished.

    Args:
        graph: the model; loaded with dispatch=False, it takes no memory here.
        prompts: as for `flow`; so are edges, window and settings (folder above all, where finished prompts are kept).
        edges: "source->target" each.
        window: how many consecutive layers.
        workers: how many. GPUs are divided among them as Ray counts them, if `load` names a device_map.
        address: of a Ray cluster, such as "10.0.0.1:6379" or "auto". None: the one this process is connected to, or
            RAY_ADDRESS; else workers on this machine.
        load: keyword arguments of `mmf.load` for each worker, "name" included; None: as the graph was loaded.
        report: where is told what it costs, and what happens to workers.
        settings: of `flow`.

    Raises:
        MMFlowError: Ray is missing; a prompt failed on a worker, or lost its worker three times (it is named, and what
            is finished stays); a worker's model is not the graph's. Also what `flow` raises.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano", dispatch=False)
        >>> mmf.flow_on_workers(graph, mmf.nano.prompts(graph, 2), workers=0)
        Traceback (most recent call last):
        ...
        nnsight_mmflow._errors.MMFlowError: workers=0: at least 1 is needed.
    """
    if workers < 1:
        raise MMFlowError(f"workers={workers}: at least 1 is needed.")
    for name, why in NOT_HERE.items():
        if name in settings or (name == "remote" and graph.remote):
            raise MMFlowError(f"{name}= and workers exclude each other: {why}. Use one of them.")
    how = dict(load) if load is not None else as_loaded(graph)
    if "name" not in how:
        raise MMFlowError(f"load={sorted(how)} lacks 'name', the model that each worker loads.")
    same = facts(graph) if load is None else outline(graph)  # asked for otherwise, such as in another dtype
    with Crew(workers, how, same, address, report) as crew:
        if settings.get("folder") is not None and "weights" not in same:  # whose numbers the folder's are, they know
            known = crew.model()
            graph = graph.but(known_as={name: value for name, value in known.items() if name != "n_layers"})

        def measured(_: Graph, left: list[tuple]) -> Iterator[dict]:
            names = [f"prompt {given[0].key or given[0].question!r}" for given in left]
            return crew.results(measure, left, names)

        return flow(graph, prompts, edges, window, report=report, measured_by=measured, **settings)


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
