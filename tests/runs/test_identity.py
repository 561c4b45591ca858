"""A folder goes on with its own run alone: what was changed between two runs on it, and what must then happen."""

import copy
import inspect
import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import Parameter

import nnsight_mmflow as mmf
from nnsight_mmflow.model.twin import copy_module, twin_graph
from nnsight_mmflow.patterns.edit.there import edited_there
from nnsight_mmflow.patterns.edit.update import Update
from nnsight_mmflow.runs import identity
from nnsight_mmflow.runs.fingerprint import fingerprint, tensor_digest, weights_digest
from nnsight_mmflow.runs.identity import model_identity
from nnsight_mmflow.runs.journal import Journal, line_of

EDGES = ["image->last"]
PATH = "model.language_model.layers.4.mlp.down_proj.weight"


def nano(**given):
    return mmf.load("nano", **given)


def changed(path, change):
    """Nano with one tensor changed in memory, past torch's own version counter."""

    def make(base):
        graph = mmf.adapt(copy.deepcopy(base.adapter.model), base.processor)
        owner, _, last = path.rpartition(".")
        change(getattr(graph.adapter.model.get_submodule(owner), last).data)
        graph.name = base.name
        return graph

    return make


def element(data):
    data.view(-1)[12345 % data.numel()] += 1e-3


def row(data):
    data[7] *= -1


def swapped(data):
    data[[3, 5]] = data[[5, 3]]


def with_config(**settings):
    def make(base):
        graph = mmf.adapt(copy_module(base.adapter.model), base.processor)
        for name, value in settings.items():
            setattr(graph.text_config if hasattr(graph.text_config, name) else graph.adapter.config, name, value)
        graph.name = base.name
        return graph

    return make


def with_token(base):
    processor = copy.deepcopy(base.processor)
    processor.tokenizer.add_tokens(["zebra"])
    graph = mmf.adapt(copy_module(base.adapter.model), processor)
    graph.name = base.name
    return graph


def view(seed):
    """An edited view, as `mmf.edit` makes them: all are called "nano, edited"."""

    def make(base):
        weight = base.adapter.model.get_parameter(PATH)
        drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        return twin_graph(base, {PATH: weight.detach() + 1e-3 * drawn}, "nano, edited")

    return make


def added(seed):
    """The same as an edit on a server is: a product added in every forward, no weight changed."""

    def make(base):
        drawn = torch.Generator().manual_seed(seed)
        width = base.adapter.model.get_parameter(PATH).shape
        update = Update(torch.randn(width[0], 1, generator=drawn), torch.randn(1, width[1], generator=drawn))
        return edited_there(base, {4: update}, "nano, edited")

    return make


def traced(value):
    """An nnsight edit of the user's own."""

    def make(base):
        layer = base.layers[2]
        with base.model.edit() as (_, edited):
            layer.output[:] = layer.output * value
        return base.but(model=edited)

    return make


# what changed: (the graph of the first run, that of the second), and the name that must be told
MODELS = {
    "one element": (None, changed(PATH, element), "weights was"),
    "one element of the embedding": (None, changed("model.language_model.embed_tokens.weight", element), "weights was"),
    "one row": (None, changed(PATH, row), "weights was"),
    "two rows swapped": (None, changed(PATH, swapped), "weights was"),
    "the tower's bias": (None, changed("model.multi_modal_projector.linear_1.bias", element), "weights was"),
    "a buffer": (None, changed("model.language_model.rotary_emb.inv_freq", element), "weights was"),
    "two edited views of one name": (view(0), view(1), "weights was"),
    "two edits on a server": (added(0), added(1), "edits was"),
    "an edit of one's own": (traced(0.9), traced(0.8), "edits was"),
    "an edit or none": (None, traced(0.8), "edits was None"),
    "another type": (None, lambda base: nano(dtype=torch.float64), "dtype was 'float32', is 'float64'"),
    "another attention": (None, lambda base: nano(attn_implementation="eager"), "attention was 'sdpa', is 'eager'"),
    "a setting of the model": (None, with_config(rms_norm_eps=1e-3), "config was"),
    "quantisation": (None, with_config(quantization_config={"bits": 4}), "quantisation was None, is 'bits=4'"),
    "a revision": (None, with_config(_commit_hash="abc"), "revision was None, is 'abc'"),
    "another tokenizer": (None, with_token, "tokenizer was"),
    "another name": (None, lambda base: base.but(name="other"), "model was 'nano', is 'other'"),
}


