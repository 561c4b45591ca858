"""Knockout is exactly the model with those edges masked by hand (gold.py), and refuses what would change nothing.

Tolerance: 1e-5 on logits of size 2 to 3. Two float32 kernels (sdpa, eager) through a tower of 3 and a decoder of 5
layers, whose matrices are 4 times as large as usual, differ by up to 5e-6 with no edit at all; a wrong edge shows
from 1e-3.
"""

import dataclasses

import nnsight
import pytest
import torch
from kit.gold import Cut, gold_logits, gold_run, places, plain_llama, twin
from kit.tiny import TEXTS, TOWERS, picture, tiny_graph, tiny_model, tiny_processor
from nnsight.intervention.interleaver import OutOfOrderError

import nnsight_mmflow as mmf
from nnsight_mmflow import Knockout, MMFlowError, NoEffectError, SpanError

SAME, VISIBLE = 1e-5, 1e-3
QUESTION = "is the circle red or blue ?"
RED = 3  # "red" is the question's fourth word
OTHERS = ("what color is the circle ?", "is there a red circle ?", "what is to the left of the blue circle ?")
BACKENDS = ("sdpa", "eager")

# How an edge is asked for, and the same positions by hand from `places`: (sources, targets).
EDGES = {
    ("image", "question"): lambda at: (at["image"], at["question"]),
    ("image", "last"): lambda at: (at["image"], at["last"]),
    ("question", "last"): lambda at: (at["question"], at["last"]),
    ("last", "last"): lambda at: (at["last"], at["last"]),
    ("image[0]", "suffix"): lambda at: (at["image"], at["suffix"]),
    ("image", "image"): lambda at: (at["image"], at["image"]),
    ("question", "question | suffix"): lambda at: (at["question"], at["question"] + at["suffix"]),
    ("~image - text('USER')", "last"): lambda at: (
        tuple(sorted({*at["all"]} - {*at["image"]} - {at["prefix"][1]})),
        at["last"],
    ),
    ("image", "question - text('red')"): lambda at: (
        at["image"],
        at["question"][:RED] + at["question"][RED + 1 :],
    ),
    ("text('red')", "last"): lambda at: (at["question"][RED : RED + 1], at["last"]),
}


def logits_of(graph, prompt, *patterns, **kwargs):
    with torch.no_grad(), graph.trace(prompt, *patterns, **kwargs):
        logits = graph.unembed.output.save()
    return logits  # noqa: RET504 - a block that nnsight captures may not return


def states_of(graph, prompt, *patterns):
    with torch.no_grad(), graph.trace(prompt, *patterns, use_cache=False):
        states = nnsight.save([graph.layers[layer].output.clone() for layer in range(graph.n_layers)])
    return states  # noqa: RET504 - a block that nnsight captures may not return


def apart(one, other):
    return (one - other).abs().max().item()


def cuts_for(graph, prompt, edge, layers, heads=None, rows=None):
    """The edge as hand-made cuts, in every row (or those given)."""
    count = len(prompt.inputs["input_ids"])
    cuts = []
    for row in range(count) if rows is None else rows:
        sources, targets = EDGES[edge](places(graph.processor, prompt.inputs, row))
        cuts.append(Cut(tuple(layers), tuple(targets), tuple(sources), row, heads))
    return cuts


def mixed_batch(graph):
    """Three prompts of different lengths, the shortest padded by 3; each has its own picture."""
    return graph.batch([graph.prompt(picture(number), question) for number, question in enumerate(OTHERS)])


def batch_with_text(graph):
    """A batch in which one row has no picture: padded by more than 60."""
    prompts = [graph.prompt(picture(1), QUESTION), graph.prompt(None, OTHERS[0]), graph.prompt(picture(2), OTHERS[2])]
    return graph.batch(prompts)


