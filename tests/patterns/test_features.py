"""Features equal plain hooks and lie in shards that hide no damage; probes find what is known, controls nothing."""

import json
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from kit.families import QUESTION, family
from kit.tiny import picture, tiny_graph, tiny_model, tiny_processor
from safetensors import safe_open
from torch.utils.data import DataLoader

import nnsight_mmflow as mmf
from nnsight_mmflow.files import shards
from nnsight_mmflow.patterns.features import classifier, features, shelf
from nnsight_mmflow.patterns.features import probe as probes

UNTOLD = {"progress": False, "report": str}
SHORT, LONG = "is the circle red ?", "is the circle to the left or to the right of the square ?"


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def asked(nano):
    """Questions about colours: sixty, each with its own picture."""
    found = [one for one in mmf.nano.prompts(nano, 120, "QueryAttr") if "color" in one.question]
    return found[:60]


@pytest.fixture(scope="module")
def last(nano, asked):
    return mmf.features(nano, asked, "last", [0, 1, 4, 9], batch_size=20, **UNTOLD)


def by_hooks(graph, prompt, site):
    """(layers, positions, width) of a plain forward on transformers' own modules."""
    model, seen, handles = graph.adapter.model, [], []
    language = model.get_decoder()
    for layer in language.layers:
        part = {"resid": layer, "attn": layer.self_attn, "mlp": layer.mlp}.get(site)
        if part is not None:
            first = lambda *given: seen.append(given[2][0] if isinstance(given[2], tuple) else given[2])  # noqa: E731
            handles.append(part.register_forward_hook(first))
    if site == "embed":
        keep = lambda module, given, named: seen.append(named["inputs_embeds"])  # noqa: E731
        handles.append(language.register_forward_pre_hook(keep, with_kwargs=True))
    with torch.no_grad():
        model(**prompt.inputs)
    for handle in handles:
        handle.remove()
    return torch.cat(seen) if site != "embed" else seen[0]


def pooled(values, at, pool):
    held = values[:, list(at)]
    return {"mean": held.mean(1), "last": held[:, -1], None: held}[pool]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_they_equal_plain_hooks(attention, batch_size):
    graph = tiny_graph(attention=attention)
    prompts = [graph.prompt(picture(0), SHORT, "red"), graph.prompt(picture(1), LONG)]
    for site in ("resid", "attn", "mlp", "embed"):
        for at, pool in (("image", "mean"), ("question", "last"), ("question | last", None)):
            layers = None if site == "embed" else [3, 1]
            found = mmf.features(graph, prompts, at, layers, site=site, pool=pool, batch_size=batch_size, **UNTOLD)
            assert found.layers == ([-1] if site == "embed" else [1, 3])
            for number, prompt in enumerate(prompts):
                plain = by_hooks(graph, prompt, site)
                for layer in found.layers:
                    wanted = pooled(plain[max(layer, 0)][None], prompt.spans[at], pool)[0]
                    got = found.torch(layer)[number]
                    assert got.shape == wanted.shape
                    assert torch.allclose(got, wanted, atol=1e-5), (site, at, layer, (got - wanted).abs().max())
                    assert (got == found.values(layer)[number]).all() if pool else True


@pytest.mark.parametrize("name", ["qwen2_vl", "gemma3", "llava_next"])
def test_a_padded_batch_of_other_families_equals_single_prompts(name):
    graph = family(name)
    prompts = [graph.prompt(picture(0, 80, 48), QUESTION), graph.prompt(picture(1, 48, 80), f"{QUESTION} {QUESTION}")]
    one, two = (mmf.features(graph, prompts, "image", batch_size=size, **UNTOLD) for size in (1, 2))
    for layer in one.layers:
        assert np.abs(one.values(layer) - two.values(layer)).max() < 1e-4


def test_half_precision_is_kept_bit_for_bit():
    graph = mmf.adapt(tiny_model().to(torch.bfloat16), tiny_processor())
    prompt = graph.prompt(picture(0), SHORT, "red")
    inputs = graph.checked(prompt)
    plain = by_hooks(graph, replace(prompt, inputs=inputs), "resid")
    found = mmf.features(graph, prompt, "last", [2], pool="last", **UNTOLD)
    assert found.header["dtype"] == "BF16"
    assert found.torch(2).dtype == torch.bfloat16
    assert torch.equal(found.torch(2)[0], plain[2, -1])
    assert found.values().dtype == np.float32
    mean = mmf.features(graph, prompt, "image", [2], **UNTOLD)
    assert mean.header["dtype"] == "F32"
    wanted = plain[2, list(prompt.spans["image"])].float().mean(0)
    assert torch.allclose(mean.torch(2)[0], wanted, atol=1e-6)


