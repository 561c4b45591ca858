"""Every result's plot: the same arguments, read at a column's width, TrueType in its PDFs, and n beside each curve."""

import inspect
import re
import zlib

import matplotlib.pyplot as plt
import pytest
from kit.drawn import COLUMN, faults
from kit.experiments import ROWS, prompts_of
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import nnsight_mmflow as mmf

ASKED = ("ax", "rows", "figsize", "colors", "labels")


@pytest.fixture(scope="module")
def results():
    """Each experiment's result, by the row's name."""
    graph = mmf.load("nano")
    prompts = prompts_of(graph)
    quiet = {"progress": False, "report": lambda text: None}
    return {row.name: row.run(graph, row.given(graph, *prompts), **quiet) for row in ROWS}


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def wrong_of(results, look) -> list[str]:
    """The faults of each result's plot, as `look` draws it; all of them together."""
    return [f"{name}: {fault}" for name, result in results.items() for fault in look(name, result)]


def test_the_check_finds_what_it_is_for():
    """Planted: a text over another, one that leaves the figure, one too small to read."""
    figure = Figure(figsize=COLUMN)
    for x, y, size, word in (
        (0.2, 0.5, 8, "one"),
        (0.21, 0.5, 8, "two"),
        (0.9, 0.9, 8, "a long way"),
        (0.5, 0.2, 4, "tiny"),
    ):
        figure.text(x, y, word, fontsize=size)
    kinds = [fault.split(":")[0] for fault in faults(figure)]
    assert kinds == ["outside", "small", "overlap"]


def test_every_plot_takes_them():
    for row in ROWS:
        taken = inspect.signature(getattr(mmf.results, row.result).plot).parameters
        assert set(ASKED) <= set(taken), row.name
        assert all(taken[name].kind is inspect.Parameter.KEYWORD_ONLY for name in ASKED)
    assert "edges" in inspect.signature(mmf.results.FlowResult.plot).parameters


def test_every_plot_is_read_at_a_columns_width(results):
    assert wrong_of(results, lambda name, result: faults(result.plot(figsize=COLUMN))) == []


def test_every_plot_is_read_as_it_is(results):
    assert wrong_of(results, lambda name, result: faults(result.plot())) == []


def test_figsize_and_axes(results):
    def look(name, result):
        figure = result.plot(figsize=(5.0, 3.0))
        wrong = [] if tuple(figure.get_size_inches()) == (5.0, 3.0) else [f"figsize: {figure.get_size_inches()}"]
        own, (left, right) = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
        drawn = result.plot(ax=right)
        wrong += [] if drawn is own else ["another figure"]
        wrong += [] if right.has_data() else ["nothing on the axes"]
        wrong += ["drawn on the other axes"] if left.has_data() else []
        wrong += ["the figure's own title"] if own.get_suptitle() else []
        plt.close(own)
        alone = Figure(figsize=(6, 4))
        place = alone.add_axes((0.1, 0.1, 0.8, 0.8))
        return wrong + ([] if result.plot(ax=place) is alone and place.has_data() else ["axes without a grid"])

    assert wrong_of(results, look) == []


def test_wrong_names_are_refused(results):
    def look(name, result):
        wrong = []
        for given in ({"rows": ["nobody"]}, {"labels": {"nobody": "x"}}, {"colors": {"nobody": "red"}}):
            try:
                result.plot(**given)
                wrong.append(f"took {given}")
            except mmf.MMFlowError as error:
                if "there are" not in str(error) and "colour map" not in str(error):
                    wrong.append(f"{given}: {error}")
        return wrong

    assert wrong_of(results, look) == []


def test_colours_and_labels_change_line_band_and_legend_together(results):
    flow = results["flow"]
    chosen, others = ["image->last", "question->last"], {"image->last": "tab:red"}
    figure = flow.plot(edges=chosen, colors=others, labels={"image->last": "picture"})
    (axes,), red = figure.axes, to_hex("tab:red")
    lines = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    assert [line.get_label() for line in lines] == ["picture (n=2)", "question \u219b last (n=2)"]
    assert to_hex(lines[0].get_color()) == red
    assert to_hex(axes.collections[0].get_facecolor()[0]) == red
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["picture (n=2)", "question \u219b last (n=2)"]
    assert to_hex(figure.legends[0].get_lines()[0].get_color()) == red
    whole = flow.plot().axes[0].get_lines()
    same = next(line for line in whole if line.get_label().startswith("question \u219b last"))
    assert same.get_color() == lines[1].get_color()  # a subset keeps its colours
    in_order = flow.plot(edges=chosen[::-1], labels=["one", "two"], colors=["k", "tab:red"]).axes[0].get_lines()
    assert [line.get_label() for line in in_order[1:]] == ["one (n=2)", "two (n=2)"]
    with pytest.raises(mmf.MMFlowError, match=r"edges: 'image->nobody' is not drawn here; there are image->last"):
        flow.plot(edges="image->nobody")
    with pytest.raises(mmf.MMFlowError, match="knows no such colours"):
        flow.plot(colors={"image->last": "no colour"})
    with pytest.raises(mmf.MMFlowError, match="give one for each of the"):
        flow.plot(labels=["one"])
    with pytest.raises(mmf.MMFlowError, match="figsize is .width, height. in inches"):
        flow.plot(figsize=(3, -1))
    with pytest.raises(mmf.MMFlowError, match="with ax= it is your figure"):
        flow.plot(ax=plt.subplots()[1], figsize=(3, 3))
    with pytest.raises(mmf.MMFlowError, match="2 axes came for a plot of 3 panels"):
        results["lens"].plot(ax=plt.subplots(1, 2)[1])
    with pytest.raises(mmf.MMFlowError, match="such as 'viridis'"):
        results["attention"].plot(colors="viridi")
    assert results["attention"].plot(colors="magma").axes[0].images[0].get_cmap().name == "magma"


def test_n_stands_with_each_curve(results):
    """An edge that half of the prompts have says so; a title cannot."""
    flow = results["flow"]
    table = flow.table[(flow.table["edge"] != "image->last") | (flow.table["prompt"] == flow.table["prompt"].iloc[0])]
    labels = [line.get_label() for line in type(flow)(table, flow.header).plot().axes[0].get_lines()]
    assert "image \u219b last (n=1)" in labels
    assert "question \u219b last (n=2)" in labels


def font_kinds(file) -> set[str]:
    """The kinds of the fonts in a PDF, from its objects, compressed ones too."""
    held = file.read_bytes()
    streams = [held]
    for match in re.finditer(rb"stream\r?\n(.*?)endstream", held, re.S):
        try:
            streams.append(zlib.decompress(match[1]))
        except zlib.error:
            continue
    return {
        kind.decode()
        for part in streams
        for kind in re.findall(rb"/Subtype */(Type3|Type0|CIDFontType2|TrueType)", part)
    }


def test_documents_embed_truetype(results, tmp_path):
    results["flow"].plot().savefig(tmp_path / "own.pdf")
    assert font_kinds(tmp_path / "own.pdf") == {"Type0", "CIDFontType2"}
    figure, axes = plt.subplots(1, 2)
    results["flow"].plot(ax=axes[0])
    axes[1].set_title("$x^2$")  # the caller's formulas stay formulas
    figure.savefig(tmp_path / "yours.pdf")
    assert "Type3" not in font_kinds(tmp_path / "yours.pdf")
    assert axes[1].title.get_parse_math()
    plain, axis = plt.subplots()
    axis.set_title("others are left alone")
    plain.savefig(tmp_path / "other.pdf")
    assert "Type3" in font_kinds(tmp_path / "other.pdf")
