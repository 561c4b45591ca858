"""Wrong arguments of every public function are refused in words; right ones in another form are taken."""

import json
import re

import numpy as np
import pytest
import torch
from kit.wrong_arguments import ABOUT, HUGE, QUIET, calls, result_calls

import nnsight_mmflow as mmf
from nnsight_mmflow import _kinds
from nnsight_mmflow.arguments import checked as _arguments

# What a message says where it names neither the argument nor the value.
SAYS = (
    r"at least one|one for each|has no tiles|does not occur|is no span|a stage|a ranking|tokens (can leave|cannot stay)"
    r"|share of tokens|keeps all|a box|a pattern is expected|input_ids are missing|show.attention takes|the groups"
    r"|does not hold the picture|site must be"
)


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def table(nano):
    return calls(nano)


def failing(table, named=True):
    """(how many rows there are, those that were not refused in words, which name what is wrong)."""
    count, failed = 0, []
    for name, (run, arguments) in table.items():
        for argument, values in arguments.items():
            for value in values:
                count += 1
                try:
                    run(**{argument: value})
                    failed.append(f"{name}({argument}={value!r:.60}) was taken")
                except mmf.MMFlowError as error:
                    told = str(error)
                    says = argument in told or repr(value)[:40] in told or str(value)[:40] in told
                    if named and not (says or re.search(SAYS, told)):
                        failed.append(f"{name}({argument}={value!r:.60}) does not say what is wrong: {told:.200}")
                except Exception as error:
                    failed.append(f"{name}({argument}={value!r:.60}) ended in {type(error).__name__}: {error!s:.100}")
    return count, failed


def test_every_wrong_argument_is_refused_in_words(table):
    count, failed = failing(table)
    assert count > 1900
    assert not failed, "\n".join(failed)


def test_every_wrong_argument_of_a_method_is_refused_in_words(nano):
    count, failed = failing(result_calls(nano), named=False)
    assert count > 300
    assert not failed, "\n".join(failed)


def test_the_table_can_fail(nano, monkeypatch):
    """Without the checks by name: hundreds of rows end in other people's errors, or are taken."""
    monkeypatch.setattr(_arguments, "value_of", lambda name, value, default, kind: value)
    monkeypatch.setattr(_arguments, "made_for", lambda graph, prompts, what: None)
    monkeypatch.setattr(_kinds, "came", repr)
    table = calls(nano)
    kept = {name: table[name] for name in ("flow", "lens", "contributions", "Knockout", "Skip", "FastV", "edit")}
    for name in ("flow", "edit"):  # what would run long
        kept[name] = (
            kept[name][0],
            {one: kept[name][1][one] for one in ("graph", "layers", "edges") if one in kept[name][1]},
        )
    _, failed = failing(kept)
    assert len(failed) > 60
    assert any("was taken" in one for one in failed)
    assert any("TypeError" in one for one in failed)
    assert any("AttributeError" in one for one in failed)


def flow_of(nano, **given):
    two = mmf.nano.prompts(nano, 2)
    settings = {"prompts": two, "edges": ["image->last"], "window": 3, "only_correct": False, **ABOUT, **given}
    return mmf.flow(nano, **settings).to_frame()


