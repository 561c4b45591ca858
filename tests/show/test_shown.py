"""How things show themselves: in notebooks as static HTML, escaped and in their own colours; in terminals short."""

import re
import subprocess
import sys
import textwrap
from dataclasses import fields, replace
from html.parser import HTMLParser

import pandas as pd
import pytest
import torch
from kit.browsing import opened
from kit.made_flow import made_flow
from kit.tiny import picture

import nnsight_mmflow as mmf
from nnsight_mmflow._figure import ShownFigure
from nnsight_mmflow.checks.report import CheckReport, Line
from nnsight_mmflow.runs.journal import Journal
from nnsight_mmflow.runs.plan import make_plan, sizes_of
from nnsight_mmflow.runs.results import Result
from nnsight_mmflow.runs.runner import Task
from nnsight_mmflow.show import overviews as _overviews
from nnsight_mmflow.show.colors import PALE, SPAN_COLORS, in_order, span_color
from nnsight_mmflow.show.prompts import stretches

QUIET = {"progress": False, "report": lambda text: None}
PLAIN, EVIL = "is the circle red or blue ?", "</script><b>circle</b>&blue"
FORBIDDEN = ("<script", "<style", "<link", "http://", "https://", "onerror", "onload")


def evil_prompt(graph, answer="<i>red</i>"):
    """A prompt as of a tokenizer that knows every character: as long, so that offsets stay."""
    assert len(PLAIN) == len(EVIL)
    prompt = graph.prompt(picture(0), PLAIN, answer)
    spans = replace(prompt.spans, prompt_text=prompt.spans.prompt_text.replace(PLAIN, EVIL))
    return replace(prompt, question=EVIL, text=spans.prompt_text, spans=spans)


