"""One of each kind is added, as CONTRIBUTING.md says: an intervention, a pruning method, an experiment, a family."""

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import nnsight
import pandas as pd
import pytest
import torch
from kit import tiny
from transformers import LlavaForConditionalGeneration

import nnsight_mmflow as mmf
from nnsight_mmflow import adapters
from nnsight_mmflow._figure import ShownFigure
from nnsight_mmflow.adapters.llava import Llava
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.identity import prompt_identity
from nnsight_mmflow.runs.results import Result
from nnsight_mmflow.runs.runner import Study, counted, listed, prompt_task, rows_of, run_study


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def asked(nano):
    return mmf.nano.prompts(nano, 2)


@dataclass(frozen=True, kw_only=True)
class Times(mmf.Pattern):
    """Multiplies what MLPs add at a span.

    Source: this test.
    """

    at: str
    layers: int | Iterable[int]
    factor: float
    site: str = "mlp"

    def change(self, values, layer):
        return values * self.factor


@dataclass(frozen=True, kw_only=True)
class Nothing(mmf.Pattern):
    """A pattern that writes no method."""

    at: str


class Bare(mmf.Pattern):
    """A pattern that is no dataclass."""

    def change(self, values, layer):
        return values * 2


@dataclass(frozen=True, kw_only=True)
class TraceOnly(mmf.Pattern):
    """A pattern that acts in traces alone."""

    layers: int

    def check(self, graph, rows, form):
        self.layer_list(graph)

    def run(self, graph, rows):
        return 1


def hooked(graph, pattern, positions):
    """The same by plain hooks on the module's own forward."""

    def scale(module, given, output):
        if output.shape[1] <= max(positions):
            return output  # a step of a generation
        output = output.clone()
        output[:, positions] *= pattern.factor
        return output

    return [graph.mlp(layer)._module.register_forward_hook(scale) for layer in pattern.layers]


def test_an_intervention(nano, asked):
    pattern = Times(at="image", layers=range(2, 5), factor=0.0)
    prompt, settings = asked[0], {"max_new_tokens": 3, "do_sample": False}
    with torch.no_grad(), nano.trace(prompt, pattern, use_cache=False):
        logits = nano.unembed.output[0, -1].save()
    with torch.no_grad(), nano.generate(prompt, pattern, **settings) as tracer:
        ids = tracer.result.save()
    model, hooks = nano.adapter.model, hooked(nano, pattern, list(prompt.spans["image"]))
    with torch.no_grad():
        by_hooks = model(**prompt.inputs).logits[0, -1]
        ids_by_hooks = model.generate(**prompt.inputs, **settings)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        plain = model(**prompt.inputs).logits[0, -1]
    assert torch.equal(logits, by_hooks)
    assert (logits - plain).abs().max() > 0.1
    assert torch.equal(ids, ids_by_hooks)
    assert pattern.layer_list(nano) == [2, 3, 4]
    assert repr(pattern) == "Times(at='image', layers=range(2, 5), factor=0.0, site='mlp')"
    html = pattern._repr_html_()
    for shown in ("Multiplies what MLPs add at a span.", "this test", "2 to 4"):
        assert shown in html