@pytest.fixture(scope="module")
def base():
    return nano()


@pytest.fixture(scope="module")
def prompts(base):
    return mmf.nano.prompts(base, 3)


@pytest.fixture
def told():
    return []


def flow(graph, prompts, folder, told=None, **given):
    settings = {"edges": EDGES, "window": 1, "only_correct": False, "progress": False, **given}
    return mmf.flow(graph, prompts, folder=folder, report=(told if told is not None else []).append, **settings)


def model_failures(base, tmp_path):
    """The rows of MODELS that do not hold: settings alone are compared, nothing is run."""
    failing = []
    for number, (what, (first, second, text)) in enumerate(MODELS.items()):
        folder = tmp_path / str(number)
        Journal(folder, model_identity(first(base) if first else base))
        Journal(folder, model_identity(first(base) if first else base))  # goes on with itself, made anew
        try:
            Journal(folder, model_identity(second(base)))
        except mmf.DataError as error:
            if text not in str(error):
                failing.append(f"{what}: {error}")
        else:
            failing.append(f"{what}: accepted")
    return failing


def test_another_model_is_told_by_what_differs(base, tmp_path):
    assert model_failures(base, tmp_path) == []


def test_a_folder_is_refused_before_any_forward(base, prompts, tmp_path):
    flow(base, prompts[:1], tmp_path)
    with pytest.raises(mmf.DataError, match="weights was .* is "):
        flow(changed(PATH, element)(base), prompts[:1], tmp_path)


def test_an_overwritten_checkpoint_and_an_applied_edit(prompts, base, tmp_path):
    where = tmp_path / "model"
    base.adapter.model.save_pretrained(where)
    base.processor.save_pretrained(where)
    graph = mmf.load(str(where))
    flow(graph, prompts[:1], tmp_path / "run")
    flow(mmf.load(str(where)), prompts[:1], tmp_path / "run", told := [])
    assert "0 prompt(s) to run, 1 done already" in told[0]
    fact = mmf.nano.edits(graph, 1)[0]
    edit = mmf.edit(graph, fact, 3, settings=mmf.EditSettings(steps=2), progress=False, report=str)
    edit.apply()
    with pytest.raises(mmf.DataError, match="weights was"):
        flow(graph, prompts[:1], tmp_path / "run")
    edit.undo()
    flow(graph, prompts[:1], tmp_path / "run")
    graph.mlp_out(3)._module.weight.data[0, 0] += 1
    graph.adapter.model.save_pretrained(where)
    with pytest.raises(mmf.DataError, match="weights was"):
        flow(mmf.load(str(where)), prompts[:1], tmp_path / "run")


def test_planted_a_digest_that_samples_or_stops_at_weights(base, tmp_path, monkeypatch):
    """The table fails where a fingerprint looks at less than all."""

    def few(model):
        return fingerprint([one.view(-1)[:1] for one in model.parameters()])

    monkeypatch.setattr(identity, "weights_digest", few)
    found = {one.partition(":")[0] for one in model_failures(base, tmp_path / "few")}
    assert found == set(MODELS) & {*list(MODELS)[:6]}, "all of one tensor; an edited view changes its first number"
    monkeypatch.undo()
    monkeypatch.setattr(identity, "_reduced", lambda edit: None)
    found = {one.partition(":")[0] for one in model_failures(base, tmp_path / "edits")}
    assert found == {"two edits on a server", "an edit of one's own"}