class Balanced(HTMLParser):
    """Notes each element, and whether all that open also close."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def checked(html):
    """The parsed document: nothing open, no script or style element, nothing fetched, no class or id to collide."""
    parsed = Balanced()
    parsed.feed(html)
    assert parsed.open == []
    assert not [word for word in FORBIDDEN if word in html]
    for tag, attributes in parsed.seen:
        assert not {"class", "id"} & set(attributes), (tag, attributes)
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
            assert attributes["alt"]
        if tag in ("td", "th", "table"):  # a dark theme styles these: each brings its own colours
            assert "background:#fff" in attributes["style"]
            assert "color:#222" in attributes["style"]
    return parsed


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def prompts(nano):
    return mmf.nano.prompts(nano, 2, "QueryAttr")


def test_a_prompt_shows_picture_text_and_spans(graph):
    prompt = evil_prompt(graph)
    parsed = checked(prompt._repr_html_())
    assert sum(tag == "img" for tag, _ in parsed.seen) == 1
    assert "<b>" not in prompt._repr_html_()
    text = "".join(parsed.text)
    assert EVIL in text
    assert "answer: <i>red</i>" in text
    assert f"{len(prompt.spans['image'])} tokens" in text


def test_chips_partition_the_prompt_and_the_last_position_is_marked(graph):
    prompt = graph.prompt([picture(0), picture(1)], "is the circle red ?")
    found = stretches(prompt.spans)
    assert [position for _, held in found for position in held] == list(prompt.spans["all"])
    assert found[-1] == ("last", list(prompt.spans["last"]))
    assert [name for name, _ in found if name.startswith("image")] == ["image[0]", "image[1]"]


def test_a_batch_shows_its_rows_and_padding(graph):
    batch = graph.batch([evil_prompt(graph), graph.prompt(picture(1), "is the circle red ?", "blue")])
    text = "".join(checked(batch._repr_html_()).text)
    assert EVIL in text
    assert str(batch.spans[1]["all"].row[0]) in text
    assert repr(batch) == f"Batch(2 prompts, padded to {batch.inputs['input_ids'].shape[1]} positions)"


def test_spans_and_a_span(prompt):
    checked(prompt.spans._repr_html_())
    image = prompt.spans["image"]
    text = "".join(checked(image._repr_html_()).text)
    assert f"{image.positions[0]}-{image.positions[-1]}" in text
    assert repr(image) == f"Span('image', (*range({image.positions[0]}, {image.positions[-1] + 1}),), {image.row})"
    assert repr(prompt.spans["last"]).startswith("Span('last', (")


MADE = {
    mmf.results.FlowResult: lambda g, p: mmf.flow(g, p, window=3, controls=1, **QUIET),
    mmf.results.SweepResult: lambda g, p: mmf.sweep(
        g, p, lambda x: mmf.Knockout(source="image", target="last", layers=x), range(3), **QUIET
    ),
    mmf.results.AccuracyResult: lambda g, p: mmf.accuracy(
        g, p, mmf.Knockout(source="image", target="last", layers=3), **QUIET
    ),
    mmf.results.LensResult: lambda g, p: mmf.lens(g, p, progress=False),
    mmf.results.SkipFlowResult: lambda g, p: mmf.skip_flow(g, p[:1], ["image"], **QUIET),
    mmf.results.SaliencyResult: lambda g, p: mmf.saliency(g, p[:1], progress=False),
    mmf.results.DisruptionResult: lambda g, p: mmf.disruption(g, p[:1], ["img2txt"], **QUIET),
    mmf.results.ContributionsResult: lambda g, p: mmf.contributions(
        g, p, source="image", target="last", progress=False
    ),
    mmf.results.WordOverlapResult: lambda g, p: mmf.word_overlap(g, p[:1], at="text('color')", progress=False),
    mmf.results.AttentionAndEffectResult: lambda g, p: mmf.attention_and_effect(
        g, p[0], "text('color')", layers=[3, 4], controls=2, progress=False
    ),
    mmf.results.KnockoutByPatchResult: lambda g, p: mmf.knockout_by_patch(g, p[0], size=2, window=3, progress=False),
    mmf.results.LensByPatchResult: lambda g, p: mmf.lens_by_patch(g, p[0], layers=[3, 5]),
    mmf.results.PruneReport: lambda g, p: mmf.prune_report(g, p, [mmf.FastV(k=5)], timed=0, **QUIET),
    mmf.results.CausalTraceResult: lambda g, p: mmf.causal_trace(g, *mmf.nano.trace_pairs(g, 2, "flag"), **QUIET),
    mmf.results.AttributionPatchingResult: lambda g, p: mmf.attribution_patching(
        g, *mmf.nano.trace_pairs(g, 2, "flag"), progress=False
    ),
    mmf.results.AttentionResult: lambda g, p: mmf.attention(g, p[0], layers=[3, 4]),
    mmf.results.KeptTokensResult: lambda g, p: mmf.kept_tokens(g, p[0], mmf.HiMAP(k1=2, k2=4)),
    mmf.results.FeaturesResult: lambda g, p: mmf.features(g, p, "last", [2, 5], **QUIET),
    mmf.results.ProbeResult: lambda g, p: mmf.probe(
        mmf.features(g, mmf.nano.prompts(g, 8), "last", [2, 5], **QUIET), ["a", "b"] * 4, folds=2, controls=1, **QUIET
    ),
    mmf.results.EditResult: lambda g, p: mmf.edit(g, mmf.nano.edits(g, 1)[0], layers=4),
    mmf.results.EditReport: lambda g, p: mmf.edit_report(g, mmf.nano.edits(g, 2), p, 4, fine_tuning=False, **QUIET),
}


def subclasses(kind):
    return set(kind.__subclasses__()).union(*(subclasses(one) for one in kind.__subclasses__()))


def test_every_kind_of_result_is_tested_and_has_its_overview():
    [getattr(mmf, name) for name in mmf.__all__]
    ours = {
        kind for kind in subclasses(Result) if kind.__module__.startswith("nnsight_mmflow") and "kind" in vars(kind)
    }
    assert ours == set(MADE)
    assert {kind.kind for kind in ours} == set(_overviews.OVERVIEWS)


@pytest.mark.parametrize("kind", MADE, ids=lambda kind: kind.__name__)
def test_every_result_shows_itself(kind, nano, prompts, shelf):
    result = MADE[kind](nano, prompts)
    assert type(result) is kind
    html = result._repr_html_()
    shelf[kind.__name__] = html
    parsed = checked(html)
    assert sum(tag == "img" for tag, _ in parsed.seen) == 1
    assert 2 <= sum(tag == "tr" for tag, _ in parsed.seen) <= 60
    assert "nano" in "".join(parsed.text)
    assert repr(result).startswith(f"{kind.__name__}(nano")
    assert "\n" not in repr(result)
    assert str(result) == result.summary()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """What was shown, to be looked at: written to one document when the module ends."""
    held = {}
    yield held
    (tmp_path_factory.getbasetemp() / "all.html").write_text("<br>".join(held.values()))


def test_a_result_of_an_unknown_kind_shows_its_first_rows():
    class Mine(Result):
        kind = "mine"

        def plot(self):
            return ShownFigure()

        def summary(self):
            return "mine"

    shown = Mine(pd.DataFrame({"<b>": ["</td>"] * 9}), {"model": "<i>"})._repr_html_()
    assert "".join(checked(shown).text).count("</td>") == 6
    assert "&lt;i&gt;" in shown


PATTERNS = [
    mmf.Knockout(source="image", target="last", layers=range(3, 6)),
    mmf.Patch(at="image", site="mlp", layers=range(3), value=torch.zeros(3, 1, 1, 8)),
    mmf.Skip(layers=[7, 8], at="image"),
    mmf.ZeroWeights(source="image", target="last", layers=2),
    mmf.prune.Prune(own=[mmf.prune.Stage(layer=2, keep=0.5, rank=len)]),
    *(
        kind()
        for kind in (
            mmf.HiMAP,
            mmf.FastV,
            mmf.PyramidDrop,
            mmf.prune.SparseVLM,
            mmf.prune.VisionZip,
            mmf.prune.FasterVLM,
        )
    ),
    mmf.prune.VisiPruner(),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: type(pattern).__name__)
def test_patterns_show_what_they_do_and_their_settings_without_a_model(pattern):
    text = "".join(checked(pattern._repr_html_()).text)
    assert text.startswith(type(pattern).__name__)
    for name in ("layers", "mode", "k1"):
        if name in {field.name for field in fields(pattern)}:
            assert name in text
    if type(pattern).__name__ in ("Knockout", "ZeroWeights", "HiMAP", "FastV"):
        assert re.search(r"Source: .*arXiv \d{4}\.\d{5}", text)
    assert len(repr(pattern)) < 250


def test_a_method_of_ones_own_and_spans_as_settings(prompt):
    from dataclasses import dataclass

    @dataclass(frozen=True, kw_only=True)
    class Mine(mmf.prune.Prune):
        note: str = "<b>"

    text = "".join(checked(Mine()._repr_html_()).text)
    assert "Drops image tokens between layers" in text  # not the signature that a dataclass puts in its docstring
    assert "<b>" in text
    image = prompt.spans["image"]
    text = "".join(checked(mmf.Knockout(source=image, target="last", layers=1)._repr_html_()).text)
    assert f"image: {len(image)} positions" in text


def test_a_plan_shows_its_cost(graph, prompt):
    plan = make_plan(sizes_of(graph, prompt), prompt.spans, ("image->last",), (1, 3))
    text = "".join(checked(plan._repr_html_()).text)
    assert f"{plan.n_rows} rows in all" in text
    assert f"{plan.naive_flops / plan.row_flops:.0f} times fewer" in text
    assert repr(plan).startswith("Plan(1 edges x windows")


def test_kept_tokens_and_a_report(nano, prompts):
    kept = mmf.kept_tokens(nano, prompts[0], mmf.HiMAP(k1=2, k2=4))
    text = "".join(checked(kept._repr_html_()).text)
    assert "4 to 9" in text
    assert "12%" in text
    report = CheckReport("<model>", (Line("a", "pass", "1e-6"), Line("b", "fail", "off by <9>")))
    text = "".join(checked(report._repr_html_()).text)
    assert "<model>: 1 of 2 checks failed" in text
    assert text.index("off by <9>") < text.index("1e-6")
    assert repr(report) == "CheckReport('<model>', 2 checks, 1 failed)"


def test_a_job_shows_where_it_stands_and_no_id(graph, prompt, tmp_path):
    plan = make_plan(sizes_of(graph, prompt), prompt.spans, ("image->last",), (1,))
    work = [Task(name, (prompt, prompt.spans, plan), f"prompt {name!r}") for name in ("one", "two")]
    job = mmf.results.FlowJob(graph, work, {}, Journal(None, {}), tmp_path, {"two": "SECRET"})
    html = job._repr_html_()
    text = "".join(checked(html).text)
    assert "1 of 2 prompts fetched" in text
    assert "SECRET" not in html


def test_colours_of_spans():
    assert set(PALE) <= set(SPAN_COLORS)
    assert len(set(SPAN_COLORS.values())) == len(SPAN_COLORS)
    assert span_color("image[0].tile[2]") == SPAN_COLORS["image"]
    assert span_color("text('red')") == SPAN_COLORS["question"]
    asked = ["last", "question", "image - object", "image", "text('a')", "object", "image"]
    assert in_order(asked) == ["image", "image - object", "object", "question", "text('a')", "last"]


KERNEL = """
    import sys, types, warnings
    warnings.simplefilter("error")
    sys.modules["ipywidgets"] = None  # not installed
    import IPython
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    IPython.get_ipython = lambda: shell
    sys.modules["IPython"].get_ipython = IPython.get_ipython
    import builtins
    builtins.get_ipython = IPython.get_ipython
    from nnsight_mmflow._progress import progress_bar
    assert list(progress_bar([1, 2], "flow", shown=True)) == [1, 2]