def test_an_intervention_is_refused_where_it_lacks_something(nano, asked):
    with pytest.raises(mmf.NoEffectError, match="would change nothing: its `change` gives back"):
        traced(nano, asked[0], Times(at="image", layers=2, factor=1.0))
    with pytest.raises(mmf.MMFlowError, match=r"layers \[99\] do not exist; there are 10"):
        nano.trace(asked[0], Times(at="image", layers=99, factor=0.5))
    with pytest.raises(mmf.MMFlowError, match="site must be one of"):
        Times(at="image", layers=2, factor=0.5, site="foo")
    with pytest.raises(mmf.SpanError, match="at is a span's name or expression"):
        Times(at=3, layers=2, factor=0.5)
    with pytest.raises(mmf.ModelError, match=r"Nothing does nothing: write `def change\(self, values, layer\): return"):
        Nothing(at="image")
    with pytest.raises(mmf.ModelError, match=r"Bare is no dataclass, .* write @dataclass\(frozen=True, kw_only=True\)"):
        Bare(at="image")
    with pytest.raises(mmf.ModelError, match=r"TraceOnly cannot act in a generation: its class writes no run_each"):
        nano.generate(asked[0], TraceOnly(layers=1), max_new_tokens=1)
    with pytest.raises(mmf.ModelError, match=r"TraceOnly cannot act on a TransformerLens bridge: use graph\.trace"):
        TraceOnly(layers=1).edits(nano, asked[0].rows(), asked[0])
    whole = asked[0].spans["image"]  # a Span does where a name does, whatever the field says
    found = [traced(nano, asked[0], Times(at=at, layers=2, factor=0.5)) for at in (whole, "image")]
    assert torch.equal(*found)


def traced(graph, prompt, pattern):
    with torch.no_grad(), graph.trace(prompt, pattern, use_cache=False):
        logits = graph.unembed.output[0, -1].save()
    return logits


@dataclass(frozen=True, kw_only=True)
class Loudest(mmf.prune.Prune):
    """The image tokens whose residual stream is longest stay."""

    k: int = 2
    keep: int = 16

    def stages(self, graph, image_tokens):
        return [mmf.prune.Stage(self.k, self.keep, loudness, "")]


def loudness(seen):
    """A number for each image token that is there."""
    return seen.hidden[seen.image].norm(dim=-1)


def test_a_pruning_method(nano, asked):
    prompt, pattern = asked[0], Loudest()
    reader = nano.layers[1]
    with torch.no_grad(), nano.trace(prompt, use_cache=False):
        loud = reader.output[0, list(prompt.spans["image"])].norm(dim=-1).save()
    kept = mmf.kept_tokens(nano, prompt, pattern, progress=False, report=str)
    assert kept.layers[2] == loud.topk(16).indices.sort().values.tolist()
    assert kept.counts == [64, 64, *[16] * 8]
    found = []
    for mode in ("drop", "mask"):
        with torch.no_grad(), nano.trace(prompt, Loudest(mode=mode), use_cache=False):
            logits = nano.unembed.output[0, -1].save()
        found.append(logits)
    assert (found[0] - found[1]).abs().max() < 1e-4
    report = mmf.prune_report(nano, asked, [pattern], max_new_tokens=2, timed=0, progress=False, report=str)
    assert str(pattern) in set(report.to_frame()["method"])
    assert pattern.budget(nano, 64) == 25.6


class NormsResult(Result):
    """Lengths of the residual stream. One table row per prompt, layer and position: prompt, kind, layer, norm."""

    kind: ClassVar[str] = "norms"

    def plot(self):
        figure = ShownFigure()
        self.table.groupby("layer")["norm"].mean().plot(ax=figure.subplots())
        return figure

    def summary(self):
        return f"{self.header['model']}: mean norm {self.table['norm'].mean():.2f}"