def prompt_changes(prompt):
    """What makes another prompt of one: it alone is measured again."""
    pixels = {**prompt.inputs, "pixel_values": prompt.inputs["pixel_values"] + 1e-6}
    here = prompt.spans["question"].part(prompt.spans["question"].positions[:1], "word")
    return {
        "answer": replace(prompt, answer="another"),
        "options": replace(prompt, options=("this", "that")),
        "boxes": replace(prompt, boxes=((0, 0, 8, 8),)),
        "pixels": replace(prompt, inputs=pixels),
        "spans": replace(prompt, spans=prompt.spans.having(word=here)),
        "ids": replace(prompt, inputs={**prompt.inputs, "input_ids": prompt.inputs["input_ids"].flip(1)}),
    }


def test_a_changed_prompt_is_measured_again_and_no_other(base, prompts, tmp_path):
    plain = [replace(prompt, options=None, boxes=()) for prompt in prompts[:2]]
    flow(base, plain, tmp_path / "run")
    for what, other in prompt_changes(plain[0]).items():
        if what == "ids":  # no sensible prompt, but another one
            assert identity.prompt_identity(other) != identity.prompt_identity(plain[0])
            continue
        folder = shutil.copytree(tmp_path / "run", tmp_path / what)
        result = flow(base, [other, plain[1]], folder, told := [])
        assert "1 prompt(s) to run, 1 done already" in told[0], what
        assert result.to_frame().equals(flow(base, [other, plain[1]], None).to_frame()), what
    named = replace(plain[0], key="renamed", kind="other")
    result = flow(base, [named, plain[1]], tmp_path / "run", told := [])
    assert "0 prompt(s) to run, 2 done already" in told[0]
    assert result.to_frame()["prompt"][0] == "renamed"


def test_planted_an_identity_that_leaves_out_the_answer(base, prompts, tmp_path, monkeypatch):
    whole = identity.prompt_identity
    monkeypatch.setattr(identity, "prompt_identity", lambda prompt: whole(replace(prompt, answer=None)))
    with pytest.raises(AssertionError, match="answer"):
        test_a_changed_prompt_is_measured_again_and_no_other(base, prompts, tmp_path)


def test_prompts_reordered_added_and_twice(base, prompts, tmp_path):
    first = flow(base, prompts[:2], tmp_path)
    again = flow(base, [prompts[1], prompts[0], prompts[2], prompts[1]], tmp_path, told := [], row_budget=200)
    assert "1 prompt(s) to run, 3 done already" in told[0]
    frame, was = again.to_frame(), first.to_frame()
    cells = len(was) // 2
    columns = ["probability", "base_probability", "layer", "edge"]
    assert frame[columns][:cells].equals(was[columns][cells:].reset_index(drop=True))
    assert frame[columns][cells : 2 * cells].reset_index(drop=True).equals(was[columns][:cells])
    assert frame[columns][3 * cells :].reset_index(drop=True).equals(frame[columns][:cells])
    assert len(set(frame["prompt"])) == 4


SETTINGS = {
    "edges": {"edges": ["question->last"]},
    "windows": {"window": 3},
    "only_correct": {"only_correct": True},
    "max_new_tokens": {"max_new_tokens": 3},
    "engine": {"engine": "forward"},
    "controls": {"controls": 1},
}


def setting_failures(base, prompts, tmp_path):
    flow(base, prompts[:1], tmp_path)
    failing = []
    for name, given in SETTINGS.items():
        try:
            flow(base, prompts[:1], tmp_path, **given)
            failing.append(name)
        except mmf.DataError as error:
            if f"{name} was" not in str(error):
                failing.append(name)
    return failing


def test_other_settings_are_told_by_name(base, prompts, tmp_path, monkeypatch):
    assert setting_failures(base, prompts, tmp_path / "a") == []
    monkeypatch.setattr(identity, "versions", lambda: {"torch": "9"})
    with pytest.raises(mmf.DataError, match="versions was"):
        flow(base, prompts[:1], tmp_path / "a")
    with pytest.raises(mmf.DataError, match="experiment was 'flow', is 'skip flow'"):
        mmf.skip_flow(base, prompts[:1], ["image"], folder=tmp_path / "a", progress=False, report=str)


