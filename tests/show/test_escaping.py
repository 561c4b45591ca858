"""What users and models write is shown as it is: in figures, in Markdown, in tables for spreadsheets."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

import nnsight_mmflow as mmf
from nnsight_mmflow._figure import ShownFigure
from nnsight_mmflow.command_line import edit as edit_command
from nnsight_mmflow.command_line import flow as flow_command
from nnsight_mmflow.command_line import prune as prune_command
from nnsight_mmflow.command_line import trace as trace_command
from nnsight_mmflow.files.escaping import markdown, write_csv

NAME = "m$o_{d$ \\frac{ el|<b>x"
ODD = "a $b$ \\frac{ | `c` <i>"
QUIET = {"progress": False, "report": lambda text: None}
NANO = {}


@pytest.fixture(scope="module")
def graph():
    made = mmf.load("nano")
    made.name = NAME
    return made


@pytest.fixture(scope="module")
def prompts(graph):
    """With a span, a token, a key and a kind that look like formulas."""
    odd = []
    for number, prompt in enumerate(mmf.nano.prompts(graph, 3)):
        spans = prompt.spans
        tokens = tuple(f"${token}$ \\frac{{" for token in spans.tokens)
        spans = replace(spans.having(**{"pa$t$ch": spans["image"]}), tokens=spans.tokens if number else tokens)
        odd.append(
            replace(
                prompt,
                spans=spans if number else prompt.spans.having(**{"pa$t$ch": prompt.spans["image"]}),
                key=f"=k$e${number}",
                kind="$kind$ \\frac{",
            )
        )
    return odd


@pytest.fixture(scope="module")
def figures(graph, prompts):
    """Every figure of the package, of results whose names look like formulas."""
    one = prompts[0]
    clean, corrupt = mmf.nano.trace_pairs(graph, 2, "flag")
    corrupt = [replace(each, how=f"{each.how} {ODD}") for each in corrupt]
    flow = mmf.flow(graph, prompts, ["pa$t$ch->last", "question->last"], 3, only_correct=False, controls=1, **QUIET)
    taken = mmf.contributions(graph, prompts, progress=False)
    lensed = mmf.lens_by_patch(graph, one, layers=[4])
    lensed.table["word"] = "$x_{$"
    fact = mmf.nano.edits(graph, 1)[0]
    fact = replace(fact, prompt=replace(fact.prompt, key=ODD))
    edited = mmf.edit(graph, fact, 4, settings=mmf.EditSettings(steps=2), **QUIET)
    pruned = mmf.prune_report(graph, prompts, {ODD: mmf.FastV(k=4)}, timed=0, **QUIET)
    kept = mmf.kept_tokens(graph, one, mmf.FastV(k=4))
    found = mmf.causal_trace(graph, clean, corrupt, ["image", "last"], ["mlp"], **QUIET)
    effect = mmf.attention_and_effect(graph, one, "pa$t$ch", "text('color')", layers=[3], controls=0, progress=False)
    patches = mmf.knockout_by_patch(graph, one, size=4, layers=[4], progress=False)
    swept = mmf.sweep(graph, prompts, lambda x: mmf.Skip(layers=3, at=x), ["pa$t$ch"], only_correct=False, **QUIET)
    odd = [replace(each, kind="other" if number else "$x_{$") for number, each in enumerate(prompts)]
    answers = mmf.accuracy(graph, odd, mmf.Skip(layers=3, at="image"), **QUIET)
    captions = mmf.flow(graph, one, ["pa$t$ch->last"], 3, score="caption", **QUIET)
    read = mmf.features(graph, prompts, "pa$t$ch", [2, 4], **QUIET)
    return {
        "sweep": swept.plot,
        "accuracy": answers.plot,
        "captions": captions.plot,
        "caption tokens": captions.plot_tokens,
        "flow": flow.plot,
        "diagram": flow.diagram,
        "lens": mmf.lens(graph, prompts, only_correct=False, progress=False).plot,
        "skip_flow": mmf.skip_flow(graph, prompts, ["pa$t$ch"], only_correct=False, **QUIET).plot,
        "word_overlap": mmf.word_overlap(graph, prompts[:1], "last", 3, progress=False).plot,
        "contributions": taken.plot,
        "contributions on image": lambda: taken.on_image(one, layer=4),
        "saliency": mmf.saliency(graph, prompts, progress=False).plot,
        "disruption": mmf.disruption(graph, prompts, layers=[3, 4], **QUIET).plot,
        "causal_trace": found.plot,
        "attribution": mmf.attribution_patching(graph, clean, corrupt, ["image"], exact=2, progress=False).plot,
        "edit": edited.plot,
        "prune_report": pruned.plot,
        "kept": lambda: kept.on_image(by_layer=True),
        "effect": effect.plot,
        "patches": patches.plot,
        "features": lambda: read.plot(by=[ODD, "$x$", "$\\frac{$"]),
        "words": lambda: lensed.plot(layer=4),
        "on_image": lambda: mmf.show.on_image(
            one, np.arange(128.0).reshape(2, 64), label=ODD, titles=[ODD, "$\\frac{$"]
        ),
    }  # fmt: skip


def test_no_figure_takes_a_text_for_a_formula(figures, tmp_path):
    failed = []
    for name, draw in figures.items():
        try:
            figure = draw()
            assert isinstance(figure, ShownFigure), name
            figure.savefig(tmp_path / "a.svg")
            if name in ("flow", "causal_trace"):
                figure.savefig(tmp_path / "tight.png", bbox_inches="tight")
                assert figure._repr_png_().startswith(b"\x89PNG")
            parsed = [text.get_text() for text in figure.findobj(Text) if text.get_parse_math()]
            failed += [f"{name}: {text!r} is parsed" for text in parsed]
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error!s:.100}")
    assert len(figures) >= 18
    assert not failed, "\n".join(failed)


def test_the_figures_can_fail(figures, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    monkeypatch.setattr(ShownFigure, "draw", Figure.draw)
    broken = []
    for name in ("flow", "lens", "causal_trace", "prune_report"):
        try:
            figures[name]().savefig(tmp_path / "a.png")
        except ValueError as error:
            broken.append((name, "Expected" in str(error) or "Unknown" in str(error)))
    assert len(broken) == 4


def test_a_users_style_does_not_bring_formulas_back(figures, tmp_path):
    import matplotlib as mpl

    with mpl.rc_context({"text.usetex": True, "axes.formatter.use_mathtext": True, "text.parse_math": True}):
        figures["flow"]().savefig(tmp_path / "a.svg")
    assert "$" in (tmp_path / "a.svg").read_text()


def test_notebooks_show_results_with_odd_names(graph, prompts):
    flow = mmf.flow(graph, prompts, ["pa$t$ch->last"], 3, only_correct=False, **QUIET)
    for shown in (flow._repr_html_(), prompts[0]._repr_html_(), flow.explore().html()):
        assert "<b>x" not in shown


MARKDOWN = {
    "a | b": "a \\| b",
    "<script>alert(1)</script>": "&lt;script>alert(1)&lt;/script>",
    "<!-- x -->": "&lt;!-- x -->",
    "&lt;b&gt;": "&amp;lt;b&amp;gt;",
    "# x": "\\# x",
    "- x": "\\- x",
    "+ x": "\\+ x",
    "> x": "\\> x",
    "= x": "\\= x",
    "1. x": "1\\. x",
    "1) x": "1\\) x",
    "`x`": "\\`x\\`",
    "[x](http://y)": "\\[x\\](http://y)",
    "![x](y)": "!\\[x\\](y)",
    "*x*": "\\*x\\*",
    "_x_": "\\_x\\_",
    "true_option->last": "true_option->last",
    "llava-hf/llava-1.5-7b": "llava-hf/llava-1.5-7b",
    "$x$": "\\$x\\$",
    "~~x~~": "\\~\\~x\\~\\~",
    "a\nb\n\n# c": "a b # c",
    "a\\": "a\\\\",
    "image[0]": "image\\[0\\]",
    "": "",
}  # fmt: skip


@pytest.mark.parametrize("text", MARKDOWN)
def test_markdown(text):
    assert markdown(text) == MARKDOWN[text]


def shown_cells(line):
    """The cells of a Markdown table's row, as a reader of Markdown splits them."""
    return [cell for cell in re.split(r"(?<!\\)(?:\\\\)*\|", line)][1:-1]


