"""Models that are split over several processes (tensor parallel): what is right there, and what is refused.

nnsight shows each process whole inputs and outputs of modules, so what closes edges in a layer's mask is right. Inside
the attention a process holds its own heads alone, so what reads or changes single heads would be wrong without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import ModelError

if TYPE_CHECKING:
    from nnsight_mmflow.model.loaded import Loaded


def make_ready(given: Mapping[str, object]) -> None:
    """Before a split model is loaded: nnsight 0.8.1 looks for a function of transformers where it is no longer.

    The function is the same; only its place has changed (transformers 5.23: parallel_utils).
    """
    if not {"distributed_config", "tp_plan", "tp_size"} & set(given):
        return
    from transformers.distributed import tensor_parallel

    name = "_get_parameter_plan"
    if name not in vars(tensor_parallel):
        from transformers.distributed import parallel_utils

        setattr(tensor_parallel, name, getattr(parallel_utils, name))


def is_split(graph: Loaded) -> bool:
    """Whether each process holds a part of the weights."""
    return (getattr(graph.adapter.model, "tp_size", None) or 1) > 1


def whole_here(graph: Loaded, what: str) -> None:
    """Refuses what has not been measured, or is wrong, on a split model.

    Raises:
        ModelError: the model is split.
    """
    if is_split(graph):
        raise ModelError(
            f"{what}: the model is split over {graph.adapter.model.tp_size} processes, each with its own heads. There,"
            " Knockout in all heads and mmf.flow are right; for the rest load it whole, with device_map='auto' over"
            " several GPUs."
        )