def test_planted_a_journal_that_compares_nothing(base, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(Journal, "_check_settings", lambda self, file: file.write_text("{}"))
    monkeypatch.setattr(Journal, "check", lambda *given: None)
    assert setting_failures(base, prompts, tmp_path) == list(SETTINGS)


def spoilt(lines, settings):
    """Ways to damage a folder: by name, what is done to its two lines and its settings, and what is told."""
    one = json.loads(lines[0])
    fewer = {**one, "cells": one["cells"][:-1], "numbers": one["numbers"][:-1]}
    good = {name: value for name, value in fewer.items() if name != "checksum"}
    other = line_of({**good, "base": 0.5}).decode().strip()
    return {
        "settings lost": (lines, None, "not the settings.json"),
        "settings cut": (lines, settings[:20], "settings.json cannot be read"),
        "settings of another kind": (lines, "[1]", "a table was expected"),
        "an earlier version": (lines, json.dumps({"model": "nano"}), "another version of nnsight_mmflow"),
        "cells missing": ([json.dumps(fewer), lines[1]], settings, "line 1 was changed or damaged"),
        "cells missing, signed": ([line_of(good).decode().strip(), lines[1]], settings, "9 cells, the plan 10; 1 of"),
        "a number changed": ([lines[0].replace('"base": -', '"base": -1'), lines[1]], settings, "changed or damaged"),
        "no checksum": ([json.dumps({"id": "a"}), lines[1]], settings, "line 1 cannot be read"),
        "no table": (["[]", lines[1]], settings, "line 1 cannot be read"),
        "binary": (["\x00\x01", lines[1]], settings, "line 1 cannot be read"),
        "too deep": (["[" * 100_000, lines[1]], settings, "line 1 cannot be read"),
        "joined": ([*lines, other], settings, "line 3 says something else"),
    }


def test_damaged_folders_are_refused_in_words(base, prompts, tmp_path):
    flow(base, prompts[:2], tmp_path / "run")
    lines = (tmp_path / "run" / "prompts.jsonl").read_text().splitlines()
    settings = (tmp_path / "run" / "settings.json").read_text()
    failing = []
    for number, (what, (left, kept, text)) in enumerate(spoilt(lines, settings).items()):
        folder = shutil.copytree(tmp_path / "run", tmp_path / str(number))
        (folder / "prompts.jsonl").write_text("\n".join(left) + "\n")
        (folder / "settings.json").unlink()
        if kept is not None:
            (folder / "settings.json").write_text(kept)
        before = (folder / "flow.parquet").read_bytes()
        try:
            flow(base, prompts[:2], folder)
            failing.append(f"{what}: accepted")
        except mmf.DataError as error:
            if text not in str(error):
                failing.append(f"{what}: {error}")
        assert (folder / "flow.parquet").read_bytes() == before
    assert failing == []


def test_a_model_without_weights_has_no_identity(prompts, tmp_path):
    with pytest.raises(mmf.ModelError, match="dispatch=False"):
        flow(mmf.load("nano", dispatch=False), prompts[:1], tmp_path)


def _closed(layer):
    return mmf.Knockout(source="image", target="last", layers=layer)


# Every argument of every experiment either changes its numbers, and is part of its identity, or does not.
HOW = {"folder", "remote", "workers", "blocking", "progress", "report", "chunks_per_request", "row_budget"}
NEUTRAL = {
    "flow": HOW,
    "causal_trace": HOW | {"same_answer"},  # in the identity of its controls
    "disruption": HOW,
    "skip_flow": HOW,
    "lens": HOW,
    "saliency": HOW | {"heads_at_once"},
    "contributions": HOW,
    "attribution_patching": HOW,
    "word_overlap": HOW,
    # Of these each entry says which it is of; a judge looks at what is written, afterwards.
    "prune_report": HOW | {"methods", "controls", "batch_size", "judge"},
    "edit_report": HOW | {"together", "control_layers", "fine_tuning"},
    "knockout_by_patch": HOW,
    "knockout_by_token": HOW,
    "lens_by_patch": HOW,
    "attention_and_effect": HOW,
    "sweep": HOW,
    "accuracy": HOW | {"match", "batch_size", "patterns"},  # each entry says by which patterns it was written
    "features": HOW | {"batch_size"},
}
FIRST = {"graph", "prompts", "prompt", "clean", "corrupt", "facts", "others"}
SAID_AS = {
    "flow": {"window": "windows"},
    "prune_report": {"timed": "timed_on"},
    "sweep": {"make": "patterns"},
    "knockout_by_token": {"window": "windows", "source": "edges", "target": "edges"},
    "attention_and_effect": {"source": "spans", "controls": "spans", "seed": "spans"},
}


@pytest.fixture(scope="module")
def tried(base, tmp_path_factory):
    """By experiment, the settings that its folder keeps."""
    folder, quiet = tmp_path_factory.mktemp("tried"), {"progress": False, "report": str}
    pairs = mmf.nano.trace_pairs(base, 1, "flag")
    one = mmf.nano.prompts(base, 1)
    facts = mmf.nano.edits(base, 1)
    brief = mmf.EditSettings(steps=1)
    runs = {
        "flow": lambda where: mmf.flow(base, one, EDGES, 1, controls=1, score="answer", folder=where, **quiet),
        "causal_trace": lambda where: mmf.causal_trace(
            base, *pairs, ["last"], ["mlp"], score="answer", folder=where, **quiet
        ),
        "disruption": lambda where: mmf.disruption(base, one, layers=[3], folder=where, **quiet),
        "skip_flow": lambda where: mmf.skip_flow(base, one, ["image"], score="answer", folder=where, **quiet),
        "lens": lambda where: mmf.lens(base, one, only_correct=False, generated=1, folder=where, **quiet),
        "saliency": lambda where: mmf.saliency(base, one, folder=where, **quiet),
        "contributions": lambda where: mmf.contributions(base, one, generated=1, folder=where, **quiet),
        "attribution_patching": lambda where: mmf.attribution_patching(
            base, *pairs, ["last"], exact=2, score="answer", folder=where, **quiet
        ),
        "word_overlap": lambda where: mmf.word_overlap(base, one, window=3, folder=where, **quiet),
        "prune_report": lambda where: mmf.prune_report(
            base, one, [mmf.FastV(k=5)], controls=0, timed=1, folder=where, **quiet
        ),
        "edit_report": lambda where: mmf.edit_report(
            base, facts, one, 3, fine_tuning=False, bound=0.1, settings=brief, folder=where, **quiet
        ),
        "knockout_by_patch": lambda where: mmf.knockout_by_patch(
            base, one[0], window=3, size=4, score="answer", folder=where, **quiet
        ),
        "sweep": lambda where: mmf.sweep(base, one, _closed, [3], "answer", folder=where, **quiet),
        "accuracy": lambda where: mmf.accuracy(base, one, _closed(3), folder=where, **quiet),
        "knockout_by_token": lambda where: mmf.knockout_by_token(base, one[0], folder=where, **quiet),
        "lens_by_patch": lambda where: mmf.lens_by_patch(base, one[0], layers=[4], top=2, folder=where, **quiet),
        "attention_and_effect": lambda where: mmf.attention_and_effect(
            base, one[0], "question", layers=[4], controls=1, folder=where, **quiet
        ),
        "features": lambda where: mmf.features(base, one, "image", [4], folder=where, **quiet),
    }
    for name, run in runs.items():
        result = run(folder / name)
        again = run(folder / name)
        assert again.to_frame().equals(result.to_frame()), name
    return {name: json.loads((folder / name / "settings.json").read_text()) for name in runs}


@pytest.mark.slow
def test_every_argument_is_part_of_the_identity_or_known_to_change_nothing(tried):
    unclear = []
    for name, kept in tried.items():
        for argument in inspect.signature(getattr(mmf, name)).parameters:
            said = SAID_AS.get(name, {}).get(argument, argument) in kept
            if argument not in FIRST and said == (argument in NEUTRAL[name]):
                unclear.append(f"{name}: {argument}")
    assert unclear == []
    assert tried["flow"]["experiment"] == "flow"


def test_fingerprints_of_values():
    def one(a):
        return a + 1

    def other(a):
        return a + 2

    def closing(value):
        return lambda a: a + value

    def autoencoder(seed, dropped=0.1):
        torch.manual_seed(seed)
        encoder, decoder = nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropped)), nn.Linear(8, 4)
        return mmf.Change(at="last", layers=1, value=mmf.values.through(encoder, decoder, torch.relu))

    picture = Image.new("RGB", (2, 2))
    same = [
        ([1, 2], (1, 2)),
        ({"a": 1, "b": [2.5]}, {"b": (2.5,), "a": 1}),
        ({1, 2}, {2, 1}),
        (torch.ones(3), torch.ones(3)),
        (closing(1), closing(1)),
        (picture, picture.copy()),
        (mmf.FastV(k=5), mmf.FastV(k=5)),
        (autoencoder(0), autoencoder(0)),
        (
            mmf.Add(at="last", layers=1, vector=[1.0, 2.0]),
            mmf.Add(at="last", layers=1, vector=torch.tensor([1.0, 2.0])),
        ),
    ]
    different = [
        (autoencoder(0), autoencoder(1)),
        (autoencoder(0), autoencoder(0, 0.5)),
        (mmf.Add(at="last", layers=1, vector=[1.0, 2.0]), mmf.Add(at="last", layers=1, vector=[1.0, 3.0])),
        (1, 1.0),
        (1, True),
        (1, "1"),
        ([1, [2]], [1, 2]),
        ([[1], 2], [1, [2]]),
        ({"a": None}, {}),
        (one, other),
        (closing(1), closing(2)),
        (torch.ones(3), torch.ones(3).double()),
        (torch.ones(4), torch.ones(2, 2)),
        (picture, Image.new("RGB", (2, 2), "#000001")),
        (mmf.FastV(k=5), mmf.FastV(k=6)),
    ]
    assert [pair for pair in same if fingerprint(pair[0]) != fingerprint(pair[1])] == []
    assert [pair for pair in different if fingerprint(pair[0]) == fingerprint(pair[1])] == []