def test_the_bytes_are_told_and_taken(nano, asked, tmp_path, monkeypatch):
    monkeypatch.setattr(shelf, "MOST_BYTES", 2 * 128 * 4 * 100)  # a hundred rows a shard
    told = []
    given = {"at": "image", "layers": [2, 5], "pool": None, "folder": tmp_path, "progress": False}
    found = mmf.features(nano, asked[:4], **given, report=told.append)
    assert told[0] == (
        "features: 4 prompt(s) to run; a forward each; 256 positions x 2 layers x 128 numbers x 4 bytes = 262.1 kB,"
        f" in {tmp_path}."
    )
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 4
    memory = mmf.features(nano, asked[:4], **{**given, "folder": None}, report=str)
    assert found.to_frame().equals(memory.to_frame())
    kept = mmf.results.FeaturesResult.load(tmp_path)
    for result in (found, kept):
        base = result.shards[0].arrays["layer_5"].base
        assert isinstance(base, np.memmap) or isinstance(base.base, np.memmap), "mapped, not read"
        for one, other in zip(result.values(5), memory.values(5), strict=True):
            assert np.array_equal(one, other)
            assert one.shape == (64, 128)
    with safe_open(files[1], "pt") as opened:  # by anyone else's reader
        assert set(opened.keys()) == {"layer_2", "layer_5", "crc32"}
        assert torch.equal(opened.get_tensor("layer_5"), memory.torch(5)[1])
    again = mmf.features(nano, asked[:6], **given, report=told.append)
    assert "2 prompt(s) to run, 4 done already" in told[-1]
    assert np.array_equal(again.values(2)[3], memory.values(2)[3])
    with pytest.raises(mmf.DataError, match="pool was 'none', is 'mean'"):
        mmf.features(nano, asked[:4], **{**given, "pool": "mean"}, report=str)


def test_it_is_saved_elsewhere_and_read_again(nano, asked, tmp_path):
    found = mmf.features(nano, asked[:5], "question", [3, 4], folder=tmp_path / "run", **UNTOLD)
    found.save(tmp_path / "other")
    other = mmf.features(nano, asked[5:9], "question", [3, 4], **UNTOLD)
    again = mmf.results.FeaturesResult.load(tmp_path / "other")
    assert np.array_equal(again.values(4), found.values(4))
    assert again.summary() == found.summary()
    other.save(tmp_path / "other")
    assert len(list((tmp_path / "other").glob("*.safetensors"))) == 1, "what was saved there before is gone"
    other.save(tmp_path / "run")  # a run's own shards stay
    back = mmf.features(nano, asked[:5], "question", [3, 4], folder=tmp_path / "run", **UNTOLD)
    assert np.array_equal(back.values(3), found.values(3))


def damaged(folder, how):
    file = next(folder.glob("*.safetensors"))
    if how == "a byte":
        data = bytearray(file.read_bytes())
        data[len(data) // 3] ^= 1
        file.write_bytes(data)
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    elif how == "gone":
        file.unlink()
    elif how == "a link":
        file.rename(folder / "away")
        file.symlink_to(folder / "away")
    elif how == "another name":
        header = json.loads((folder / "features.json").read_text())
        header["shards"]["0"] = "../features_00000000_00000.safetensors"
        (folder / "features.json").write_text(json.dumps(header))


@pytest.mark.parametrize("how", ["a byte", "cut", "gone", "a link", "another name"])
def test_damage_is_never_read_over(nano, asked, tmp_path, how):
    given = {"at": "last", "layers": [3, 4], "folder": tmp_path, **UNTOLD}
    whole = mmf.features(nano, asked[:3], **given).values(3).copy()
    damaged(tmp_path, how)
    with pytest.raises(mmf.DataError, match="not what was written|not the shard|does not say where"):
        mmf.results.FeaturesResult.load(tmp_path).values(3)
    if how == "another name":
        return
    with pytest.raises(mmf.DataError, match="not what was written|not the shard"):
        mmf.features(nano, asked[:3], **given)
    (tmp_path / "prompts.jsonl").write_text("")
    for file in tmp_path.glob("features_*"):
        file.unlink()
    assert np.array_equal(mmf.features(nano, asked[:3], **given).values(3), whole)


def test_a_row_that_is_free_is_taken_again(nano, asked, tmp_path):
    given = {"at": "last", "layers": [3], "folder": tmp_path, **UNTOLD}
    whole = mmf.features(nano, asked[:4], **given).values().copy()
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    (tmp_path / "prompts.jsonl").write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    again = mmf.features(nano, [*asked[:4], asked[4]], **given)
    assert np.array_equal(again.values()[:4], whole)
    assert list(zip(again.table["shard"], again.table["row"], strict=True)) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]


