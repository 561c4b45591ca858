"""The flow diagram as a page: the numbers of each arrow, another threshold, another window."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

import pandas as pd

from nnsight_mmflow._page import Page
from nnsight_mmflow.patterns.flow.arrows import SMALLEST, Thresholds, arrows, thresholds
from nnsight_mmflow.show.colors import INCREASE
from nnsight_mmflow.show.diagram import caption, every_layer, label, side_head, title
from nnsight_mmflow.show.scene import BAR, LEFT, WIDTH, Mark, Scene, scale_of, scene_of

if TYPE_CHECKING:
    from nnsight_mmflow.patterns.flow.result import FlowResult

RULES = {
    "control": "only what exceeds its control of random spans",
    "interval": "only where the 95% interval leaves 0 out",
}


def flow_page(result: FlowResult) -> Page:
    """The page of `FlowResult.explore`."""
    windows = [int(window) for window in result.table["window"].unique()]
    tables = {window: arrows(result, window) for window in windows}
    limits = {window: thresholds(result, window) for window in windows}
    every = pd.concat(list(tables.values()))
    drawn = every[every["drawn"]]
    scale = scale_of(drawn if len(drawn) else every)
    n_layers = int(result.header["n_layers"])
    views = "".join(
        _view(result, window, table, scene_of(table, n_layers, scale), limits[window], shown=window == windows[0])
        for window, table in tables.items()
    )
    largest = min(100.0, float(every["change"].abs().max()))
    parts = files("nnsight_mmflow.show.pages")
    return Page(
        title(result, windows[0]) if len(windows) == 1 else title(result),
        f"<h1>{escape(title(result))}</h1>"
        + _settings(windows, limits[windows[0]].rule, largest)
        + '<p id="told" aria-live="polite"></p>'
        + views,
        (parts / "flow.js").read_text(),
        (parts / "flow.css").read_text(),
        summary=result.summary(),
    )


def _settings(windows: list[int], rule: str, largest: float) -> str:
    """The window, the threshold, and whether arrows are held against the controls."""
    options = "".join(f"<option value={size}>{size} layer{'s' if size > 1 else ''}</option>" for size in windows)
    return (
        f'<div id="settings"><label>window <select id="window">{options}</select></label>'
        f'<label>from <input id="least" type="range" min="0" max="{largest:.1f}" step="0.1" value="{SMALLEST}">'
        f' <output id="least_told">{SMALLEST:g}%</output></label>'
        f'<label><input id="passing" type="checkbox" checked> {RULES[rule]}</label>'
        '<span id="count" role="status"></span></div>'
    )


def _view(
    result: FlowResult, window: int, table: pd.DataFrame, scene: Scene, limits: Thresholds, *, shown: bool
) -> str:
    """One window's picture, its caption and its numbers."""
    records = table.to_dict("records")
    height = scene.bottom + 76
    groups = "".join(_arrow(mark, records[mark.row]) for mark in scene.marks)
    return (
        f'<figure data-window="{window}"{"" if shown else " hidden"}>'
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="group" aria-label="{escape(title(result, window))}.'
        ' Left and right keys go from arrow to arrow.">'
        f"{_grid(scene, window)}{groups}{_legend(scene)}</svg>"
        f'<figcaption class="note">{escape(" ".join(caption(table, limits)))}</figcaption>'
        f"{_numbers(table)}</figure>"
    )


def told(row: dict) -> str:
    """An arrow's numbers in a sentence."""
    control = "none of its own" if row["control"] != row["control"] else f"{row['control']:+.1f}%"
    return (
        f"Layer {row['layer']}, {row['source']} to {row['target']}: {row['change']:+.1f}%"
        f" (95% interval {row['low']:+.1f} to {row['high']:+.1f}), {row['prompts']} prompts;"
        f" control {control}, threshold {row['threshold']:.1f}%."
    )


