"""Names of earlier versions, which still work: each tells its new one in a DeprecationWarning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.flow.result import FlowResult
    from nnsight_mmflow.prompts.prompt import Prompt


def deprecated(old: str, new: str, deeper: int = 3) -> None:
    """Tells the new name, at the line of the caller's caller."""
    warnings.warn(f"{old} is now {new}; the old name goes away in 0.4.", DeprecationWarning, stacklevel=deeper)


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
    from nnsight_mmflow.patterns.flow.flow import flow
    from nnsight_mmflow.runs.workers import Workers

    deprecated("mmf.flow_on_workers(..., workers=N)", "mmf.flow(..., workers=N)")
    return flow(graph, prompts, edges, window, workers=Workers(workers, address, load), **settings)