def test_places_never_overlap():
    """Planted gaps, of all sizes: every row once, and the same each time."""
    random = np.random.default_rng(0)
    for _ in range(50):
        wanted = {str(n): int(random.integers(1, 9)) for n in range(int(random.integers(1, 30)))}
        taken, sizes = {0: [(2, 3), (9, 1)], 1: []}, {0: 12, 1: 4}
        found, made = shards.places(wanted, taken, sizes, 16)
        assert found == shards.places(wanted, taken, sizes, 16)[0]
        cells = [(0, row) for first, count in taken[0] for row in range(first, first + count)]
        cells += [(shard, row) for name, (shard, first) in found.items() for row in range(first, first + wanted[name])]
        assert len(set(cells)) == len(cells)
        assert all(row < {**sizes, **made}[shard] for shard, row in cells)


def test_too_little_room_is_told_before_any_forward(nano, asked, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(type(nano), "checked", lambda *given: pytest.fail("a forward was made ready"))
    with pytest.raises(mmf.OutputError, match=r"room for 0\.0 GB, and the activations that are to come take"):
        mmf.features(nano, asked[:4], "last", folder=tmp_path, **UNTOLD)


def test_what_cannot_be_read_is_refused_before_any_forward(nano, asked, monkeypatch):
    monkeypatch.setattr(type(nano), "checked", lambda *given: pytest.fail("a forward was made ready"))
    for given, text in (
        ({"at": "photo"}, "'photo' is no span"),
        ({"at": "image & last"}, "holds no position of prompt 0"),
        ({"pool": "max"}, 'pool is "mean", "last" or None'),
        ({"site": "embed", "layers": [3]}, "leave layers out"),
        ({"site": "q"}, "site must be one of"),
        ({"layers": [99]}, r"layers \[99\] do not exist"),
    ):
        with pytest.raises(mmf.MMFlowError, match=text):
            mmf.features(nano, asked[:2], **given, **UNTOLD)


def test_numbers_that_are_none_are_told(nano, asked, monkeypatch):
    monkeypatch.setattr(features, "read_features", lambda sites, positions, pool: [torch.full((1, 1, 128), torch.inf)])
    with pytest.raises(mmf.MMFlowError, match="128 of 128 numbers at resid of layer 3 are NaN or infinite"):
        mmf.features(nano, asked[:1], "last", [3], **UNTOLD)


def test_they_are_a_data_set_and_show_themselves(last, asked):
    assert len(last) == 60
    values, answers = next(iter(DataLoader(last, batch_size=7, shuffle=False)))
    assert values.shape == (7, 4, 128)
    assert list(answers) == [one.answer for one in asked[:7]]
    assert np.array_equal(values[:, 2].numpy(), last.values(4)[:7])
    assert np.array_equal(last.values(-1), last.values(9))
    assert last.labels == [one.answer for one in asked]
    with pytest.raises(IndexError):
        last[60]
    with pytest.raises(mmf.MMFlowError, match="layer=3 .* the features hold 0, 1, 4, 9"):
        last.values(3)
    figure = last.plot([4], by=["odd" if number % 2 else "even" for number in range(60)])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["even", "odd"]


def test_a_probe_finds_what_is_known_and_its_control_finds_nothing(last, asked):
    """As found: the colour is not there in layers 0 and 1, always from layer 4 on; controls stay at chance."""
    result = mmf.probe(last, controls=3, **UNTOLD)
    table = result.to_frame().set_index("layer")
    assert list(table.index) == [0, 1, 4, 9]
    assert (table.loc[[4, 9], "accuracy"] == 1).all()
    assert (table.loc[[0, 1], "accuracy"] < 0.4).all()
    assert (table["control"] < table["control_majority"] + 0.05).all(), table
    assert (table.loc[[4, 9], "selectivity"] > 0.7).all()
    assert (table["low"] <= table["accuracy"]).all()
    assert (table["accuracy"] <= table["high"]).all()
    assert "best at layer 4: 100.0% [94.0%, 100.0%]" in result.summary()
    assert {line.get_label() for line in result.plot().axes[0].lines} >= {"probe (n=60)", "most frequent label"}


def test_a_control_by_question_finds_the_question(last):
    """What can be learnt of six questions: `last` knows which one was asked, so a random label for each is found."""
    table = mmf.probe(last, folds=4, controls=2, types="question", layers=[1], **UNTOLD).to_frame()
    assert table["control"][0] > 0.9
    assert table["selectivity"][0] < -0.5


def test_no_picture_is_on_both_sides(nano, asked, monkeypatch):
    """Planted: folds that do not look at pictures let a control by picture find what it must not."""
    twice = [one for one in asked[:30] for _ in range(2)]  # each picture comes twice
    found = mmf.features(nano, twice, "last", [4], batch_size=20, **UNTOLD)
    kinds = [number // 2 % 3 for number in range(60)]
    result = mmf.probe(found, kinds, folds=3, controls=4, types="picture", **UNTOLD)
    assert result.to_frame()["control"][0] < 0.6
    truth, pictures = np.array(list(map(str, kinds)), dtype=object), found.table["picture"].to_numpy()
    for train, held in classifier.splits_of(truth, pictures, 3, 0):
        assert not set(pictures[train]) & set(pictures[held])
    blind = lambda truth, pictures, folds, seed: classifier_splits(truth, np.arange(len(truth)), folds, seed)  # noqa: E731
    classifier_splits = classifier.splits_of
    monkeypatch.setattr(probes, "splits_of", blind)
    leaking = mmf.probe(found, kinds, folds=3, controls=4, types="picture", **UNTOLD)
    assert leaking.to_frame()["control"][0] > result.to_frame()["control"][0] + 0.2


def test_labels_come_in_four_forms(last, asked, tmp_path):
    names = ["warm" if one.answer in ("red", "orange", "yellow", "pink") else "cold" for one in asked]
    given = {"layers": [4], "controls": 0, **UNTOLD}
    by_list = mmf.probe(last, names, **given)
    by_key = {one.key: name for one, name in zip(asked, names, strict=True)}
    for labels in (by_key, lambda prompt: by_key[prompt.key], np.array(names)):
        assert mmf.probe(last, labels, **given).to_frame().equals(by_list.to_frame())
    assert by_list.to_frame()["control"].isna().all()
    some = mmf.probe(last, [None if number < 10 else name for number, name in enumerate(names)], **given)
    assert (some.header["n_counted"], some.header["n_prompts"]) == (50, 60)
    by_list.save(tmp_path)
    assert mmf.results.ProbeResult.load(tmp_path).to_frame().equals(by_list.to_frame())
    last.save(tmp_path)
    loaded = mmf.results.FeaturesResult.load(tmp_path)
    assert mmf.probe(loaded, by_key, **given).to_frame().equals(by_list.to_frame())
    with pytest.raises(mmf.MMFlowError, match="features that were loaded hold no prompts"):
        mmf.probe(loaded, lambda prompt: 1, **given)


def test_what_cannot_be_probed_is_refused(nano, asked, last, monkeypatch):
    every = mmf.features(nano, asked[:4], "question", [4], pool=None, **UNTOLD)
    silent = mmf.features(nano, [replace(one, answer=None) for one in asked[:4]], "last", [4], **UNTOLD)
    rare = ["a"] * 57 + ["b"] * 3
    for found, given, text in (
        (every, {}, "hold every position of the span"),
        (silent, {}, "4 of 4 prompts have no answer (the first: number 0"),
        (last, {"labels": ["a"] * 60}, "two labels to tell apart"),
        (
            last,
            {"labels": rare},
            "label 'b' has 3 prompt(s) about 3 picture(s), too few to be in each of 5 folds.",
        ),
        (last, {"labels": {"a": 1}}, "labels lack 60 of 60 prompts, such as"),
        (
            last,
            {"labels": ["a", float("nan")] * 30},
            f"number 1, of prompt {asked[1].key!r}, is nan (float)",
        ),
        (
            last,
            {"labels": [["a"], "b"] * 30},
            f"number 0, of prompt {asked[0].key!r}, is ['a'] (list)",
        ),
        (last, {"labels": np.zeros((60, 2))}, "which is no label: one word or number for each prompt"),
        (last, {"labels": [1, "1"] * 30}, "1 (int) and '1' (str) are written alike"),
        (last, {"labels": [None] * 60}, "each of the prompts has None"),
        (
            last,
            {"labels": range(60), "folds": 2},
            "60 of 60 labels are so rare: is it a number",
        ),
        (last, {"types": "color", "controls": 0}, "types must be one of input, question, picture"),
        (last, {"types": ["same"] * 60}, "no control task can be drawn: the prompts are of 1 type(s)"),
    ):
        with pytest.raises(mmf.MMFlowError, match=re.escape(text)):
            mmf.probe(found, **given, **UNTOLD)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(mmf.MMFlowError, match=re.escape('pip install -c constraints.txt -e ".[probe]"')):
        mmf.probe(last, **UNTOLD)
