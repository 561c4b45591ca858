"""Figures of causal tracing and of attribution patching: heat maps, span by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._look import PLAIN, Look
from nnsight_mmflow.show.curves import short
from nnsight_mmflow.show.drawing import Drawing
from nnsight_mmflow.show.layer_heat import layer_heat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nnsight_mmflow.patterns.trace.attribution import AttributionPatchingResult
    from nnsight_mmflow.patterns.trace.result import CausalTraceResult


def trace_figure(result: CausalTraceResult, quantity: str = "effect", look: Look = PLAIN) -> Figure:
    """Heat maps of causal tracing: span by layer, a panel per site; numbers in the cells where there is room."""
    maps = result.map(quantity)
    names = {"mlp": "MLP output", "attn": "attention output", "resid": "residual stream"}
    spans = list(dict.fromkeys(str(span) for table in maps.values() for span in table.index))
    chosen, colors = look.chosen(spans), look.color_map("cividis")
    labels = look.label_of(chosen, {}, spans)
    shown = {site: table.loc[[span for span in chosen if span in table.index]] for site, table in maps.items()}
    shown = {site: table for site, table in shown.items() if len(table)}
    layers = max(table.shape[1] for table in shown.values())
    # One panel under the other, no wider than a notebook or a page: side by side they would be shrunk.
    size = min(9.0, 3.6 + 0.5 * layers), 1.2 + len(shown) * (0.6 + 0.36 * max(map(len, shown.values())))
    drawing = Drawing(look, size, len(shown), 1, share="x")
    largest = max(float(table.abs().to_numpy().max()) for table in shown.values()) or 1.0
    ends = min(0.0, min(float(table.to_numpy().min()) for table in shown.values())), largest
    for axes, (site, table) in zip(drawing.axes, shown.items(), strict=True):
        rows, columns = [labels[str(span)] for span in table.index], [int(layer) for layer in table.columns]
        image = layer_heat(drawing, axes, table.to_numpy(), rows, columns, ends, colors, len(shown))
        drawing.panel(axes, names[site])
    drawing.axes[-1].set_xlabel("centre layer")
    drawing.colorbar(image, drawing.axes, quantity.replace("_", " "), aspect=20 * len(shown))
    count = result.header["n_counted"]
    drawing.title(f"Causal tracing, {short(result.header['model'])} (n={count})", f": {result.caption(quantity)}")
    return drawing.done()


def attribution_figure(result: AttributionPatchingResult, look: Look = PLAIN) -> Figure:
    """Heat maps of the estimates, head by layer, a panel per span; on the right, estimates against exact patching."""
    means = result.table.groupby(["span", "head", "layer"], sort=False)["estimate"].mean()
    every, checked = list(dict.fromkeys(map(str, result.table["span"]))), result.table.dropna(subset=["exact"])
    spans, colors = look.chosen(every), look.color_map("PuOr_r")
    labels = look.label_of(spans, {}, every)
    n_layers, n_heads = int(result.header["n_layers"]), int(result.header["n_heads"])
    count = len(spans) + bool(len(checked))
    across = 2 if count == 4 else min(count, 3)
    down = -(-count // across)
    unit = f" ({result.unit.strip()})" if result.unit else ""
    drawing = Drawing(look, (2.9 * across + 0.8, 0.9 + 2.6 * down), down, across, count=count)
    largest = float(means.abs().max()) or 1.0
    step = 3 if drawing.small else 10
    for axes, span in zip(drawing.axes, spans, strict=False):
        grid = means[span].unstack().to_numpy()
        image = axes.imshow(grid, aspect="auto", cmap=colors, vmin=-largest, vmax=largest)
        drawing.panel(axes, labels[span])
        axes.set_xlabel("layer")
        axes.set_xticks(range(0, n_layers, max(1, n_layers // step)))
        axes.set_yticks(range(0, n_heads, max(1, n_heads // (4 if drawing.small else 16))))
    for axes in drawing.axes[: len(spans) : across]:
        axes.set_ylabel("head")
    drawing.colorbar(image, drawing.axes[: len(spans)], f"estimate{unit}")
    if len(checked):
        axes = drawing.axes[count - 1]
        axes.scatter(checked["exact"], checked["estimate"], s=10, color="#0072B2", alpha=0.6, linewidths=0)
        both = checked[["exact", "estimate"]].to_numpy()
        ends = [float(both.min()), float(both.max())]
        axes.plot(ends, ends, color="0.6", linewidth=0.8)
        axes.set(xlabel=f"exact{unit}", ylabel=f"estimate{unit}")
        axes.locator_params(nbins=4)
        drawing.panel(axes, f"correlation {result.correlation:.2f}, {len(checked)} cells")
    firsts, hows = result.table.drop_duplicates("prompt"), result.header["corruptions"]
    prompts, left_out = result.header["n_prompts"], sum(result.header["left_out"].values())
    more = f" and {len(hows) - 1} more" if len(hows) > 1 else ""
    what, which, letter = "the answer's log-probability", "probability", "P"
    if "score" in result.header:
        what, which, letter = result.quantity.what, "score", "S"
    told = (
        f": estimated change of {what}, head by head; single layers, counted from 0; corruption: {hows[0]}{more};"
        f" mean {letter}_clean {firsts[f'clean_{which}'].mean():.2f},"
        f" {letter}_corrupt {firsts[f'corrupt_{which}'].mean():.2f}; {prompts} prompts, {left_out} left out"
    )
    drawing.title(f"Attribution patching, {short(result.header['model'])} (n={prompts})", told)
    return drawing.done()
