"""A heat map of an answer's tokens: what each of them loses when an edge is closed around a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._figure import ShownFigure
from nnsight_mmflow.patterns.flow.arrows import chosen_window

if TYPE_CHECKING:
    from nnsight_mmflow.patterns.flow.result import FlowResult


def tokens_figure(result: FlowResult, edge: str | None, prompt: str | None, window: int | None) -> ShownFigure:
    """Token by layer, of one prompt and edge: red where the token becomes less probable."""
    import numpy as np
    from matplotlib.colors import TwoSlopeNorm

    table = result.by_token()
    table = table[table["window"] == chosen_window(result, window)]
    edge, prompt = (
        _chosen("edge", edge, list(table["edge"].unique())),
        _chosen("prompt", prompt, list(table["prompt"].unique())),
    )
    part = table[(table["edge"] == edge) & (table["prompt"] == prompt)]
    if part.empty:
        raise MMFlowError(f"prompt {prompt!r} has no edge {edge!r}: it lacks one of its spans.")
    wide = part.pivot_table(index="token", columns="layer", values="change")
    words = part.drop_duplicates("token").set_index("token")["word"]
    values = wide.to_numpy(dtype=float)
    largest = max(float(np.abs(values).max()), 1e-6)
    size = (max(4.5, 1.6 + 0.32 * wide.shape[1]), max(2.0, 1.3 + 0.28 * wide.shape[0]))
    figure = ShownFigure(figsize=(min(size[0], 11), min(size[1], 12)), layout="constrained")
    axes = figure.subplots()
    norm = TwoSlopeNorm(0.0, -largest, largest)
    image = axes.imshow(values, cmap="RdBu", norm=norm, aspect="auto", interpolation="nearest")
    shown = [repr(words[token])[1:-1].replace("$", r"\$") for token in wide.index]
    axes.set_yticks(range(len(shown)), shown, fontsize=8)
    axes.set_xlabel("centre layer of the blocked window", fontsize=9)
    axes.set_ylabel("token of the answer", fontsize=9)
    step = max(1, -(-wide.shape[1] // 16))
    axes.set_xticks(range(0, wide.shape[1], step), [str(layer) for layer in wide.columns[::step]], fontsize=8)
    figure.colorbar(image, ax=axes, label="change (nats)")
    source, _, target = edge.replace("_", " ").partition("->")
    axes.set_title(f"{source} \u219b {target}, {prompt}".replace("$", r"\$"), fontsize=9)
    return figure


def _chosen(what: str, asked: str | None, known: list[str]) -> str:
    if asked is not None and asked not in known:
        raise MMFlowError(f"{what}={asked!r}: this result has {', '.join(map(str, known[:12]))}.")
    return known[0] if asked is None else asked