OWN = """
from dataclasses import dataclass
import nnsight_mmflow as mmf
SIGN, TABLE = 1, {{"a": [0.5]}}
def helper(seen):
    return SIGN * seen
class Ranking:
    scale = 2.0
    def __call__(self, seen):
        return self.value(seen) * self.scale
    @staticmethod
    def value(seen):
        return helper(seen) if TABLE["a"][0] > 0.1 else None
@dataclass(frozen=True, kw_only=True)
class Method(mmf.FastV):
    def plan(self, graph, spans):
        return [mmf.prune.Stage(layer=2, keep=0.5, rank=Ranking())]
made = {made}
"""
MADE_OF_OWN = [
    "helper",
    "Ranking()",
    "Method(k=2)",
    "mmf.prune.Stage(layer=2, keep=0.5, rank=lambda seen: helper(seen))",
]
CHANGES = {  # each is read by a helper's helper, somewhere behind what is fingerprinted
    "a global number": ("SIGN, TABLE = 1", "SIGN, TABLE = -1"),
    "a helper's code": ("return SIGN * seen", "return SIGN + seen"),
    "a class's value": ("scale = 2.0", "scale = 3.0"),
    "a method": ("* self.scale", "/ self.scale"),
    "a static method": ("> 0.1", "> 0.2"),
    "a table": ("[0.5]", "[0.6]"),
    "a subclass's method": ("keep=0.5, rank=Ranking()", "keep=0.4, rank=Ranking()"),
}
REACHES = {"helper": 2, "Ranking()": 6, "Method(k=2)": 7}


