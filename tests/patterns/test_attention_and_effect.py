"""Attention beside its effect: both against slow references, random spans as controls, and what nano shows."""

import pytest
import torch

import nnsight_mmflow as mmf
from nnsight_mmflow.patterns.attention_and_effect import random_spans


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def asked(nano):
    return mmf.nano.prompts(nano, 1)[0]


@pytest.fixture(scope="module")
def thing(asked):
    return asked.spans["image"].box(*asked.boxes)


@pytest.fixture(scope="module")
def result(nano, asked, thing):
    return mmf.attention_and_effect(nano, asked, thing, progress=False)


def test_mass_and_effect_equal_slow_references(nano, asked, thing, result):
    maps = mmf.attention(nano, asked, target="last")
    with torch.no_grad(), nano.trace(asked, use_cache=False) as _:
        base = nano.model.output.logits[0, -1].softmax(-1).save()
    token = int(base.argmax())
    spans = {"source": thing, **{f"control {k}": span for k, span in enumerate(random_spans(asked, thing, 5, 0))}}
    for layer, name in ((2, "source"), (4, "source"), (4, "control 3")):
        row = result.table[(result.table["layer"] == layer) & (result.table["span"] == name)].iloc[0]
        mass = sum(float(maps.weights[layer, head, 0, at]) for head in range(4) for at in spans[name]) / 4
        assert abs(row["mass"] - mass) < 1e-6
        pattern = mmf.Knockout(source=spans[name], target="last", layers=[layer])
        with torch.no_grad(), nano.trace(asked, pattern, use_cache=False) as _:
            after = nano.model.output.logits[0, -1].softmax(-1).save()
        assert abs(row["change_percent"] - (float(after[token] / base[token]) - 1) * 100) < 1e-2


def test_in_nano_the_object_is_looked_at_twice_and_used_once(result):
    """The last token looks at the object in layers 2 and 4; the answer needs it in layer 4 alone."""
    curves = result.curves()
    assert curves["mass"].nlargest(2).index.tolist() == [4, 2]
    assert curves["change_percent"][4] < -5
    assert abs(curves["change_percent"][2]) < 0.5
    assert curves["change_percent_low"].min() > -0.1
    assert curves["mass_high"][4] < 0.1 < curves["mass"][4]
    assert "most attention at layer 4" in str(result)
    assert "5 random spans there" in str(result)


def test_controls_are_drawn_outside_the_source_and_repeat(asked, thing):
    drawn = random_spans(asked, thing, 5, 0)
    assert all(len(span) == len(thing) and not set(span) & set(thing) for span in drawn)
    assert all(set(span) <= set(asked.spans["image"]) for span in drawn)
    assert [span.positions for span in drawn] == [span.positions for span in random_spans(asked, thing, 5, 0)]
    assert [span.positions for span in drawn] != [span.positions for span in random_spans(asked, thing, 5, 1)]
    assert len({span.positions for span in drawn}) == 5


def test_it_saves_draws_and_stands_beside_a_map(nano, asked, thing, result, tmp_path):
    again = mmf.results.AttentionAndEffectResult.load(result.save(tmp_path))
    assert again.to_frame().equals(result.to_frame())
    axes = again.plot().get_axes()
    assert [axis.get_ylabel() for axis in axes] == ["attention mass (%)", "change of the answer's\nprobability (%)"]
    maps = mmf.attention(nano, asked, layers=[4])
    body = mmf.show.attention(maps, 4, effect=again).body
    assert "image.box((32, 32, 48, 48)) -&gt; last (4 tokens)" in body
    assert "mean of 5 draws [range]" in body
    alone = mmf.attention_and_effect(nano, asked, thing, layers=[4], controls=0, progress=False)
    assert len(alone.to_frame()) == 1
    assert "random" not in alone.beside(4) + str(alone)
    assert len(alone.plot().get_axes()[0].get_lines()) == 2  # the zero line and the source
    with pytest.raises(mmf.MMFlowError, match="layer 3 was not measured: 4 were"):
        mmf.show.attention(mmf.attention(nano, asked, layers=[3]), 3, effect=alone)


def test_sinks_in_the_source_are_told(nano, asked, result):
    table = result.to_frame()
    table.loc[(table["layer"] == 2) & (table["span"] == "source"), "sink_mass"] = 0.2
    assert "attention sinks in layers 2" in mmf.results.AttentionAndEffectResult(table, result.header).summary()
    assert "sinks" not in str(result)


def test_what_is_refused(nano, asked, thing):
    with pytest.raises(mmf.MMFlowError, match="'image' has 64 tokens, but only 0 image tokens lie outside it"):
        mmf.attention_and_effect(nano, asked, "image", progress=False)
    with pytest.raises(mmf.NoEffectError, match="are source and target swapped"):
        mmf.attention_and_effect(nano, asked, "last", thing, progress=False)
    with pytest.raises(mmf.MMFlowError, match="one prompt, but a Batch came"):
        mmf.attention_and_effect(nano, nano.batch([asked]), "image", progress=False)
    with pytest.raises(mmf.MMFlowError, match="controls=-1"):
        mmf.attention_and_effect(nano, asked, thing, controls=-1, progress=False)
