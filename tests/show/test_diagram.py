"""The flow diagram: its controls, its numbers, what is drawn, the figure and the page."""

import json
import math
import re

import numpy as np
import pytest
import torch
from kit.browsing import opened
from kit.made_flow import bump, like_the_paper, made_flow
from kit.tiny import picture

import nnsight_mmflow as mmf
from nnsight_mmflow.patterns.flow.arrows import SMALLEST, thresholds
from nnsight_mmflow.patterns.flow.controls import control_name, controlled, with_controls
from nnsight_mmflow.patterns.flow.edges import default_edges, named_spans
from nnsight_mmflow.show.diagram import caption
from nnsight_mmflow.show.scene import BAR, scale_of, scene_of

QUIET = {"progress": False, "report": lambda text: None}
LOOSE = {**QUIET, "only_correct": False}
QUESTION = "is the circle red or blue ?"


@pytest.fixture(scope="module")
def boxed(graph):
    return [graph.prompt(picture(i), QUESTION, "red", boxes=((8, 8, 24, 24),), key=f"q{i}") for i in range(2)]


@pytest.fixture(scope="module")
def swept(graph, boxed):
    return mmf.flow(graph, boxed, window=(1, 3), controls=2, **LOOSE)


def planted(**kwargs):
    """Strong at layers 3, nothing elsewhere; a gain at layer 5; nothing at all."""
    effects = {
        "image->question": bump(-40, 3, 0.5),
        "object->question": bump(30, 5, 0.5),
        "question->last": lambda layer: 0.0,
        "last->last": bump(-20, 2, 0.5),
    }
    return made_flow(effects, 8, noise=kwargs.pop("noise", 0.05), **kwargs)


# --- controls


def test_controls_have_the_size_of_their_edge_and_none_of_its_sources(boxed):
    prompt = boxed[0]
    spans, _ = named_spans(prompt)
    edges = default_edges(boxed)
    more, names, lacking = with_controls(spans, edges, 3, "seed")
    for name in names:
        edge = controlled(name)
        source, target = edge.split("->")
        drawn = more[name.partition("->")[0]]
        assert len(drawn) == len(spans[source])
        assert not set(drawn) & set(spans[source])
        assert max(drawn) <= min(spans[target])  # all of them are read by all targets
        assert spans["all"].row[0] not in drawn
        if source == "object":
            assert set(drawn) <= set(spans["other"])
    assert {controlled(name) for name in names} | set(lacking) == set(edges)
    assert "image->last" in lacking
    draws = [tuple(more[f"control {draw}: object"]) for draw in (1, 2, 3)]
    assert len(set(draws)) == 3