@experiment
def norms(
    graph,
    prompts,
    at="last",
    *,
    folder=None,
    remote=None,
    workers=0,
    blocking=True,
    progress=True,
    report=str,
):
    """A NormsResult: how long the residual stream is at a span, layer by layer."""
    graph, given = graph.at(remote), listed(prompts, "norms")
    study = Study(
        name="norms",
        settings={"at": at},
        tasks=[prompt_task(prompt, prompt_identity(prompt), list(prompt.spans[at])) for prompt in given],
        measure=measure_norms,
        collect=lambda entries: NormsResult(
            pd.DataFrame(rows_of(given, entries)), {"model": graph.name, "at": at, **counted([""] * len(entries))}
        ),
        cost=lambda left: "a forward each.",
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def measure_norms(graph, prompt, positions):
    layers, n_layers = graph.layers, graph.n_layers
    with torch.no_grad(), graph.trace(prompt, use_cache=False, logits_to_keep=1):
        found = nnsight.save([layers[layer].output[0, positions].norm(dim=-1).tolist() for layer in range(n_layers)])
    return {"rows": [{"layer": layer, "norm": norm} for layer, each in enumerate(found) for norm in each]}


def test_an_experiment(nano, asked, tmp_path):
    told = []
    first = norms(nano, asked[:1], folder=tmp_path, progress=False, report=told.append)
    result = norms(nano, asked, folder=tmp_path, progress=False, report=told.append)
    assert told == [
        "norms: 1 prompt(s) to run; a forward each.",
        "norms: 1 prompt(s) to run, 1 done already; a forward each.",
    ]
    assert len(result.to_frame()) == 2 * nano.n_layers
    assert result.to_frame()[: nano.n_layers].equals(first.to_frame())
    with torch.no_grad():
        hidden = nano.adapter.model(**asked[1].inputs, output_hidden_states=True).hidden_states[3][0, -1].norm()
    mine = result.to_frame().query("layer == 2")["norm"].iloc[1]
    assert abs(mine - float(hidden)) < 1e-4
    assert NormsResult.load(tmp_path).to_frame().equals(result.to_frame())
    assert repr(result) == "NormsResult(nano, 2 prompts counted, 20 rows)"
    assert "<table" in result._repr_html_()
    assert json.loads((tmp_path / "settings.json").read_text())["experiment"] == "norms"
    with pytest.raises(mmf.DataError, match="holds a run with other settings"):
        norms(nano, asked, "image", folder=tmp_path, progress=False)
    with pytest.raises(mmf.MMFlowError, match="norms needs at least one prompt"):
        norms(nano, [])


class StrangerForConditionalGeneration(LlavaForConditionalGeneration):
    """A family that the package does not know."""


class Stranger(Llava):
    """Where things are in it: as in Llava."""

    family = "stranger"


def test_a_family_by_an_entry_point_or_a_line_of_the_table(monkeypatch):
    model, processor = tiny.tiny_model(n_layers=3), tiny.tiny_processor()
    model.__class__ = StrangerForConditionalGeneration
    with pytest.raises(mmf.ModelError, match="no adapter for StrangerForConditionalGeneration"):
        mmf.adapt(model, processor)
    monkeypatch.setitem(sys.modules, "stranger", SimpleNamespace(Stranger=Stranger))
    entry = SimpleNamespace(name="StrangerForConditionalGeneration", value="stranger:Stranger")
    with monkeypatch.context() as registered:
        registered.setattr(adapters, "entry_points", lambda group: [entry] if group == adapters.GROUP else [])
        by_entry = mmf.adapt(model, processor)
    monkeypatch.setitem(adapters.TABLE, entry.name, entry.value)
    for graph in (by_entry, mmf.adapt(model, processor)):
        assert graph.family == "stranger"
        prompt = graph.prompt(tiny.picture(0), "is the circle red or blue ?", "red")
        with torch.no_grad(), graph.trace(prompt, mmf.Knockout(source="image", target="last", layers=[1])):
            logits = graph.unembed.output[0, -1].save()
        assert torch.isfinite(logits).all()
    report = mmf.check(graph, progress=False)
    assert [line.name for line in report.lines if line.outcome == "fail"] == []


def test_every_file_that_contributing_names_is_there():
    root = Path(__file__).parents[2]
    told = (root / "CONTRIBUTING.md").read_text()
    named = {name for name in re.findall(r"`([\w./]+/[\w./]*)`", told) if "NAME" not in name}
    bases = (root, root / "nnsight_mmflow", root / "tests")
    lacking = sorted(name for name in named if not any((base / name.removeprefix("./")).exists() for base in bases))
    assert len(named) > 30
    assert lacking == []
    rooms = {line.split("|")[1] for line in told.splitlines() if line.startswith("| `")}
    listed = set(re.findall(r"`(\w+)/`", " ".join(rooms))) - {"patterns", "adapters"}
    assert listed == {init.parent.name for init in (root / "nnsight_mmflow").glob("*/__init__.py")}