"""


def test_a_notebook_without_widgets_gets_a_bar_and_no_warning():
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KERNEL)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "2/2" in done.stderr


@pytest.mark.browser
def test_a_dark_notebook_leaves_them_readable(chromium, graph, tmp_path):
    """Under a theme that makes all text white, ours stays black on white, and no style of ours reaches beside it."""
    prompt = evil_prompt(graph)
    result = made_flow({"image->last": lambda layer: -9.0}, 4)
    theme = "body, td, th { color: white } body, table, tr, td { background: #111 } p { color: rgb(1, 2, 3) }"
    shown = "".join(f"<section>{one._repr_html_()}</section>" for one in (prompt, result, PATTERNS[0]))
    file = tmp_path / "dark.html"
    file.write_text(f"<!doctype html><html data-ready=yes><style>{theme}</style><p id=beside>x</p>{shown}</html>")
    with opened(chromium, file) as tab:
        colors = tab.evaluate(
            "[...document.querySelectorAll('section *')].filter(one => one.childNodes.length && one.innerText)"
            ".map(one => getComputedStyle(one).color)"
        )
        assert colors
        assert "rgb(255, 255, 255)" not in colors
        assert tab.evaluate("getComputedStyle(beside).color") == "rgb(1, 2, 3)"
        assert tab.evaluate("document.documentElement.scrollWidth") <= 900