RIGHT = {  # in another form: what it must equal
    "one edge": ({"edges": "image->last"}, {}),
    "edges in a tuple": ({"edges": ("image->last",)}, {}),
    "edges from a generator": ({"edges": (edge for edge in ["image->last"])}, {}),
    "numpy's window": ({"window": np.int64(3)}, {}),
    "a list of windows": ({"window": [3]}, {}),
    "an array of windows": ({"window": np.array([1, 3])}, {"window": (1, 3)}),
    "numpy's flag": ({"only_correct": np.bool_(False)}, {}),
    "a window beyond the depth": ({"window": HUGE}, {"window": 21}),
    "an even window": ({"window": 2}, {"window": [2]}),
    "rows without bound": ({"row_budget": HUGE}, {}),
    "numpy's budget": ({"row_budget": np.int32(640)}, {}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_other_forms_of_the_same_give_the_same(nano, name):
    given, same = RIGHT[name]
    one, other = flow_of(nano, **given), flow_of(nano, **same)
    columns = [column for column in one.columns if column != "window"]  # beyond the depth it is kept as asked
    assert one[columns].equals(other[columns])


def test_a_batch_and_an_iterator_stand_for_their_prompts(nano):
    two = mmf.nano.prompts(nano, 2)
    plain = mmf.lens(nano, two, **QUIET).to_frame()
    for other in (nano.batch(two), iter(two), tuple(two)):
        assert mmf.lens(nano, other, **QUIET).to_frame().equals(plain)
    alone = mmf.prune_report(nano, two[0], mmf.FastV(k=4), timed=0, controls=0, **ABOUT).scores()
    listed = mmf.prune_report(nano, two[:1], [mmf.FastV(k=4)], timed=0, controls=0, **ABOUT).scores()
    assert alone.equals(listed)


def test_top_words_end_with_the_vocabulary(nano):
    prompt = mmf.nano.prompts(nano, 1)[0]
    size = nano.unembed._module.weight.shape[0]
    words = mmf.lens_by_patch(nano, prompt, layers=[4], top=HUGE).to_frame()
    assert words["rank"].max() == size - 1
    sums = words.groupby("token")["probability"].sum()
    assert np.allclose(sums, 1, atol=1e-4)


@pytest.mark.parametrize("layers", [2, [2], (2,), range(2, 3), np.int64(2), np.array([2]), iter([2]), -8, {2}])
@pytest.mark.parametrize("heads", [1, [1], np.int32(1), np.array([1]), range(1, 2), {1}])
def test_layers_and_heads_in_any_form(nano, layers, heads):
    prompt = mmf.nano.prompts(nano, 1)[0]
    layers = iter([2]) if not hasattr(layers, "__len__") and not np.isscalar(layers) else layers  # one per test
    found = []
    for pattern in (
        mmf.Knockout(source="image", target="last", layers=layers, heads=heads),
        mmf.Knockout(source="image", target="last", layers=[2], heads=(1,)),
    ):
        with torch.no_grad(), nano.trace(prompt, pattern):
            found.append(nano.unembed.output[0, -1].save())
    assert torch.equal(*found)


def test_a_prompt_of_another_model_is_refused_and_its_own_is_not(nano, graph, prompt):
    own = mmf.nano.prompts(nano, 1)[0]
    assert nano.processor.tokenizer.get_vocab() != {}
    changed = own.spans.tokens[:-2] + ("other",) + own.spans.tokens[-1:]
    from dataclasses import replace

    foreign = replace(own, spans=replace(own.spans, tokens=changed))
    for run in (
        lambda: mmf.lens(nano, foreign, **QUIET),
        lambda: nano.trace(foreign),
        lambda: nano.generate(nano.batch([own, foreign])),
        lambda: mmf.attention(nano, foreign),
        lambda: mmf.flow(nano, [own, foreign], **ABOUT),
    ):
        with pytest.raises(mmf.PromptError, match=r"another model's graph: at position \d+ it has \('other',\)"):
            run()
    assert len(mmf.lens(nano, own, only_correct=False, **QUIET).to_frame())


def test_a_family_with_other_ids_refuses_prompts_of_nano(nano):
    from kit.families import family

    other, own = family("qwen2_vl"), mmf.nano.prompts(nano, 1)[0]
    with pytest.raises(mmf.PromptError, match="was made by another model's graph"):
        mmf.lens(other, own, **QUIET)
    with pytest.raises(mmf.PromptError, match="was made by another model's graph"):
        other.trace(own)


def test_a_model_without_weights_runs_nothing_here():
    empty = mmf.load("nano", dispatch=False)
    prompt = mmf.nano.prompts(empty, 1)[0]
    for run in (
        lambda: empty.trace(prompt),
        lambda: empty.generate(prompt),
        lambda: mmf.flow(empty, prompt, **ABOUT),
        lambda: mmf.attention(empty, prompt),
    ):
        with pytest.raises(mmf.ModelError, match="was loaded without weights"):
            run()


def test_an_edit_that_becomes_nan_is_refused(nano, monkeypatch):
    from nnsight_mmflow.patterns.edit import edit as made
    from nnsight_mmflow.patterns.edit.update import Update

    fact = mmf.nano.edits(nano, 1)[0]
    before = nano.mlp_out(4)._module.weight.clone()
    real = made.solve
    for wrong in (float("nan"), float("inf")):
        monkeypatch.setattr(made, "solve", lambda *given, by=wrong: Update(real(*given).left * by, real(*given).right))
        with pytest.raises(mmf.MMFlowError, match="the edit of layer 4 holds NaN or infinite"):
            mmf.edit(nano, fact, 4, settings=mmf.EditSettings(steps=2), **ABOUT)
    monkeypatch.setattr(made, "solve", lambda *given: Update(real(*given).left * 1e30, real(*given).right * 1e30))
    with pytest.raises(mmf.MMFlowError, match="is larger than torch.float32 can hold"):
        mmf.edit(nano, fact, 4, settings=mmf.EditSettings(steps=2), **ABOUT)
    assert torch.equal(before, nano.mlp_out(4)._module.weight)


def test_fine_tuning_that_becomes_nan_is_refused(nano, monkeypatch):
    from nnsight_mmflow.patterns.edit.fine_tune import fine_tune

    facts = mmf.nano.edits(nano, 1)
    with pytest.raises(mmf.MMFlowError, match="learning_rate=1e\\+38: above 0, and at most 1000"):
        fine_tune(nano, facts, [4], learning_rate=1e38, steps=3)
    real = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self: [real(self), self.param_groups[0]["params"][0].data.fill_(float("nan"))]
    )
    with pytest.raises(mmf.MMFlowError, match="fine-tuning made .*mlp.down_proj.weight NaN or infinite"):
        fine_tune(nano, facts, [4], steps=1)


def test_a_saved_edit_with_nan_is_refused(nano, tmp_path):
    from safetensors.torch import load_file, save_file

    made = mmf.edit(nano, mmf.nano.edits(nano, 1)[0], 4, settings=mmf.EditSettings(steps=2), **ABOUT)
    made.save(tmp_path)
    tensors = load_file(tmp_path / "edit.safetensors")
    tensors["4.left"][0] = float("nan")
    save_file(tensors, tmp_path / "edit.safetensors", {"model": "nano"})
    with pytest.raises(mmf.DataError, match="edit.safetensors is not the one that edit.json was saved with"):
        mmf.results.EditResult.load(tmp_path, nano)
    header = json.loads((tmp_path / "edit.json").read_text())  # as one of an earlier version, without checksums
    (tmp_path / "edit.json").write_text(json.dumps({name: header[name] for name in header if name != "files_sha256"}))
    with pytest.raises(mmf.MMFlowError, match="the edit of layer 4 holds NaN"):
        mmf.results.EditResult.load(tmp_path, nano)