def test_reports_stay_tables_whatever_the_names(graph, prompts):
    flow = mmf.flow(graph, prompts, ["pa$t$ch->last"], 3, only_correct=False, **QUIET)
    flow.table["edge"] = "a|b<i>->la|st"
    clean, corrupt = mmf.nano.trace_pairs(graph, 2, "flag")
    traced = mmf.causal_trace(graph, clean, [replace(one, how=f"# {ODD}") for one in corrupt], ["last"], **QUIET)
    traced.table["span"] = "sp|an<i>"
    traced.header["left_out"] = {"<b>why</b> | x": 1}
    pruned = mmf.prune_report(graph, prompts, {f"| {ODD}": mmf.FastV(k=4)}, timed=0, controls=0, **QUIET)
    fact = mmf.nano.edits(graph, 1)[0]
    others = [replace(prompt, kind="k|ind<i>") for prompt in prompts]
    edited = mmf.edit_report(graph, [fact], others, 4, fine_tuning=False, settings=mmf.EditSettings(steps=2), **QUIET)
    reports = {
        "flow": (flow_command.report_text(flow), 5),
        "trace": (trace_command.report_text({"": traced}), 6),
        "prune": (prune_command.report_text(pruned), 11),
        "edit": (edit_command.report_text({"one": edited}), 7),
    }
    for name, (report, columns) in reports.items():
        rows = [line for line in report.splitlines() if line.startswith("|")]
        assert rows, name
        assert {len(shown_cells(row)) for row in rows} == {columns}, name
        assert not re.search(r"<[a-z/!]", report), name
        assert not re.search(r"(?<!\\)\$", report), name


