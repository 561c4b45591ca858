"""Attention maps against eager's own weights, pools against a slow loop, groups as partitions, sinks by hand."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kit.families import EAGER_ONLY, FAMILIES, family
from kit.tiny import picture, tiny_graph

import nnsight_mmflow as mmf
from nnsight_mmflow.inside.maps import received_by
from nnsight_mmflow.spans.groups import WAYS, groups_of

QUESTION = "what color is the circle ?"


def asked(graph, seed=0):
    return graph.prompt(picture(seed, 96, 64), QUESTION, "red")


def eager_weights(name, prompt):
    """(layers, heads, queries, keys) as the model itself returns them."""
    model = family(name, "eager").adapter.model
    with torch.no_grad():
        return torch.stack(model(**prompt.inputs, output_attentions=True, use_cache=False).attentions)[:, 0]


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_are_eagers_own_weights(name):
    """In the same run to 1e-6: scores differ by the order of float32 sums alone."""
    graph = family(name, "eager")
    prompt = asked(graph)
    maps = mmf.attention(graph, prompt)
    assert maps.weights.dtype == torch.float32
    assert (maps.weights - eager_weights(name, prompt)).abs().max() < 1e-6
    assert (maps.weights.sum(-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in EAGER_ONLY])
def test_maps_under_sdpa_are_eagers_weights(name):
    """1e-4: what enters a layer differs by rounding between the two, and the random LLaVAs' scores reach hundreds."""
    graph = family(name)
    prompt = asked(graph)
    assert (mmf.attention(graph, prompt).weights - eager_weights(name, prompt)).abs().max() < 1e-4


def test_rows_columns_heads_and_layers_are_cuts_of_the_whole(graph, prompt):
    whole = mmf.attention(graph, prompt)
    cut = mmf.attention(graph, prompt, layers=[1, -1], target="question", source=prompt.spans["image"], heads=[3, 0])
    assert (cut.layers, cut.heads) == ((1, graph.n_layers - 1), (0, 3))
    assert (cut.targets, cut.sources) == (prompt.spans["question"].positions, prompt.spans["image"].positions)
    expected = whole.weights[[1, -1]][:, [0, 3]][:, :, list(cut.targets)][..., list(cut.sources)]
    assert torch.equal(cut.weights, expected)
    assert torch.equal(cut.received, whole.received[[1, -1]])
    assert torch.equal(cut.at(1), cut.weights[0])
    table = cut.to_frame().set_index(["layer", "head", "target", "source"])["weight"]
    assert table[1, 3, cut.targets[2], cut.sources[5]] == float(cut.weights[0, 1, 2, 5])


def test_patterns_are_at_work(graph, prompt):
    """A knockout of some heads closes its edges in these heads, and the mask of the others stays."""
    pattern = mmf.Knockout(source="image", target="last", layers=[2], heads=[1])
    clean, cut = mmf.attention(graph, prompt, target="last"), mmf.attention(graph, prompt, pattern, target="last")
    image = list(prompt.spans["image"])
    assert torch.equal(clean.weights[:2], cut.weights[:2])
    assert float(cut.at(2)[1][:, image].abs().max()) == 0
    assert torch.equal(cut.at(2)[0], clean.at(2)[0])
    assert not torch.equal(cut.at(3), clean.at(3))
    assert "Knockout" in str(cut)


def test_a_dropping_pattern_is_refused(graph, prompt):
    with pytest.raises(mmf.MMFlowError, match="layer 2 runs with .* positions, the prompt has .* mode='mask'"):
        mmf.attention(graph, prompt, mmf.DropAll(from_layer=2))
    assert mmf.attention(graph, prompt, mmf.DropAll(from_layer=2), layers=[0, 1]).layers == (0, 1)


def test_heads_that_gave_something_else_are_noticed(graph, prompt):
    """Planted: the weights are changed behind the softmax, so what is computed here is not what was used."""
    with pytest.raises(mmf.MMFlowError, match="layer 3: weights times values differ from what the heads gave by"):
        mmf.attention(graph, prompt, mmf.ZeroWeights(source="image", target="last", layers=[3]))


def test_what_is_refused(graph, prompt):
    with pytest.raises(mmf.MMFlowError, match="one prompt, but a Batch came"):
        mmf.attention(graph, graph.batch([prompt, prompt]))
    with pytest.raises(mmf.MMFlowError, match=r"GB, more than 0.0 GB. Ask for less: layers=\[2\], target=\"last\""):
        mmf.attention(graph, prompt, most_bytes=1000)
    with pytest.raises(mmf.MMFlowError, match=r"heads \[4\] were asked for; there are 4"):
        mmf.attention(graph, prompt, heads=[0, 4])
    with pytest.raises(mmf.MMFlowError, match=r"layers \[9\] do not exist"):
        mmf.attention(graph, prompt, layers=9)
    with pytest.raises(mmf.SpanError, match="source='image & question' holds no position"):
        mmf.attention(graph, prompt, source="image & question")
    with pytest.raises(mmf.MMFlowError, match="layer 3 was not read: the maps hold 1, 2"):
        mmf.attention(graph, prompt, layers=[1, 2]).at(3)


