"""A heat map of an answer's tokens: what each of them loses when an edge is closed around a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._look import PLAIN, Look
from nnsight_mmflow.patterns.flow.arrows import chosen_window
from nnsight_mmflow.show.drawing import Drawing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from nnsight_mmflow.patterns.flow.result import FlowResult


def tokens_figure(
    result: FlowResult, edge: str | None, prompt: str | None, window: int | None, look: Look = PLAIN
) -> Figure:
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
    by_name = _names(part.drop_duplicates("token").set_index("token")["word"].loc[wide.index])
    rows = look.chosen(list(by_name))
    labels = look.label_of(rows, {}, list(by_name))
    values = wide.loc[[by_name[name] for name in rows]].to_numpy(dtype=float)
    largest = max(float(np.abs(values).max()), 1e-6)
    size = min(11, max(4.6, 1.6 + 0.32 * wide.shape[1])), min(12, max(2.2, 1.3 + 0.28 * len(rows)))
    drawing = Drawing(look, size)
    axes, norm = drawing.axes[0], TwoSlopeNorm(0.0, -largest, largest)
    image = axes.imshow(values, cmap=look.color_map("RdBu"), norm=norm, aspect="auto", interpolation="nearest")
    lines = max(1, int(drawing.height * 72 * 0.6 / drawing.size("tick")))  # names below one another
    for names, most, ticks in (
        (list(map(str, wide.columns)), 8 if drawing.small else 16, axes.set_xticks),
        (list(labels.values()), lines, axes.set_yticks),
    ):
        step = max(1, -(-len(names) // most))
        ticks(range(0, len(names), step), [name.replace("$", r"\$") for name in names[::step]])
    axes.set_xlabel("centre layer" if drawing.small else "centre layer of the blocked window")
    axes.set_ylabel("token of the answer")
    drawing.colorbar(image, [axes], "change (nats)")
    source, _, target = edge.replace("_", " ").partition("->")
    drawing.panel(axes, f"{source} \u219b {target}, {prompt}", parse_math=False)
    return drawing.done()


def _names(words: pd.Series) -> dict[str, int]:
    """Tokens by their words; where one occurs again with its number."""
    plain = {int(str(token)): repr(str(word))[1:-1] for token, word in words.items()}
    twice = {word for word in plain.values() if list(plain.values()).count(word) > 1}
    return {f"{word} [{token}]" if word in twice else word: token for token, word in plain.items()}


def _chosen(what: str, asked: str | None, known: list[str]) -> str:
    if asked is not None and asked not in known:
        raise MMFlowError(f"{what}={asked!r}: this result has {', '.join(map(str, known[:12]))}.")
    return known[0] if asked is None else asked