def hooks_of(graph):
    """How many hooks each module holds (Hugging Face leaves some of its own in the tower)."""
    return {
        name: (len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in graph.adapter.model.named_modules()
    }


# The reference itself.


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tower", TOWERS)
def test_twin_is_the_same_model(text, tower):
    graph, model = tiny_graph(text, tower), twin(text, tower)
    assert graph.backend == "sdpa"
    ours, theirs = graph.adapter.model.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    prompt = graph.prompt(picture(0), QUESTION)
    with torch.no_grad():
        clean = model(**prompt.inputs).logits
    assert apart(gold_logits(model, prompt.inputs), clean) <= SAME


@pytest.mark.parametrize("rows", ["one", "mixed", "text"])
def test_spans_are_where_the_ids_say(graph, rows):
    prompt = {
        "one": lambda: graph.prompt(picture(0), QUESTION),
        "mixed": lambda: mixed_batch(graph),
        "text": lambda: batch_with_text(graph),
    }[rows]()
    for row, spans in enumerate(prompt.rows()):
        for name, found in places(graph.processor, prompt.inputs, row).items():
            assert spans[name].positions == found, name


@pytest.mark.parametrize("edge", list(EDGES))
def test_two_references_agree(prompt, graph, edge):
    cuts = cuts_for(graph, prompt, edge, (1, 2, 4))
    logits, weights = plain_llama(twin(), prompt.inputs, cuts)
    assert apart(logits, gold_logits(twin(), prompt.inputs, cuts)) <= SAME
    assert all(apart(layer.sum(-1), torch.ones(())) <= 1e-6 for layer in weights)  # 77 float32 terms that sum to 1


# Knockout equals the reference.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("edge", list(EDGES))
def test_trace_is_gold(backend, edge):
    graph = tiny_graph(attention=backend)
    prompt = graph.prompt(picture(0), QUESTION)
    ours = logits_of(graph, prompt, Knockout(source=edge[0], target=edge[1], layers=(1, 3)), use_cache=False)
    gold = gold_logits(twin(), prompt.inputs, cuts_for(graph, prompt, edge, (1, 3)))
    assert apart(ours, gold) <= SAME
    assert apart(ours, logits_of(graph, prompt, use_cache=False)) > VISIBLE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("heads", [None, (0, 3)])
def test_every_text_model_and_tower(backend, tower, text, heads):
    graph = tiny_graph(text, tower, attention=backend)
    prompt = graph.prompt(picture(3), QUESTION)
    edge = ("image", "question")
    ours = logits_of(graph, prompt, Knockout(source=edge[0], target=edge[1], layers=range(1, 4), heads=heads))
    gold = gold_logits(twin(text, tower), prompt.inputs, cuts_for(graph, prompt, edge, range(1, 4), heads))
    # SigLIP's own two kernels leave 5e-6 in the clean logits, CLIP's 2e-6.
    assert apart(ours, gold) <= (SAME if tower == "clip" else 2 * SAME)
    assert apart(ours[:, -1], logits_of(graph, prompt)[:, -1]) > VISIBLE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heads", [(0,), (1,), (2,), (3,), (1, 2), [3, 0], range(4)])
def test_heads_share_keys_but_not_masks(backend, heads):
    graph = tiny_graph(attention=backend)  # 4 heads read 2 heads of keys
    prompt = graph.prompt(picture(0), QUESTION)
    edge = ("image", "last")
    ours = logits_of(graph, prompt, Knockout(source="image", target="last", layers=range(5), heads=heads))
    gold = gold_logits(twin(), prompt.inputs, cuts_for(graph, prompt, edge, range(5), tuple(heads)))
    assert apart(ours, gold) <= SAME
    assert apart(ours[:, -1], logits_of(graph, prompt)[:, -1]) > VISIBLE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("edge", [("image", "question"), ("question", "last"), ("last", "last"), ("image", "image")])
@pytest.mark.parametrize("heads", [None, (1,)])
def test_padded_batch_is_gold(backend, text, edge, heads):
    graph = tiny_graph(text, attention=backend)
    batch = mixed_batch(graph)
    real = batch.inputs["attention_mask"].bool()
    assert not real.all(), "the questions must differ in length"
    ours = logits_of(
        graph, batch, Knockout(source=edge[0], target=edge[1], layers=(0, 2), heads=heads), use_cache=False
    )
    gold = gold_logits(twin(text), batch.inputs, cuts_for(graph, batch, edge, (0, 2), heads))
    assert apart(ours[real], gold[real]) <= SAME
    changed = (ours - logits_of(graph, batch, use_cache=False))[:, -1].abs().amax(-1)
    assert (changed > VISIBLE).all(), "every row must feel it"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("edge", [("question", "last"), ("last", "last"), ("question", "question | suffix")])
def test_batch_with_a_text_only_row_is_gold(backend, edge):
    graph = tiny_graph(attention=backend)
    batch = batch_with_text(graph)
    real = batch.inputs["attention_mask"].bool()
    assert int(real[1].sum()) < 20
    ours = logits_of(graph, batch, Knockout(source=edge[0], target=edge[1], layers=(1, 2)), use_cache=False)
    gold = gold_logits(twin(), batch.inputs, cuts_for(graph, batch, edge, (1, 2)))
    assert apart(ours[real], gold[real]) <= SAME
    changed = (ours - logits_of(graph, batch, use_cache=False))[:, -1].abs().amax(-1)
    assert (changed > VISIBLE).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("text", TEXTS)
def test_batch_row_is_the_prompt_alone(backend, text):
    graph = tiny_graph(text, attention=backend)
    batch = mixed_batch(graph)
    pattern = Knockout(source="image", target="question", layers=range(5))
    together = logits_of(graph, batch, pattern)[:, -1]
    for row, prompt in enumerate(batch.prompts):
        assert apart(together[row], logits_of(graph, prompt, pattern)[0, -1]) <= SAME


@pytest.mark.parametrize("backend", BACKENDS)
def test_box_span_is_gold(backend):
    graph = tiny_graph(attention=backend)
    prompt = graph.prompt(picture(0), QUESTION)
    # 64 pixels, patches of 8: the box meets rows 1 and 2, columns 3 to 5.
    image = places(graph.processor, prompt.inputs)["image"]
    patches = tuple(image[row * 8 + column] for row in (1, 2) for column in (3, 4, 5))
    span = prompt.spans["image"].box((24.0, 8.0, 48.0, 24.0))
    assert span.positions == patches
    targets = places(graph.processor, prompt.inputs)["question"]
    ours = logits_of(graph, prompt, Knockout(source=span, target="question", layers=range(5)))
    gold = gold_logits(twin(), prompt.inputs, [Cut(tuple(range(5)), targets, patches)])
    assert apart(ours, gold) <= SAME
    assert apart(ours, logits_of(graph, prompt)) > VISIBLE


@pytest.mark.parametrize("which", [0, 1])
def test_one_of_two_images_is_gold(graph, which):
    prompt = graph.prompt([picture(0), picture(1)], QUESTION)
    image = places(graph.processor, prompt.inputs)["image"]
    assert len(image) == 128
    sources = image[64 * which : 64 * (which + 1)]
    last = (len(prompt) - 1,)
    ours = logits_of(graph, prompt, Knockout(source=f"image[{which}]", target="last", layers=range(5)))
    assert apart(ours, gold_logits(twin(), prompt.inputs, [Cut(tuple(range(5)), last, sources)])) <= SAME
    assert apart(ours[:, -1], logits_of(graph, prompt)[:, -1]) > VISIBLE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", ["one", "mixed"])
def test_several_knockouts_add_up(backend, rows):
    graph = tiny_graph(attention=backend)
    prompt = graph.prompt(picture(0), QUESTION) if rows == "one" else mixed_batch(graph)
    asked = [
        (("image", "question"), (1, 2), None),
        (("image", "last"), (2, 3), (0, 2)),
        (("question", "last"), (2, 4), None),
        (("last", "last"), (2,), (1,)),
    ]
    patterns = [Knockout(source=e[0], target=e[1], layers=layers, heads=heads) for e, layers, heads in asked]
    cuts = [cut for e, layers, heads in asked for cut in cuts_for(graph, prompt, e, layers, heads)]
    real = prompt.inputs["attention_mask"].bool()
    ours = logits_of(graph, prompt, *patterns, use_cache=False)
    assert apart(ours[real], gold_logits(twin(), prompt.inputs, cuts)[real]) <= SAME
    backwards = logits_of(graph, prompt, *patterns[::-1], use_cache=False)
    assert apart(backwards[real], ours[real]) <= SAME
    for left_out in range(len(patterns)):
        fewer = logits_of(graph, prompt, *patterns[:left_out], *patterns[left_out + 1 :], use_cache=False)
        assert apart(fewer[real], ours[real]) > VISIBLE, "each of them must count"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", ["one", "mixed"])
@pytest.mark.parametrize("heads", [None, (2,)])
def test_apply_in_a_trace_of_ones_own(backend, rows, heads):
    graph = tiny_graph(attention=backend)
    prompt = graph.prompt(picture(0), QUESTION) if rows == "one" else mixed_batch(graph)
    spans = prompt.spans
    pattern = Knockout(source="image", target="question", layers=(1, 2), heads=heads)
    with torch.no_grad(), graph.model.trace(**prompt.inputs):
        before = graph.layers[0].output.save()
        closed = nnsight.save(pattern.apply(graph, spans))
        logits = graph.unembed.output.save()
    cuts = cuts_for(graph, prompt, ("image", "question"), (1, 2), heads)
    gold, states = gold_run(twin(), prompt.inputs, cuts)
    real = prompt.inputs["attention_mask"].bool()
    assert apart(logits[real], gold[real]) <= SAME
    assert apart(before[real], states[0][real]) <= SAME
    assert logits.equal(logits_of(graph, prompt, pattern)), "the same edits, so the same bits"
    edges = sum(len(cut.targets) * len(cut.sources) for cut in cuts)
    assert closed == 2 * edges * len(heads or (0,)), "edges closed, over both layers"


@pytest.mark.parametrize("layers", [2, -3, [2], (2, 2), range(2, 3), {2}])
def test_ways_to_name_a_layer(graph, prompt, layers):
    gold = gold_logits(twin(), prompt.inputs, cuts_for(graph, prompt, ("image", "last"), (2,)))
    assert apart(logits_of(graph, prompt, Knockout(source="image", target="last", layers=layers)), gold) <= SAME


def test_layers_may_be_any_iterable_and_a_pattern_run_twice(graph, prompt):
    pattern = Knockout(source="image", target="last", layers=(layer for layer in (3, 1)))
    gold = gold_logits(twin(), prompt.inputs, cuts_for(graph, prompt, ("image", "last"), (1, 3)))
    for _ in range(2):
        assert apart(logits_of(graph, prompt, pattern), gold) <= SAME


@pytest.mark.parametrize("use_cache", [True, False])
def test_cache_or_none(graph, prompt, use_cache):
    gold = gold_logits(twin(), prompt.inputs, cuts_for(graph, prompt, ("image", "question"), range(5)))
    pattern = Knockout(source="image", target="question", layers=range(5))
    assert apart(logits_of(graph, prompt, pattern, use_cache=use_cache), gold) <= SAME


@pytest.mark.parametrize("backend", BACKENDS)
def test_sliding_windows_stay_closed(backend):
    # Mistral's sliding window of 70: the last position does not see the first ones before any knockout.
    graph = sliding_graph(backend, 70)
    prompt = graph.prompt(picture(0), QUESTION)
    at = places(graph.processor, prompt.inputs)
    slid = [Cut(tuple(range(5)), (query,), tuple(range(query - 70 + 1))) for query in range(70, len(prompt))]
    pattern = Knockout(source="image", target="last", layers=(1, 2))
    gold = gold_logits(twin("mistral"), prompt.inputs, [*slid, Cut((1, 2), at["last"], at["image"])])
    ours = logits_of(graph, prompt, pattern, use_cache=False)
    assert apart(ours, gold) <= SAME
    assert apart(ours, logits_of(tiny_graph("mistral", attention=backend), prompt, pattern, use_cache=False)) > VISIBLE


def sliding_graph(backend, width):
    model = tiny_model("mistral", attention=backend)
    model.config.text_config.sliding_window = width
    return mmf.adapt(model, tiny_processor())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_stays_finite_and_near(dtype, backend):
    graph = mmf.adapt(tiny_model(attention=backend).to(dtype), tiny_processor())
    batch = batch_with_text(graph)
    pattern = Knockout(source="question", target="last", layers=range(5))
    ours = logits_of(graph, batch, pattern)
    assert ours.dtype == dtype
    assert ours.isfinite().all(), "padding rows included"
    gold = gold_logits(twin(), batch.inputs, cuts_for(graph, batch, ("question", "last"), range(5)))
    # Three (bfloat16) or four (float16) decimal digits through 8 layers; the knockout itself moves logits by 1.
    assert apart(ours[:, -1].float(), gold[:, -1]) <= (0.05 if dtype == torch.float16 else 0.3)
    assert apart(ours[:, -1], logits_of(graph, batch)[:, -1]) > 0.5


# Acceptance items of the paper's specification, section 9.


@pytest.mark.parametrize("edge", list(EDGES))
@pytest.mark.parametrize("heads", [None, (1, 3)])
def test_item_2_and_6_weights_are_zero_and_rows_sum_to_one(eager_graph, edge, heads):
    graph = eager_graph
    prompt = graph.prompt(picture(0), QUESTION)
    layers = (1, 2)
    pattern = Knockout(source=edge[0], target=edge[1], layers=layers, heads=heads)
    with torch.no_grad(), graph.trace(prompt, pattern, use_cache=False):
        weights = nnsight.save([graph.attention(layer).output[1].clone() for layer in range(graph.n_layers)])
    sources, targets = EDGES[edge](places(graph.processor, prompt.inputs))
    _, expected = plain_llama(twin(), prompt.inputs, cuts_for(graph, prompt, edge, layers, heads))
    for layer, found in enumerate(weights):
        assert found.shape == (1, 4, len(prompt), len(prompt))
        assert apart(found.sum(-1), torch.ones(())) <= 1e-6  # 77 float32 terms that sum to 1
        assert apart(found, expected[layer]) <= SAME
        assert (found.triu(1) == 0).all(), "strictly causal"
        for head in range(4):
            block = found[0, head][list(targets)][:, list(sources)]
            legal = torch.tensor([[source <= target for source in sources] for target in targets])
            if layer in layers and (heads is None or head in heads):
                assert (block == 0).all()
            else:
                assert (block[legal] > 0).all()


@pytest.mark.parametrize(
    ("source", "target"),
    [("image - image", "last"), ("image", "last - last"), ("image & question", "last"), ("prefix & image", "question")],
)
def test_item_3_empty_span_is_refused(graph, prompt, source, target):
    with pytest.raises(NoEffectError, match="would change nothing"):
        graph.trace(prompt, Knockout(source=source, target=target, layers=range(5)))


@pytest.mark.parametrize("text", TEXTS)
def test_item_4_image_to_question_in_the_last_layer_does_nothing_to_the_answer(text):
    pattern = Knockout(source="image", target="question", layers=-1)
    for backend in BACKENDS:
        graph = tiny_graph(text, attention=backend)
        prompt = graph.prompt(picture(0), QUESTION)
        clean, ours = logits_of(graph, prompt, use_cache=False), logits_of(graph, prompt, pattern, use_cache=False)
        question = list(prompt.spans["question"])
        assert apart(ours[:, question], clean[:, question]) > VISIBLE, "it did happen"
        if backend == "eager":
            assert ours[:, -1].equal(clean[:, -1])
        else:  # sdpa takes another kernel once it is handed a mask
            assert apart(ours[:, -1], clean[:, -1]) <= SAME


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("source", ["image", "question", "last"])
@pytest.mark.parametrize("rows", ["one", "mixed"])
def test_item_5_to_last_leaves_the_other_positions_alone(backend, source, rows):
    graph = tiny_graph(attention=backend)
    prompt = graph.prompt(picture(0), QUESTION) if rows == "one" else mixed_batch(graph)
    real = prompt.inputs["attention_mask"].bool()
    real[:, -1] = False
    ours = states_of(graph, prompt, Knockout(source=source, target="last", layers=range(1, 4)))
    for layer, (knocked, clean) in enumerate(zip(ours, states_of(graph, prompt), strict=True)):
        if backend == "eager":
            assert knocked[real].equal(clean[real])
        else:  # another kernel, on states of size 10
            assert apart(knocked[real], clean[real]) <= SAME * 4
        felt = (knocked - clean)[:, -1].abs().amax(-1)
        assert (felt > VISIBLE).all() if layer >= 1 else (felt == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_item_5_image_to_question_leaves_image_and_prefix_alone(backend):
    graph = tiny_graph(attention=backend)
    prompt = graph.prompt(picture(0), QUESTION)
    still = list(prompt.spans["image | prefix"])
    question = list(prompt.spans["question"])
    ours = states_of(graph, prompt, Knockout(source="image", target="question", layers=range(5)))
    for knocked, clean in zip(ours, states_of(graph, prompt), strict=True):
        if backend == "eager":
            assert knocked[:, still].equal(clean[:, still])
        else:  # another kernel, on states of size 10
            assert apart(knocked[:, still], clean[:, still]) <= SAME * 4
        assert ((knocked - clean)[0, question].abs().amax(-1) > VISIBLE).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("rows", ["one", "batch"])
def test_item_7_without_the_image_the_pixels_do_not_matter(backend, tower, rows):
    graph = tiny_graph("llama", tower, attention=backend)

    def made(seed):
        prompts = [graph.prompt(picture(seed + number), question) for number, question in enumerate(OTHERS)]
        return prompts[0] if rows == "one" else graph.batch(prompts)

    one, other = made(10), made(20)
    after = [list(spans["~image"]) for spans in one.rows()]
    pattern = Knockout(source="image", target="~image", layers=range(5))
    ours, theirs = (logits_of(graph, prompt, pattern) for prompt in (one, other))
    clean = [logits_of(graph, prompt)[:, -1] for prompt in (one, other)]
    for row, still in enumerate(after):
        # weights on the image are exactly 0, and 0 times whatever the pixels gave is 0
        assert ours[row, still].equal(theirs[row, still])
    assert ((clean[0] - clean[1]).abs().amax(-1) > 0.01).all(), "without the knockout the pixels do matter"
    assert ((ours[:, -1] - clean[0]).abs().amax(-1) > VISIBLE).all()


def test_item_7_one_layer_left_open_lets_the_pixels_in(graph):
    one, other = (graph.prompt(picture(seed), QUESTION) for seed in (10, 20))
    pattern = Knockout(source="image", target="~image", layers=[0, 1, 3, 4])
    assert apart(logits_of(graph, one, pattern)[:, -1], logits_of(graph, other, pattern)[:, -1]) > VISIBLE


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("rows", ["one", "mixed"])
def test_item_9_eager_is_sdpa(text, rows):
    graphs = [tiny_graph(text, attention=backend) for backend in BACKENDS]
    prompts = [graph.prompt(picture(0), QUESTION) if rows == "one" else mixed_batch(graph) for graph in graphs]
    real = prompts[0].inputs["attention_mask"].bool()
    patterns = (
        Knockout(source="image", target="question", layers=range(3)),
        Knockout(source="question", target="last", layers=range(2, 5), heads=(0, 1)),
    )
    sdpa, eager = (logits_of(graph, prompt, *patterns) for graph, prompt in zip(graphs, prompts, strict=True))
    assert apart(sdpa[real], eager[real]) <= SAME


def test_item_9_flash_is_refused(graph, prompt, monkeypatch):
    pattern = Knockout(source="image", target="last", layers=range(5))
    monkeypatch.setattr(graph.text_config, "_attn_implementation", "flash_attention_2")
    with pytest.raises(MMFlowError, match="'flash_attention_2' attention, which ignores a mask") as caught:
        graph.trace(prompt, pattern)
    assert not isinstance(caught.value, NoEffectError)
    with pytest.raises(MMFlowError, match='attn_implementation="sdpa"'):
        graph.generate(prompt, pattern)


# Planted no-ops.


@pytest.mark.parametrize(
    ("source", "target"),
    [("question", "image"), ("last", "question"), ("suffix", "image"), ("last", "image | question")],
)
def test_source_behind_the_target_is_refused(graph, prompt, source, target):
    pattern = Knockout(source=source, target=target, layers=range(5))
    with pytest.raises(NoEffectError, match="swapped"):
        graph.trace(prompt, pattern)
    with pytest.raises(NoEffectError, match="swapped"), torch.no_grad(), graph.model.trace(**prompt.inputs):
        pattern.apply(graph, prompt.spans)


def test_row_without_the_span_is_refused_by_its_number(graph):
    batch = batch_with_text(graph)
    pattern = Knockout(source="image", target="last", layers=range(5))
    with pytest.raises(NoEffectError, match="row 1 would change nothing"):
        graph.trace(batch, pattern)
    with (
        pytest.raises(NoEffectError, match="row 1 would change nothing"),
        torch.no_grad(),
        graph.model.trace(**batch.inputs),
    ):
        pattern.apply(graph, batch.spans)


def test_text_only_prompt_has_no_image_to_close(graph):
    prompt = graph.prompt(None, QUESTION)
    with pytest.raises(NoEffectError, match="holds no position"):
        graph.trace(prompt, Knockout(source="image", target="last", layers=range(5)))


def test_what_another_pattern_closed_already_is_refused(graph, prompt):
    pattern = Knockout(source="image", target="last", layers=(1, 2))
    with (
        pytest.raises(NoEffectError, match="would change nothing"),
        torch.no_grad(),
        graph.trace(prompt, pattern, pattern),
    ):
        graph.unembed.output.save()
    same = Knockout(source="image", target="last", layers=1, heads=(0,))
    with (
        pytest.raises(NoEffectError, match="would change nothing"),
        torch.no_grad(),
        graph.trace(prompt, pattern, same),
    ):
        graph.unembed.output.save()


def test_what_a_sliding_window_closed_already_is_refused():
    # A window of 8: from position 74 on, no position sees the image, so the edge is closed before we come.
    graph = sliding_graph("sdpa", 8)
    prompt = graph.prompt(picture(0), QUESTION)
    pattern = Knockout(source="image", target="last", layers=range(5))
    with pytest.raises(NoEffectError), torch.no_grad(), graph.trace(prompt, pattern):
        graph.unembed.output.save()


def test_second_apply_on_layers_gone_by_is_an_error(graph, prompt):
    # Locations must be asked for in the order in which they run; graph.trace is the way to join patterns.
    one = Knockout(source="image", target="last", layers=(1, 2))
    other = Knockout(source="question", target="last", layers=(1, 2))
    with pytest.raises(OutOfOrderError), torch.no_grad(), graph.model.trace(**prompt.inputs):
        [pattern.apply(graph, prompt.spans) for pattern in (one, other)]


# Errors.


@pytest.mark.parametrize("name", ["picture", "image[1]", "text('green')", "image |", "", "image + question"])
def test_unknown_span(graph, prompt, name):
    for pattern in (
        Knockout(source=name, target="last", layers=1),
        Knockout(source="image", target=name, layers=1),
    ):
        with pytest.raises(SpanError):
            graph.trace(prompt, pattern)


@pytest.mark.parametrize("layers", [5, -6, [0, 5], range(3, 8)])
def test_layer_that_does_not_exist(graph, prompt, layers):
    with pytest.raises(MMFlowError, match="do not exist; there are 5"):
        graph.trace(prompt, Knockout(source="image", target="last", layers=layers))


@pytest.mark.parametrize("layers", [[], range(0), ()])
def test_no_layer(graph, prompt, layers):
    with pytest.raises(MMFlowError, match="names no layer"):
        graph.trace(prompt, Knockout(source="image", target="last", layers=layers))


@pytest.mark.parametrize("heads", [(4,), (-1,), (), range(2, 6), [0, 99]])
def test_head_that_does_not_exist(graph, prompt, heads):
    with pytest.raises(MMFlowError, match="there are 4 heads"):
        graph.trace(prompt, Knockout(source="image", target="last", layers=1, heads=heads))


@pytest.mark.parametrize(("source", "target"), [("all", "last"), ("prefix", "prefix"), ("prefix | image", "image")])
@pytest.mark.parametrize("heads", [None, (0,)])
def test_starved_target(graph, prompt, source, target, heads):
    with pytest.raises(MMFlowError, match="nothing to read") as caught:
        graph.trace(prompt, Knockout(source=source, target=target, layers=1, heads=heads))
    assert not isinstance(caught.value, NoEffectError)


def test_starved_row_of_a_batch(graph):
    with pytest.raises(MMFlowError, match="row 0 leaves position"):
        graph.trace(mixed_batch(graph), Knockout(source="all", target="last", layers=1))


@pytest.mark.parametrize("heads", [None, (2,)])
def test_starved_by_two_patterns_together(graph, prompt, heads):
    one = Knockout(source="image | question", target="last", layers=(1, 2), heads=heads)
    other = Knockout(source="prefix | suffix", target="last", layers=(2, 3), heads=heads)
    with (
        pytest.raises(MMFlowError, match="together leave 1 position.* of layer 2"),
        torch.no_grad(),
        graph.trace(prompt, one, other),
    ):
        graph.unembed.output.save()


def test_two_patterns_in_different_heads_starve_no_one(graph, prompt):
    one = Knockout(source="image | question", target="last", layers=2, heads=(0, 1))
    other = Knockout(source="prefix | suffix", target="last", layers=2, heads=(2, 3))
    at = places(graph.processor, prompt.inputs)
    cuts = [
        Cut((2,), at["last"], at["image"] + at["question"], heads=(0, 1)),
        Cut((2,), at["last"], at["prefix"] + at["suffix"], heads=(2, 3)),
    ]
    assert apart(logits_of(graph, prompt, one, other), gold_logits(twin(), prompt.inputs, cuts)) <= SAME


@pytest.mark.parametrize("when", ["decode", "all"])
def test_trace_is_no_generation(graph, prompt, when):
    pattern = Knockout(source="image", target="last", layers=1, when=when)
    with pytest.raises(MMFlowError, match="needs graph.generate"), torch.no_grad(), graph.trace(prompt, pattern):
        graph.unembed.output.save()


@pytest.mark.parametrize("when", ["decode", "all"])
def test_apply_does_not_take_the_prefill_for_a_decode_step(graph, prompt, when):
    pattern = Knockout(source="image", target="last", layers=1, when=when)
    with pytest.raises(MMFlowError, match="when="), torch.no_grad(), graph.model.trace(**prompt.inputs):
        pattern.apply(graph, prompt.spans)


def test_unknown_when(graph, prompt):
    with pytest.raises(MMFlowError, match="when must be one of prefill, decode, all, not 'always'"):
        graph.trace(prompt, Knockout(source="image", target="last", layers=1, when="always"))


def test_span_with_a_batch(graph, prompt):
    batch = mixed_batch(graph)
    for span in (prompt.spans["image"], batch.spans[0]["image"]):
        with pytest.raises(MMFlowError, match="the batch has 3 rows"):
            graph.trace(batch, Knockout(source=span, target="last", layers=1))


def test_span_of_another_prompt(graph, prompt):
    other = graph.prompt(picture(0), OTHERS[2])
    with pytest.raises(MMFlowError, match="take the span from the prompt that is run"):
        graph.trace(prompt, Knockout(source=other.spans["image"], target="last", layers=1))


def test_tensors_have_no_spans(graph, prompt):
    with pytest.raises(MMFlowError, match="patterns need spans"):
        graph.trace(dict(prompt.inputs), Knockout(source="image", target="last", layers=1))


def test_pattern_is_frozen():
    pattern = Knockout(source="image", target="last", layers=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pattern.layers = 2


# The model is as it was.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", ["one", "mixed"])
def test_model_is_unchanged_by_patterns(backend, rows):
    graph = tiny_graph(attention=backend)
    prompt = graph.prompt(picture(0), QUESTION) if rows == "one" else mixed_batch(graph)
    tensors = {name: tensor.clone() for name, tensor in prompt.inputs.items()}
    weights = {name: tensor.clone() for name, tensor in graph.adapter.model.state_dict().items()}
    before = logits_of(graph, prompt)
    hooks = hooks_of(graph)
    logits_of(graph, prompt, Knockout(source="image", target="last", layers=range(5)))
    with torch.no_grad():
        plain = graph.adapter.model(**prompt.inputs).logits
    assert logits_of(graph, prompt).equal(before)
    assert plain.equal(before)
    assert hooks_of(graph) == hooks
    assert all(tensor.equal(weights[name]) for name, tensor in graph.adapter.model.state_dict().items())
    assert all(prompt.inputs[name].equal(tensor) for name, tensor in tensors.items())


def test_pattern_is_deterministic(graph, prompt):
    pattern = Knockout(source="image", target="last", layers=range(5))
    assert logits_of(graph, prompt, pattern).equal(logits_of(graph, prompt, pattern))


def own_error(graph, prompt):
    with torch.no_grad(), graph.trace(prompt, Knockout(source="image", target="last", layers=range(5))):
        graph.layers[2].output.save()
        raise RuntimeError("mine")


def error_between_layers(graph, prompt):
    with torch.no_grad(), graph.model.trace(**prompt.inputs):
        Knockout(source="image", target="last", layers=(0, 1)).apply(graph, prompt.spans)
        graph.layers[1].output.save()
        Knockout(source="question", target="image", layers=(2, 3)).apply(graph, prompt.spans)


def error_in_an_edit(graph, prompt):
    pattern = Knockout(source="image", target="last", layers=(1, 2))
    with torch.no_grad(), graph.trace(prompt, pattern, pattern):
        graph.unembed.output.save()


@pytest.mark.parametrize(
    ("fails", "kind"),
    [(own_error, RuntimeError), (error_between_layers, NoEffectError), (error_in_an_edit, NoEffectError)],
)
def test_item_16_model_is_clean_after_an_error(graph, prompt, fails, kind):
    before = logits_of(graph, prompt)
    hooks = hooks_of(graph)
    with pytest.raises(kind):
        fails(graph, prompt)
    assert hooks_of(graph) == hooks
    assert logits_of(graph, prompt).equal(before)
    with torch.no_grad():
        assert graph.adapter.model(**prompt.inputs).logits.equal(before)
    pattern = Knockout(source="image", target="question", layers=(1, 2))
    gold = gold_logits(twin(), prompt.inputs, cuts_for(graph, prompt, ("image", "question"), (1, 2)))
    assert apart(logits_of(graph, prompt, pattern), gold) <= SAME, "and patterns still work"