def test_controls_are_seeded(boxed):
    spans, _ = named_spans(boxed[0])
    drawn = [
        tuple(with_controls(spans, ["object->question"], 1, seed)[0]["control 1: object"]) for seed in ("a", "a", "b")
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_sliding_window_keeps_controls_within_reach(boxed):
    spans, _ = named_spans(boxed[0])
    far = max(spans["last"]) - 6 + 1
    drawn, _, _ = with_controls(spans, ["last->last"], 4, "seed", window=6)
    assert all(min(drawn[f"control {draw}: last"]) >= far for draw in range(1, 5))


def test_names_of_controls():
    assert control_name("object->question", 2) == "control 2: object->question"
    assert controlled("control 2: object->question") == "object->question"
    assert controlled("object->question") is None
    assert controlled("control: text('a: b')->last") is None


def test_no_control_changes_nothing(boxed):
    spans, _ = named_spans(boxed[0])
    assert with_controls(spans, ["image->last"], 0, "seed") == (spans, (), {})


def test_a_control_equals_its_knockout_made_by_hand(graph, boxed, swept):
    prompt, layer = boxed[0], 1
    spans, _ = named_spans(prompt)
    sources = with_controls(spans, default_edges(boxed), 2, prompt.digest())[0]["control 2: object"]
    model = graph.adapter.model
    with torch.no_grad():
        base = model(**prompt.inputs).logits[0, -1].double().softmax(-1)
        with graph.trace(prompt, mmf.Knockout(source=sources, target="question", layers=layer)):
            logits = graph.unembed.output[0, -1].save()
    token = int(base.argmax())
    table = swept.to_frame().query("prompt == 'q0' and edge == 'control 2: object->question' and window == 1")
    table = table[table["layer"] == layer]
    assert table["log_probability_change"].item() == pytest.approx(
        math.log(logits.double().softmax(-1)[token] / base[token]), abs=1e-5
    )
    assert table["log_probability_change"].item() != 0


def test_both_engines_run_controls(graph, boxed):
    rows, forward = (
        mmf.flow(graph, boxed[0], ["object->question", "last->last"], window=1, controls=1, engine=engine, **LOOSE)
        for engine in ("rows", "forward")
    )
    assert len(set(rows.to_frame()["edge"])) == 4
    assert (rows.to_frame()["log_probability_change"] - forward.to_frame()["log_probability_change"]).abs().max() < 1e-5


def test_edges_stay_the_same_with_and_without_controls(graph, boxed, swept):
    alone = mmf.flow(graph, boxed, window=(1, 3), **LOOSE)
    assert "controls" not in alone.header
    assert swept.header["controls"] == 2
    assert swept.header["prompts_without_control"]["image->last"] == 2
    assert list(alone.curves(3)) == list(swept.curves(3))
    for edge, (mean, *_) in alone.curves(3).items():
        assert swept.curves(3)[edge][0] == pytest.approx(mean, abs=1e-3)  # percent; other chunks sum otherwise


def test_runs_go_on_with_their_controls_and_not_without(graph, boxed, tmp_path):
    first = mmf.flow(graph, boxed[:1], ["object->question"], window=1, controls=1, folder=tmp_path, **LOOSE)
    again = mmf.flow(graph, boxed, ["object->question"], window=1, controls=1, folder=tmp_path, **LOOSE)
    assert again.to_frame().query("prompt == 'q0'").equals(first.to_frame())
    assert mmf.results.FlowResult.load(tmp_path).controls(1)["object->question"].shape == (1, graph.n_layers)
    with pytest.raises(mmf.DataError, match="controls was 1, is None"):
        mmf.flow(graph, boxed, ["object->question"], window=1, folder=tmp_path, **LOOSE)
    mmf.flow(graph, boxed, ["object->question"], window=1, folder=tmp_path / "plain", **LOOSE)
    assert "controls" not in json.loads((tmp_path / "plain" / "settings.json").read_text())


def test_wrong_settings(graph, boxed, swept):
    with pytest.raises(mmf.MMFlowError, match="controls=-1"):
        mmf.flow(graph, boxed, controls=-1, **LOOSE)
    with pytest.raises(mmf.MMFlowError, match=re.escape("window=9: this result has [1, 3]")):
        swept.diagram(9)
    with pytest.raises(mmf.MMFlowError, match='an edge is "source->target"'):
        mmf.flow(graph, boxed, ["image-question"], controls=1, **LOOSE)


# --- numbers


def test_numbers_of_arrows_are_the_tables(swept):
    table = swept.to_frame()
    for row in swept.arrows(3).to_dict("records"):
        mine = table[(table["edge"] == row["edge"]) & (table["window"] == 3) & (table["layer"] == row["layer"])]
        assert row["change"] == pytest.approx(mine["change_percent"].mean())
        assert row["prompts"] == len(mine)
        control = table[table["edge"].str.endswith(f": {row['edge']}") & (table["window"] == 3)]
        control = control[control["layer"] == row["layer"]]["change_percent"]
        assert row["control"] == pytest.approx(control.mean(), nan_ok=True)


def test_the_threshold_is_the_quantile_of_the_edges_own_controls():
    result = planted(control=3, noise=6.0)
    table, every = result.to_frame(), []
    for edge in result.header["edges"]:
        means = [
            table[table["edge"] == f"control {draw}: {edge}"].groupby("layer")["change_percent"].mean().abs()
            for draw in (1, 2, 3)
        ]
        limit = np.quantile(np.concatenate(means), 0.95)
        every.append(limit)
        rows = result.arrows(1).query("edge == @edge")
        assert rows["threshold"].unique() == pytest.approx([limit])
        assert (rows["drawn"] == (rows["change"].abs() >= limit)).all()
    assert min(every) > SMALLEST


def test_an_edge_without_a_control_is_held_against_all_of_them(swept):
    table = swept.to_frame().query("window == 1")
    controls = table[table["edge"].str.startswith("control ")]
    pooled = np.quantile(controls.groupby(["edge", "layer"])["change_percent"].mean().abs(), 0.95)
    found = swept.arrows(1).query("edge == 'image->last'")["threshold"].unique()
    assert found == pytest.approx([max(SMALLEST, pooled)])
    told = thresholds(swept, 1).told
    assert "2 random spans of the same size" in told
    assert "held against all controls together" in told
    assert "image->last" in told


def test_a_strong_edge_is_drawn_and_nothing_is_not():
    for control in (0, 2):
        drawn = planted(control=control).arrows().query("drawn")
        assert {(row.edge, row.layer) for row in drawn.itertuples()} >= {("image->question", 3), ("last->last", 2)}
        assert "question->last" not in set(drawn["edge"])
        assert drawn.query("edge == 'object->question'")["change"].min() > 0


def test_without_controls_the_interval_tells_and_the_caption_says_so():
    result = planted(noise=60.0)
    assert "No control was run" in thresholds(result, 1).told
    table = result.arrows()
    certain = (table["low"] > 0) | (table["high"] < 0)
    assert (table["drawn"] == (certain & (table["change"].abs() >= SMALLEST))).all()
    assert not certain.all()
    alone = planted(prompts=1)
    assert "of one prompt there is no interval" in thresholds(alone, 1).told
    assert result.arrows(threshold=25.0).query("drawn")["change"].abs().min() >= 25
    assert "at least 25%, as asked" in thresholds(result, 1, 25.0).told


# --- picture


def test_the_caption_says_when_edges_count_different_prompts_and_what_is_cut(graph, boxed):
    plain = graph.prompt(picture(2), QUESTION, "red", key="plain")
    result = mmf.flow(graph, [*boxed, plain], window=3, **LOOSE)
    told, _ = caption(result.arrows(), thresholds(result, 3))
    assert "2 to 3." in told
    assert "cut off at both ends" in told
    many = made_flow({"image->last": bump(240, 1, 1)}, 4)
    assert "Gains over 100% are drawn as 100%." in caption(many.arrows(), thresholds(many, 1))[0]
    assert (
        max(mark.width for mark in scene_of(many.arrows(), 4, 100.0).marks) == scene_of(many.arrows(), 4, 100.0).widest
    )


def test_lanes_come_from_the_edges():
    names = [lane[0] for lane in scene_of(like_the_paper().arrows(), 32, 100.0).lanes]
    assert names == [
        *("image", "other", "object", "question", "question_without_options", "true_option", "false_option", "last"),
    ]
    own = made_flow({"image - object->text('circle')": bump(-9, 1, 1), "image->last": bump(-9, 1, 1)}, 4)
    assert [lane[0] for lane in scene_of(own.arrows(), 4, 10.0).lanes] == [
        *("image", "image - object", "text('circle')", "last"),
    ]


def test_arrows_lie_in_their_columns_and_end_at_their_lanes():
    table = planted().arrows()
    scene = scene_of(table, 8, scale_of(table))
    middle = {name: y for name, y, _ in scene.lanes}
    for mark in scene.marks:
        row = table.iloc[mark.row]
        left, right = scene.columns[row["layer"]], scene.columns[row["layer"] + 1]
        assert all(left <= x <= right for x, _ in mark.curve)
        assert mark.curve[0][1] == middle[row["source"]] + (BAR / 2 if row["source"] != row["target"] else -BAR / 2)
        assert mark.head[1][1] == middle[row["target"]] - BAR / 2
        assert mark.width == pytest.approx(scene.line_width(row["change"]))
    widths = {mark.row: mark.width for mark in scene.marks}
    change = table["change"].abs()
    strong, half = change.idxmax(), table.query("edge == 'last->last' and layer == 2").index[0]
    assert widths[strong] / widths[half] == pytest.approx(change[strong] / change[half])


def test_the_figure_is_saved_as_png_and_svg(tmp_path):
    figure = planted(control=1).diagram()
    figure.savefig(tmp_path / "a.png")
    figure.savefig(tmp_path / "a.svg")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert "<svg" in (tmp_path / "a.svg").read_text()[:600]
    told = " ".join(text.get_text() for text in figure.axes[0].texts)
    for wanted in ("20 prompts", "window of 1 layer", "−50%", "control", "question", "last"):
        assert wanted in told


def test_as_many_arrows_as_are_drawn():
    from matplotlib.patches import PathPatch

    result = planted(control=2)
    axes = result.diagram().axes[0]
    legend = 4  # three losses and a gain
    assert sum(type(patch) is PathPatch for patch in axes.patches) / 2 - legend == result.arrows()["drawn"].sum()
    assert not planted(noise=0.0).diagram(threshold=99.0).axes[0].images


def test_a_column_and_axes_of_ones_own():
    """The lanes take the height that there is; edges, names and colours are chosen as in every plot."""
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch

    result = planted(control=1)
    edge = str(result.arrows().query("drawn")["edge"].iloc[0])
    source, target = edge.split("->")
    figure = result.diagram(edges=[edge], figsize=(3.3, 2.4), labels={target: "the end"}, colors={source: "#ff0000"})
    assert tuple(figure.get_size_inches()) == (3.3, 2.4)
    told = [text.get_text() for text in figure.axes[0].texts]
    assert "(n=20)" in told[0]
    assert "the end" in told
    assert max(text.get_position()[1] for text in figure.axes[0].texts) < figure.axes[0].get_ylim()[0]
    arrows = [one for one in figure.axes[0].patches if type(one) is PathPatch]
    assert "#ff0000" in {to_hex(one.get_edgecolor()) for one in arrows}
    axes = Figure(figsize=(7, 3)).subplots(1, 2)
    assert result.diagram(ax=axes[1]) is axes[1].figure
    assert not axes[0].patches
    for given, text in (
        ({"figsize": (3.3, 0.5)}, "too low for"),
        ({"edges": ["image->x"]}, "not drawn here"),
        ({"labels": {"x": "y"}}, "'x' is not drawn here"),
        ({"ax": axes[0], "figsize": (3, 2)}, "with ax="),
    ):
        with pytest.raises(mmf.MMFlowError, match=text):
            result.diagram(**given)


def test_curves_show_the_control_band():
    assert len(planted(control=2).plot().axes[0].collections) == len(planted().plot().axes[0].collections) + 1
    assert not any(edge.startswith("control") for edge in planted(control=2).curves())
    assert "2 control(s) of image->question" in planted(control=2).summary()


# --- page


@pytest.mark.browser
def test_the_page_draws_and_answers(chromium, tmp_path):
    result = planted(control=2, windows=(1, 3))
    drawn = result.arrows(1)["drawn"].sum()
    with opened(chromium, result.explore().save(tmp_path / "flow.html")) as tab:
        visible = "figure:not([hidden]) .arrow:not(.off)"
        assert tab.locator(visible).count() == drawn
        assert tab.text_content("#count") == f"{drawn} arrows"
        tab.focus(f"{visible}[tabindex='0']")
        first = tab.text_content("#told")
        assert re.match(r"Layer \d, .* to .*: [+-]\d+\.\d% \(95% interval .*\), 20 prompts; control [+-]\d", first)
        tab.keyboard.press("ArrowRight")
        assert tab.text_content("#told") != first
        tab.keyboard.press("Home")
        assert tab.text_content("#told") == first
        tab.evaluate("least.value = 35; least.dispatchEvent(new Event('input'))")
        assert tab.locator(visible).count() == (result.arrows(1)["change"].abs() >= 35).sum() == 1
        tab.locator(visible).locator(".hit").hover(force=True)
        assert "image to question" in tab.text_content("#told")
        tab.evaluate("least.value = 0; passing.checked = false; least.dispatchEvent(new Event('input'))")
        assert tab.locator(visible).count() == len(result.arrows(1))
        tab.select_option("#window", "3")
        assert tab.locator("figure:not([hidden])").get_attribute("data-window") == "3"
        assert tab.locator("figure:not([hidden]) details tr").count() == 1 + len(result.arrows(3))


@pytest.mark.browser
def test_the_page_in_a_notebook_and_deep_models(chromium, tmp_path):
    page = like_the_paper().explore()
    shown = f"<!doctype html><html data-ready='yes'><body>{page._repr_html_()}</body></html>"
    (tmp_path / "notebook.html").write_text(shown)
    with opened(chromium, tmp_path / "notebook.html") as tab:
        frame = tab.frame_locator("iframe")
        frame.locator(".arrow:not(.off)").first.wait_for(state="attached")
        assert frame.locator(".arrow:not(.off)").count() == like_the_paper().arrows()["drawn"].sum()
        assert tab.locator("iframe").bounding_box()["height"] > 600
        assert frame.locator("text.layer").last.is_visible()


def test_the_page_escapes_names_and_a_terminal_shows_the_summary():
    evil = made_flow({"text('</svg><b>')->last": bump(-9, 1, 1)}, 4)
    html = evil.explore().html()
    assert "</svg><b>" not in html
    assert "&lt;/svg&gt;&lt;b&gt;" in html
    assert str(evil.explore()) == evil.summary()