def test_pools_equal_a_slow_loop():
    graph = family("llava_next")
    prompt = asked(graph)
    maps = mmf.attention(graph, prompt, layers=[1, 3], target="image | suffix", heads=[0, 2])
    pooled = maps.by_span(rows="tile", columns="image_row")
    assert pooled.weights.shape == (2, 2, len(pooled.rows), len(pooled.columns))
    for i, j, (r, row), (c, column) in itertools.product(
        range(2), range(2), enumerate(pooled.rows), enumerate(pooled.columns)
    ):
        sums = []
        for target in row.positions:
            one = maps.weights[i, j, maps.targets.index(target)]
            sums.append(sum(float(one[maps.sources.index(source)]) for source in column.positions))
        assert abs(float(pooled.weights[i, j, r, c]) - sum(sums) / len(sums)) < 1e-5
    assert (pooled.weights.sum(-1) - 1).abs().max() < 1e-5
    table = pooled.to_frame()
    assert set(table["n_targets"]) == {len(row.positions) for row in pooled.rows}


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_vl", "idefics3", "internvl", "llava_pixtral"])
def test_groups_partition_every_familys_prompts(name, by):
    spans = asked(family(name)).spans
    groups = groups_of(spans, by)
    held = [position for group in groups for position in group.positions]
    assert sorted(held) == list(spans["all"])
    assert len(set(group.name for group in groups)) == len(groups)


def test_groups_of_two_images():
    graph = family("llava_next")
    spans = graph.prompt([picture(0, 64, 32), picture(1, 32, 64)], QUESTION).spans
    names = [group.name for group in groups_of(spans, "span")]
    assert names == ["prefix", "image[0]", "image[1]", "question", "suffix"]
    assert "image[1] tile[1]" in [group.name for group in groups_of(spans, "tile")]
    assert "image[0] tiles row 0" in [group.name for group in groups_of(spans, "image_row")]


@given(data=st.data())
def test_named_groups_partition_what_is_drawn_or_are_refused(data):
    spans = asked(tiny_graph()).spans
    owner = data.draw(st.lists(st.integers(0, 3), min_size=len(spans["all"]), max_size=len(spans["all"])))
    parts = {
        f"part {k}": spans["all"].part([position for position, mine in enumerate(owner) if mine == k], f"part {k}")
        for k in sorted(set(owner))
    }
    drawn = data.draw(st.sets(st.sampled_from(list(spans["all"])), min_size=1))
    groups = groups_of(spans, parts, sorted(drawn))
    assert sorted(position for group in groups for position in group.positions) == sorted(drawn)
    assert all(owner[position] == int(group.name[-1]) for group in groups for position in group.positions)
    dropped = data.draw(st.sampled_from([group.name for group in groups]))
    kept = {name: span for name, span in parts.items() if name != dropped}
    with pytest.raises(mmf.SpanError, match="leave out"):
        groups_of(spans, kept, sorted(drawn))


def test_groups_that_are_refused(prompt):
    spans = prompt.spans
    with pytest.raises(mmf.SpanError, match="by='patch' is no grouping: it is one of span, image_row"):
        groups_of(spans, "patch")
    with pytest.raises(mmf.SpanError, match="'a' and 'b' both hold 64 position"):
        groups_of(spans, {"a": "image", "b": "all"})
    with pytest.raises(mmf.SpanError, match=r"leave out 4 of 77 .* \[0, 1, 2, 67\] \('<s>'\).* add \{\"rest\""):
        groups_of(spans, {"a": "image", "b": "question | suffix"})
    with pytest.raises(mmf.SpanError, match="'none' .* holds no position of this prompt"):
        groups_of(spans, {"none": "image & question", "rest": "all"})
    text_only = tiny_graph().prompt(None, QUESTION).spans
    with pytest.raises(mmf.SpanError, match="divides the image, but the prompt has none"):
        groups_of(text_only, "tile")
    box = spans["image"].box((0, 0, 20, 20))
    named = groups_of(spans, {"object": box, "image": spans["image"] - box, "text": "~image"})
    assert [len(group.positions) for group in named] == [len(box), 64 - len(box), len(spans["all"]) - 64]


def test_sinks_by_hand():
    """Planted: position 0 takes 0.6 of every later row, position 5 takes 0.9 of one row; the rest is even."""
    rows = 40
    mean, readable = torch.zeros(rows, rows), torch.arange(1, rows + 1)
    for row in range(rows):
        mean[row, : row + 1] = 1 / (row + 1)
    even = received_by(mean, readable)
    assert (even[: rows - 16] - 1).abs().max() < 1e-6
    assert float(even[rows - 16 :].abs().max()) == 0
    mean[1:] *= 0.4
    mean[1:, 0] += 0.6
    mean[20] = 0.1 / 21
    mean[20, 21:] = 0
    mean[20, 5] += 0.9
    found = received_by(mean, readable)
    later = sorted(float(mean[row, 0]) * (row + 1) for row in range(1, rows))
    assert abs(float(found[0]) - later[(len(later) - 1) // 2]) < 1e-5
    assert float(found[0]) > 10 > 1 > float(found[5])


def test_a_sink_is_found_whatever_rows_are_asked(graph, prompt):
    maps = mmf.attention(graph, prompt, layers=1, target="last", source="question", heads=[0])
    whole = mmf.attention(graph, prompt, layers=1).at(1).mean(0)
    shares = whole * torch.arange(1, len(prompt) + 1)[:, None]
    for position in range(len(prompt) - 16):
        assert abs(float(shares[position + 1 :, position].median()) - float(maps.received[0, position])) < 1e-4
    low = float(maps.received[0].median())
    assert maps.sinks(1, low) == tuple((maps.received[0] > low).nonzero().flatten().tolist())