FORMULAS = ["=1+1", "+1", "-1+2", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0"]


def test_a_spreadsheet_takes_no_text_for_a_formula(tmp_path):
    plain = ["plain", "a=b", " =1", "'=1", "1", "", "x-y"]
    table = pd.DataFrame({"=column": [*FORMULAS, *plain], "number": [-1.5, *range(len(FORMULAS) + len(plain) - 1)]})
    table["category"] = pd.Categorical(table["=column"])
    write_csv(table, tmp_path / "t.csv")
    read = pd.read_csv(tmp_path / "t.csv", keep_default_na=False)
    assert list(read.columns) == ["'=column", "number", "category"]
    assert list(read["'=column"]) == [f"'{text}" for text in FORMULAS] + plain
    assert list(read["category"]) == list(read["'=column"])
    assert read["number"][0] == -1.5
    assert list(table.columns)[0] == "=column", "the result itself stays as it is"


def test_the_commands_write_such_tables(tmp_path, monkeypatch):
    from nnsight_mmflow.command_line import main

    sample = mmf.nano.samples(1)[0]
    sample.image.save(tmp_path / "p.png")
    monkeypatch.setattr(mmf.nano, "samples", lambda *given: [replace(sample, key="=1+1", kind="@kind")])
    assert main(["lens", "--limit", "1", "--all", "--out", str(tmp_path / "o")]) == 0
    read = pd.read_csv(tmp_path / "o" / "lens.csv")
    assert set(read["prompt"]) == {"'=1+1"}
    assert set(read["kind"]) == {"'@kind"}
