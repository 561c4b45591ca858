"""`mmf.flow_on_workers`, as flow on workers was called before `mmf.flow(..., workers=N)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nnsight_mmflow._formerly import deprecated
from nnsight_mmflow.patterns.flow.flow import flow
from nnsight_mmflow.runs.workers import Workers

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.flow.result import FlowResult
    from nnsight_mmflow.prompts.prompt import Prompt


def flow_on_workers(
    graph: Graph,
    prompts: Prompt | Sequence[Prompt],
    edges: Sequence[str] | None = None,
    window: int | Sequence[int] = 9,
    *,
    workers: int = 2,
    address: str | None = None,
    load: Mapping[str, Any] | None = None,
    **settings: Any,
) -> FlowResult:
    """What `mmf.flow(..., workers=mmf.Workers(count, address, load))` returns, as it was called before."""
    deprecated("mmf.flow_on_workers(..., workers=N)", "mmf.flow(..., workers=N)")
    return flow(graph, prompts, edges, window, workers=Workers(workers, address, load), **settings)