def of_own(made, old="", new=""):
    names = {"__name__": "__main__"}
    exec(OWN.format(made=made).replace(old, new) if old else OWN.format(made=made), names)  # as a notebook's cells are
    return fingerprint(names["made"])


@pytest.mark.parametrize("made", MADE_OF_OWN)
def test_what_a_users_function_uses_counts(made):
    assert of_own(made) == of_own(made)
    told = [name for name, change in CHANGES.items() if of_own(made, *change) != of_own(made)]
    assert len(told) == REACHES.get(made, 2), told


def test_a_users_ranking_that_was_changed_is_measured_again(base, prompts, tmp_path):
    def written(sign, folder):
        names = {"__name__": "__main__", "SIGN": sign, "torch": torch}
        exec("def rank(seen): return SIGN * torch.arange(len(seen.image)).float()", names)
        method = mmf.prune.Prune(own=[mmf.prune.Stage(layer=1, keep=4, rank=names["rank"], reads="")])
        given = {"controls": 0, "timed": 0, "progress": False, "report": str, "max_new_tokens": 2}
        return mmf.prune_report(base, prompts, {"own": method}, folder=folder, **given).to_frame()["written"].tolist()

    first = written(1, tmp_path)
    assert written(-1, tmp_path) == written(-1, None) != first
    assert written(1, tmp_path) == first


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.bool])
def test_every_element_of_a_tensor_counts(dtype):
    drawn = torch.Generator().manual_seed(0)
    tensor = torch.randint(0, 2, (70_001,), generator=drawn).to(
        dtype
    )  # more than a chunk of words, and no whole number
    seen = {tensor_digest(tensor)}
    places = [0, 1, 65_535, 65_536, 70_000, *torch.randint(0, 70_001, (20,), generator=drawn).tolist()]
    for place in dict.fromkeys(places):
        other = tensor.clone()
        other[place] = 1 - other[place].to(torch.int64)
        seen.add(tensor_digest(other))
        assert tensor_digest(other.clone()) == tensor_digest(other)
    assert len(seen) == 1 + len(dict.fromkeys(places))
    assert tensor_digest(tensor[1:]) == tensor_digest(tensor[1:].clone()), "wherever it lies in memory"
    square = tensor[:10_000].view(100, 100)
    assert tensor_digest(square.T) == tensor_digest(square.T.contiguous()) != tensor_digest(square)
    if dtype.is_floating_point:
        signs = tensor + 1
        flipped = signs.clone()
        flipped[[1, 3]] *= -1  # sign bits at the same place of two words
        assert tensor_digest(flipped) != tensor_digest(signs)


def test_what_a_packed_weight_carries_counts():
    linear = torch.nn.Linear(4, 4)
    linear.weight = Parameter(torch.zeros(4, 4))
    before = weights_digest(linear)
    linear.weight.quant_state = type("State", (), {})()
    linear.weight.quant_state.absmax = torch.ones(4)
    packed = weights_digest(linear)
    linear.weight.quant_state.absmax[2] = 2
    assert len({before, packed, weights_digest(linear)}) == 3
    eight, state = torch.nn.Linear(4, 4), type("State", (), {"SCB": None})()
    eight.state, eight.weight.SCB = state, torch.ones(4)
    fresh = weights_digest(eight)
    state.SCB, eight.weight.SCB = eight.weight.SCB, None  # as its first forward does
    assert weights_digest(eight) == fresh
    state.SCB[1] = 3
    assert weights_digest(eight) != fresh


def test_weights_that_wait_elsewhere_count():
    from accelerate import cpu_offload

    made = [torch.nn.Sequential(torch.nn.Linear(3, 3)) for _ in range(2)]
    made[1].load_state_dict(made[0].state_dict())
    whole = weights_digest(made[0])
    cpu_offload(made[1])
    assert made[1][0].weight.is_meta
    assert weights_digest(made[1]) == whole
