"""What attention by hand needs to know of a batch and a family, where blocks run apart from the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._errors import ModelError
from nnsight_mmflow.inside.apart import Layout

if TYPE_CHECKING:
    from nnsight_mmflow.model.loaded import Loaded
    from nnsight_mmflow.spans.row_spans import Spans


def layout_of(graph: Loaded, rows: tuple[Spans, ...], factor: int = 1) -> Layout:
    """The layout of a batch, from what its spans and the model's configuration say.

    Args:
        graph: the model.
        rows: the prompts' spans.
        factor: rows for each prompt.

    Raises:
        ModelError: its attention has not the operations that are read and written then.
    """
    rows = tuple(spans for spans in rows for _ in range(factor))
    window = graph.adapter.sliding_window()
    kinds = getattr(graph.text_config, "layer_types", None) or ["sliding_attention"] * graph.n_layers
    windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    blocks = tuple(tuple(graph.adapter.bidirectional(spans)) for spans in rows)
    real = tuple(spans["all"].row for spans in rows)
    plain = not any(blocks) and all(first == 0 for first, _ in real) and not any(windows)
    module = graph.attention(0)._module
    if graph.unknown_operations:
        raise ModelError(graph.unknown_operations)
    cap = getattr(graph.text_config, "attn_logit_softcapping", None)
    unmasked, bounded = plain and graph.backend == "sdpa", graph.adapter.windowed_blocks
    return Layout(real, blocks, windows, bounded, module.scaling, cap, graph.rotated, unmasked, factor)
