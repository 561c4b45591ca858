"""layer_mask and add_to_edges by themselves: what is open, closed and counted, and that nothing is edited."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnsight_mmflow.inside.masks import add_to_edges, layer_mask

TYPES = (torch.float32, torch.float16, torch.bfloat16)


def opened(mask):
    return mask > torch.finfo(mask.dtype).min / 2


def causal(queries, past=0):
    """Query i may read the past and itself and what lies between, spelled out."""
    return torch.tensor([[key <= past + query for key in range(past + queries)] for query in range(queries)])


def states(rows, queries, dtype=torch.float32):
    return torch.zeros(rows, queries, 8, dtype=dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("queries", "past"), [(5, 0), (1, 0), (1, 6), (3, 4)])
def test_none_means_causal(dtype, queries, past):
    mask = layer_mask(None, states(2, queries, dtype), past)
    assert mask.shape == (2, 1, queries, past + queries)
    assert mask.dtype == dtype
    assert opened(mask).equal(causal(queries, past).expand_as(mask))
    assert set(mask.unique().tolist()) <= {0.0, torch.finfo(dtype).min}


@pytest.mark.parametrize("dtype", TYPES)
def test_bool_means_true_is_open(dtype):
    allowed = causal(4).expand(2, 1, 4, 4).clone()
    allowed[1, :, :, 0] = False
    allowed[1, :, 0, 0] = True
    mask = layer_mask(allowed, states(2, 4, dtype), 0)
    assert mask.dtype == dtype
    assert opened(mask).equal(allowed)
    assert set(mask.unique().tolist()) == {0.0, torch.finfo(dtype).min}


@pytest.mark.parametrize("shut", [float("-inf"), torch.finfo(torch.float32).min])
def test_float_keeps_its_open_and_closed_keys(shut):
    given_mask = torch.zeros(1, 1, 4, 4).masked_fill(~causal(4), shut)
    assert opened(layer_mask(given_mask, states(1, 4), 0)).equal(causal(4)[None, None])


def test_float_keeps_its_biases():
    given_mask = torch.full((1, 1, 3, 3), -1.5).masked_fill(~causal(3), torch.finfo(torch.float32).min)
    mask = layer_mask(given_mask, states(1, 3), 0)
    assert mask[0, 0][causal(3)].tolist() == [-1.5] * 6


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_keys_that_are_not_there_yet_are_cut_off(kind):
    # A static cache hands masks as long as the cache may become; 2 past + 3 queries are 5 keys.
    allowed = torch.ones(1, 1, 3, 9, dtype=torch.bool).tril(2)
    mask = allowed if kind == "bool" else torch.zeros(1, 1, 3, 9).masked_fill(~allowed, torch.finfo(torch.float32).min)
    built = layer_mask(mask, states(1, 3), 2)
    assert built.shape == (1, 1, 3, 5)
    assert opened(built).equal(causal(3, 2)[None, None])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["bool", "minimum", "infinite"])
def test_padding_query_stays_finite(dtype, kind):
    allowed = causal(5)[None, None].clone()
    allowed[..., :2] = False  # positions 0 and 1 are padding: they may read nothing
    shut = torch.finfo(dtype).min if kind == "minimum" else float("-inf")
    mask = allowed if kind == "bool" else torch.zeros(1, 1, 5, 5, dtype=dtype).masked_fill(~allowed, shut)
    built = layer_mask(mask, states(1, 5, dtype), 0)
    scores = torch.full((1, 1, 5, 5), -8.0, dtype=dtype)
    weights = (scores + built).softmax(-1)
    assert weights.isfinite().all()
    assert opened(built)[0, 0, 2:].equal(allowed[0, 0, 2:]), "real queries keep their keys"
    assert (weights[0, 0, 2:, :2] == 0).all(), "no real query reads padding"


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_layer_mask_edits_nothing(kind):
    allowed = causal(4)[None, None].clone()
    allowed[..., 0, :] = False
    mask = allowed if kind == "bool" else torch.zeros(1, 1, 4, 4).masked_fill(~allowed, torch.finfo(torch.float32).min)
    before = mask.clone()
    layer_mask(mask, states(1, 4), 0)
    assert mask.equal(before)


def test_closing_counts_open_edges_only():
    mask = layer_mask(None, states(2, 6), 0)
    built, changed, starved = add_to_edges(mask, [([3, 5], [1, 4]), ([], [1])], None, 4)
    # row 0: 3 reads 1 but not 4, 5 reads 1 and 4; row 1: no target
    assert (changed, starved) == (3, 0)
    difference = opened(mask) & ~opened(built)
    assert difference.nonzero().tolist() == [[0, 0, 3, 1], [0, 0, 5, 1], [0, 0, 5, 4]]
    assert (built == mask)[~difference].all()


def test_closing_edits_no_mask():
    mask = layer_mask(None, states(1, 4), 0).clone()
    before = mask.clone()
    for heads in (None, [1]):
        add_to_edges(mask, [([3], [0])], heads, 2)
        assert mask.equal(before)


def test_closing_again_counts_nothing():
    mask, *_ = add_to_edges(layer_mask(None, states(1, 5), 0), [([4], [1, 2])], None, 4)
    again, changed, starved = add_to_edges(mask, [([4], [1, 2])], None, 4)
    assert (changed, starved) == (0, 0)
    assert again.equal(mask)


@pytest.mark.parametrize("heads", [None, [0], [3, 1]])
def test_closing_counts_starved_queries(heads):
    mask = layer_mask(None, states(1, 4), 0)
    _, changed, starved = add_to_edges(mask, [([1, 2], [0, 1])], heads, 4)
    assert (changed, starved) == (4 * len(heads or [0]), len(heads or [0])), "query 1 loses 0 and 1; query 2 keeps 2"


def test_closing_by_heads_leaves_the_others_open():
    mask = layer_mask(None, states(2, 5), 0)
    built, changed, _ = add_to_edges(mask, [([4], [0, 1]), ([2], [1])], [1, 3], 4)
    assert built.shape == (2, 4, 5, 5)
    assert changed == 2 * 2 + 2 * 1
    assert (opened(mask).expand(-1, 4, -1, -1) & ~opened(built)).nonzero().tolist() == [
        [0, 1, 4, 0], [0, 1, 4, 1], [0, 3, 4, 0], [0, 3, 4, 1], [1, 1, 2, 1], [1, 3, 2, 1],
    ]  # fmt: skip


def test_closing_all_heads_after_some_heads():
    mask, *_ = add_to_edges(layer_mask(None, states(1, 5), 0), [([4], [0])], [2], 4)
    built, changed, _ = add_to_edges(mask, [([4], [0, 1])], None, 4)
    assert changed == 3 + 4, "head 2 had lost key 0 already"
    assert not opened(built)[0, :, 4, :2].any()


def test_closing_spreads_a_mask_of_one_row_over_the_batch():
    mask = layer_mask(None, states(1, 4), 0)
    built, changed, _ = add_to_edges(mask, [([3], [0]), ([3], [1]), ([], [])], None, 4)
    assert built.shape == (3, 1, 4, 4)
    assert changed == 2
    assert opened(built)[:, 0, 3].tolist() == [
        [False, True, True, True],
        [True, False, True, True],
        [True, True, True, True],
    ]


@settings(deadline=None)  # a busy machine is no error
@given(
    st.integers(1, 7),
    st.integers(0, 5),
    st.sets(st.integers(0, 6)),
    st.sets(st.integers(0, 11)),
    st.one_of(st.none(), st.sets(st.integers(0, 3), min_size=1)),
)
def test_closing_is_the_loop_over_edges(queries, past, targets, sources, heads):
    targets, sources = [t for t in targets if t < queries], [s for s in sources if s < past + queries]
    mask = layer_mask(None, states(1, queries), past)
    built, changed, starved = add_to_edges(mask, [(targets, sources)], None if heads is None else list(heads), 4)
    wanted = opened(mask).expand(1, 4, -1, -1).clone()
    for head in range(4) if heads is None else heads:
        for target in targets:
            for source in sources:
                wanted[0, head, target, source] = False
    assert opened(built).expand_as(wanted).equal(wanted)
    closed_edges = int((opened(mask).expand_as(wanted) & ~wanted).sum())
    empty = int((~wanted.any(-1)).sum())
    counted = 4 if heads is None else 1  # without heads the mask has one plane that stands for all four
    assert (changed * counted, starved * counted) == (closed_edges, empty)