def _arrow(mark: Mark, row: dict) -> str:
    (x0, y0), *rest = mark.curve
    line = f"M{x0:.1f} {y0:.1f}C" + " ".join(f"{x:.1f} {y:.1f}" for x, y in rest)
    head = " ".join(f"{x:.1f},{y:.1f}" for x, y in mark.head)
    kinds = "arrow" + (" gain" if mark.increase else "") + ("" if row["drawn"] else " off")
    return (
        f'<g class="{kinds}" role="img" tabindex="-1" aria-label="{escape(told(row))}" data-row="{mark.row}"'
        f' data-layer="{row["layer"]}" data-size="{abs(row["change"]):.4f}" data-passes="{int(row["drawn"])}"'
        f' style="--w:{mark.width:.2f}px;--c:{mark.color}"><path class="halo" d="{line}"/><path class="line"'
        f' d="{line}"/><polygon points="{head}"/><path class="hit" d="{line}"/></g>'
    )


def _grid(scene: Scene, window: int) -> str:
    left, right, n_layers = scene.columns[0], scene.columns[-1], len(scene.columns) - 1
    across = scene.columns[1] - left
    drawn = []
    for layer, x in enumerate(scene.columns[:-1]):
        if layer % 2:
            drawn.append(
                f'<rect x="{x:.1f}" y="2" width="{across:.1f}" height="{scene.bottom - 2:.0f}" class="column"/>'
            )
        if layer % every_layer(n_layers) == 0:
            drawn.append(f'<text x="{x + across / 2:.1f}" y="{scene.bottom + 14:.0f}" class="layer">{layer}</text>')
    for name, middle, color in scene.lanes:
        y = middle - BAR / 2
        drawn.append(
            f'<rect x="{left:.1f}" y="{y}" width="{right - left:.1f}" height="{BAR}" fill="{color}" opacity="0.25"/>'
            f'<rect x="{left - 7:.1f}" y="{y}" width="7" height="{BAR}" fill="{color}"/>'
        )
        lines = label(name)
        for number, line in enumerate(lines):
            y = middle + 4 + 13 * (number - (len(lines) - 1) / 2)
            drawn.append(f'<text x="{left - 13:.1f}" y="{y:.1f}" class="lane">{escape(line)}</text>')
    caption = "layer" if window == 1 else "layer (centre of the window)"
    drawn.append(f'<text x="{(left + right) / 2:.1f}" y="{scene.bottom + 31:.0f}" class="layer">{caption}</text>')
    return '<g aria-hidden="true">' + "".join(drawn) + "</g>"


def _legend(scene: Scene) -> str:
    y, x = scene.bottom + 56, float(LEFT)
    drawn = [f'<text x="8" y="{y + 4:.0f}" class="scale">answer\'s probability</text>']
    for percent, gain in (
        (scene.scale, False),
        (scene.scale / 2, False),
        (scene.scale / 10, False),
        (scene.scale / 2, True),
    ):
        width = scene.line_width(percent)
        head = " ".join(f"{a:.1f},{b:.1f}" for a, b in side_head(x + 26, y, width))
        drawn.append(
            f'<g class="{"gain" if gain else ""}" style="--w:{width:.2f}px;--c:{INCREASE if gain else "#444"}">'
            f'<path class="line" d="M{x:.0f} {y:.0f}H{x + 26:.0f}"/><polygon points="{head}"/></g>'
            f'<text x="{x + 50:.0f}" y="{y + 4:.0f}" class="scale">{"+" if gain else "−"}{percent:g}%</text>'
        )
        x += 110
    return '<g aria-hidden="true" class="legend">' + "".join(drawn) + "</g>"


def _numbers(table: pd.DataFrame) -> str:
    """Every number as a table: also for those who see no picture."""
    names = ("edge", "layer", "change (%)", "95% interval", "prompts", "control (%)", "threshold (%)")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = "".join(
        f'<tr data-row="{number}"><td>{escape(row["edge"])}</td><td>{row["layer"]}</td><td>{row["change"]:+.2f}</td>'
        f"<td>{row['low']:+.2f} to {row['high']:+.2f}</td><td>{row['prompts']}</td>"
        f"<td>{'' if row['control'] != row['control'] else format(row['control'], '+.2f')}</td>"
        f"<td>{row['threshold']:.2f}</td></tr>"
        for number, row in enumerate(table.to_dict("records"))
    )
    return f"<details><summary>the numbers</summary><table><tr>{head}</tr>{body}</table></details>"
