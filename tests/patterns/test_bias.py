"""Bias is exactly the model with so much added to its mask by hand (gold.py), and refuses what would change nothing.

In every form of generation: tests/model/test_forms.py; with other patterns: test_together.py; blocks apart from the
model: tests/inside/test_apart.py; on a bridge: tests/bridge/test_parity.py. Tolerance: 1e-5, as in test_knockout.py.
"""

import math
import re
from itertools import permutations

import pytest
import torch
from kit import plain_forms as plain
from kit.families import EAGER_ONLY, QUESTION, family
from kit.gold import Cut, gold_logits, places, plain_llama, twin
from kit.tiny import TEXTS, picture, tiny_graph, tiny_model, tiny_processor

import nnsight_mmflow as mmf
from nnsight_mmflow import MMFlowError, NoEffectError
from nnsight_mmflow.model.edits import MaskEdges
from nnsight_mmflow.patterns import edge_scores
from nnsight_mmflow.runs.plan import plan_rows, sizes_of
from nnsight_mmflow.runs.sweep import run_sweep

SAME, VISIBLE = 1e-5, 1e-3
ASKED = "is the circle red or blue ?"
LONGER = ("what color ?", ASKED, "is there a red circle to the left of the blue circle ?")


def logits_of(graph, prompt, *patterns):
    with torch.no_grad(), graph.trace(prompt, *patterns, use_cache=False):
        logits = graph.model.output.logits.save()
    return logits  # noqa: RET504 - a block that nnsight captures may not return


def asked(graph, batched=False):
    if batched:
        return graph.batch([graph.prompt(picture(i), question) for i, question in enumerate(LONGER)])
    return graph.prompt(picture(0), ASKED)


def by_hand(graph, prompt, layers, source, target, value, heads=None):
    """The same as cuts of gold.py, its positions found from the ids alone."""
    found = []
    for row in range(len(prompt.inputs["input_ids"])):
        at = places(graph.processor, prompt.inputs, row)
        found.append(Cut(layers, at[target], at[source], row, heads, value))
    return found


def off(one, other, prompt):
    """The largest difference at real positions."""
    real = prompt.inputs["attention_mask"].bool()
    return float((one - other)[real].abs().max())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_trace_is_gold(text, attention):
    """Edges, heads, boosts and damps, alone and in a left-padded batch."""
    graph, wrong = tiny_graph(text, attention=attention), []
    for batched in (False, True):
        prompt = asked(graph, batched)
        clean = gold_logits(twin(text), prompt.inputs)
        for source, target, value, heads in (
            ("image", "last", 1.5, None),
            ("image", "question", -2.5, (0, 3)),
            ("question", "last", 0.7, (1,)),
            ("image", "image", -1, None),
        ):
            pattern = mmf.Bias(source=source, target=target, layers=(1, 3), value=value, heads=heads)
            gold = gold_logits(twin(text), prompt.inputs, by_hand(graph, prompt, (1, 3), source, target, value, heads))
            error, effect = off(logits_of(graph, prompt, pattern), gold, prompt), off(gold, clean, prompt)
            if not error <= SAME or not effect > VISIBLE:
                wrong.append((pattern, batched, error, effect))
    assert not wrong


def test_a_softmax_by_hand_and_what_the_number_means():
    """The attention itself, done by hand: with log 2 each image token weighs twice as much against what is none."""
    graph = tiny_graph()
    prompt, layer, value = asked(graph), 2, math.log(2)
    cuts = by_hand(graph, prompt, (layer,), "image", "last", value)
    logits, weights = plain_llama(twin(), prompt.inputs, cuts)
    _, clean = plain_llama(twin(), prompt.inputs)
    image = list(prompt.spans["image"])
    before, after = (each[layer][0, :, -1] for each in (clean, weights))
    share = before[:, image].sum(-1)
    assert torch.allclose(after[:, image], before[:, image] * (2 / (1 + share))[:, None], atol=1e-6)
    assert torch.allclose(after.sum(-1), torch.ones(len(after)))
    found = logits_of(graph, prompt, mmf.Bias(source="image", target="last", layers=layer, value=value))
    assert off(found, logits, prompt) <= SAME


@pytest.mark.parametrize("name", ["paligemma2", "gemma3", "qwen2_5_vl", "paligemma"])
def test_families_with_caps_windows_and_blocks(name):
    """Behind the cap where scores are squeezed, as the mask is; nothing that a window or a block says is lost."""
    graph = family(name, "eager")
    prompt = graph.batch([graph.prompt(picture(i, 80, 48), QUESTION + " red" * i) for i in range(2)])
    capped = getattr(graph.text_config, "attn_logit_softcapping", None)
    assert (capped is not None) == (name == "paligemma2")
    model, rows = graph.adapter.model, prompt.rows()
    hook = plain.closed((1, 2), lambda row, _: (list(rows[row]["last"]), list(rows[row]["image"])), (0, 1), 2.0)
    with torch.no_grad():
        handles = hook(model)
        wanted = model(**prompt.inputs, use_cache=False).logits
        for handle in handles:
            handle.remove()
        clean = model(**prompt.inputs, use_cache=False).logits
    pattern = mmf.Bias(source="image", target="last", layers=(1, 2), value=2.0, heads=(0, 1))
    size = float(clean[:, -1].abs().max())
    # transformers' sdpa leaves the cap out, so that there the model is another
    for attention in ("eager",) if capped or name in EAGER_ONLY else ("eager", "sdpa"):
        found = logits_of(family(name, attention), prompt, pattern)
        assert (found[:, -1] - wanted[:, -1]).abs().max() <= SAME * max(1, size)
    assert (wanted[:, -1] - clean[:, -1]).abs().max() > VISIBLE


def test_biases_add_and_a_knockout_is_the_limit_and_wins():
    graph = tiny_graph()
    prompt, edge = asked(graph), {"source": "image", "target": "last", "layers": (1, 2)}
    last = prompt.spans["last"]
    clean = logits_of(graph, prompt)[:, last.positions]
    closed = logits_of(graph, prompt, mmf.Knockout(**edge))[:, last.positions]
    below = logits_of(graph, prompt, mmf.Bias(value=-1e4, **edge))[:, last.positions]
    assert (below - closed).abs().max() <= SAME < VISIBLE < (closed - clean).abs().max()
    both = [mmf.Bias(value=1.25, **edge), mmf.Bias(value=0.5, source="image", target="last", layers=2, heads=(1, 2))]
    cuts = [Cut((1, 2), last.positions, prompt.spans["image"].positions, amount=1.25)]
    cuts += [Cut((2,), last.positions, prompt.spans["image"].positions, heads=(1, 2), amount=0.5)]
    for patterns in permutations(both):
        assert off(logits_of(graph, prompt, *patterns), gold_logits(twin(), prompt.inputs, cuts), prompt) <= SAME
    some = mmf.Knockout(source="image", target="last", layers=2)  # of layer 1 the Bias is left
    cuts = [cuts[0], Cut((2,), last.positions, prompt.spans["image"].positions)]
    for patterns in permutations((both[0], some)):
        assert off(logits_of(graph, prompt, *patterns), gold_logits(twin(), prompt.inputs, cuts), prompt) <= SAME
    for patterns in permutations((both[1], some)):
        with pytest.raises(
            NoEffectError, match=r"value=0\.5\) would change nothing: every one of its edges was closed"
        ):
            logits_of(graph, prompt, *patterns)


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_rows_are_one_trace_each(name):
    """On the row engine: several edges a row, in layers with gaps and in some heads, beside knockouts."""
    graph = family(name)
    prompt = graph.prompt(picture(0, 80, 48), QUESTION)

    def edge(kind, source, target, layers, **more):
        return kind(source=source, target=target, layers=layers, **more)

    over = {
        "boost": [edge(mmf.Bias, "image", "last", [0, 2], value=2.0)],
        "damp": [edge(mmf.Bias, "image", "question | suffix", range(1, 3), value=-1.5)],
        "heads": [edge(mmf.Bias, "image", "last", [1, 2], value=2.0, heads=[1, 0])],
        "two": [
            edge(mmf.Bias, "image", "question", [1], value=1.0, heads=[1]),
            edge(mmf.Bias, "image", "question | last", [1, 2], value=0.5),
        ],
        "beside": [
            edge(mmf.Bias, "image", "last", [1, 2], value=3.0),
            edge(mmf.Knockout, "image", "last", [2]),
            edge(mmf.Knockout, "question", "last", [1], heads=[0]),
        ],
    }
    cells = {
        (label, 0, number): tuple(edges for pattern in patterns for edges in pattern.mask_edges(graph, prompt.rows()))
        for number, (label, patterns) in enumerate(over.items())
    }
    blocks = graph.adapter.bidirectional(prompt.spans)
    for row_budget in (10, 10_000):
        plan = plan_rows(sizes_of(graph, prompt), len(prompt), cells, row_budget, blocks, graph.n_heads)
        found = run_sweep(graph, plan, prompt, min(chunk.start for chunk in plan.chunks), 1, None)
        base, token = found["numbers"][0]
        for (number, _), (label, patterns) in zip(found["cells"], over.items(), strict=True):
            wanted = float(logits_of(graph, prompt, *patterns)[0, -1].double().log_softmax(-1)[int(token)])
            assert abs(number - wanted) <= SAME, label
            assert abs(base - wanted) > 1e-4, label
    idle = {
        ("idle", 0, 0): (
            *cells["boost", 0, 0],
            *edge(mmf.Knockout, "image", "last", range(3)).mask_edges(graph, prompt.rows()),
        )
    }
    plan = plan_rows(sizes_of(graph, prompt), len(prompt), idle, 100, blocks, graph.n_heads)
    with pytest.raises(NoEffectError, match="'idle' would change nothing in layers 0 to 2: .*another pattern"):
        run_sweep(graph, plan, prompt, plan.chunks[0].start, 1, None)


def test_mask_edges_say_what_a_pattern_does_without_running(monkeypatch):
    graph = tiny_graph()
    batch = asked(graph, batched=True)
    monkeypatch.setattr(graph.adapter.model, "forward", None)
    pattern = mmf.Bias(source="image", target="last", layers=[-1, 1], value=2, heads=[1])
    (found,) = pattern.mask_edges(graph, batch.rows())
    edges = tuple((spans["last"].positions, spans["image"].positions) for spans in batch.rows())
    assert found == MaskEdges((1, 4), edges, 2.0, (1,))
    closing = mmf.Knockout(source="image", target="last", layers=0).mask_edges(graph, batch.rows())
    assert (closing[0].amount, closing[0].heads, closing[0].layers) == (-math.inf, None, (0,))
    assert mmf.Knockout(source="image", target="last", layers=0, when="all").mask_edges(graph, batch.rows()) is None
    assert mmf.Skip(layers=1).mask_edges(graph, batch.rows()) is None


EDGE = {"source": "image", "target": "last", "layers": 1}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_value_that_is_not_finite(value):
    """What is no number at all: tests/kit/wrong_arguments.py."""
    with pytest.raises(MMFlowError, match=r"a finite number of nats\. Knockout closes|a finite number is expected"):
        mmf.Bias(value=value, **EDGE)


def test_what_changes_nothing_or_cannot_be_is_refused_before_any_forward(monkeypatch):
    graph = tiny_graph()
    prompt, wrong = asked(graph), []
    half = mmf.adapt(tiny_model().to(torch.float16), tiny_processor())
    for one in (graph, half):
        monkeypatch.setattr(one.adapter.model, "forward", None)
    for given, kind, text, where in (
        ({"value": 0.0}, NoEffectError, "value=0.0 is 0 in torch.float32", graph),
        ({"value": 0}, NoEffectError, "would change nothing", graph),
        ({"value": 1e-9}, NoEffectError, "value=1e-09 is 0 in torch.float16", half),
        ({"value": -4e4}, MMFlowError, "which holds numbers up to 6.55e.04; .* use Knockout", half),
        ({"value": 2e38}, MMFlowError, "a Bias may go to half of that", graph),
        ({"source": "last", "target": "image"}, NoEffectError, "source and target swapped", graph),
        ({"source": "all"}, NoEffectError, "nothing to the softmax", graph),
        ({"source": "image - image"}, NoEffectError, "holds no position", graph),
        ({"layers": 9}, MMFlowError, "do not exist", graph),
        ({"heads": [4]}, MMFlowError, "there are 4 heads", graph),
        ({"when": "later"}, MMFlowError, "when must be one of", graph),
        ({"when": "all"}, MMFlowError, r"needs graph.generate\(..., Bias", graph),
    ):
        pattern = mmf.Bias(**{**EDGE, "value": 1.0, **given})
        try:
            where.trace(prompt, pattern)
            wrong.append((given, "was taken"))
        except MMFlowError as error:
            if not isinstance(error, kind) or not re.search(text, str(error)):
                wrong.append((given, str(error)))
    assert not wrong
    monkeypatch.setattr(graph.text_config, "_attn_implementation", "flash_attention_2")
    with pytest.raises(MMFlowError, match="so a bias would do nothing"):
        graph.trace(prompt, mmf.Bias(value=1.0, **EDGE))


def test_what_a_window_leaves_nothing_of_is_told_in_the_run():
    model = tiny_model("mistral")
    model.config.text_config.sliding_window = 40
    graph = mmf.adapt(model, tiny_processor())
    prompt = asked(graph)
    near = mmf.Span("near", tuple(range(30, len(prompt))), (0, len(prompt)))
    for source in ("text('USER')", near):  # out of the last position's reach; all within it
        with pytest.raises(NoEffectError, match="was closed, .* or its targets read nothing else"):
            logits_of(graph, prompt, mmf.Bias(source=source, target="last", layers=1, value=1.0))


def test_planted_a_bias_that_adds_nothing(monkeypatch):
    """As if the number were lost on its way: told in a trace, a generation, a generation apart and on a bridge."""
    real = edge_scores.change_edges
    monkeypatch.setattr(edge_scores, "change_edges", lambda *given: real(*given[:4], 0.0, *given[5:]))
    monkeypatch.setattr(mmf.Bias, "amount", 0.0)
    graph = tiny_graph()
    prompt, pattern = asked(graph), mmf.Bias(value=1.0, **EDGE)
    for run in (
        lambda: logits_of(graph, prompt, pattern),
        lambda: generated(graph, prompt, pattern),
        lambda: generated(graph.at("emulated"), prompt, pattern),
        lambda: hooked(graph, prompt, pattern),
    ):
        with pytest.raises(NoEffectError, match="nothing"):
            run()


def generated(graph, prompt, pattern):
    from nnsight_mmflow.model.forms import PLAIN

    model = graph.edited(prompt, (pattern,), PLAIN)
    with torch.no_grad(), model.trace(fn=model.generate, **graph.checked(prompt), max_new_tokens=2) as tracer:
        tracer.result.save()


def hooked(graph, prompt, pattern):
    with torch.no_grad(), graph.hooks(graph.to_transformer_lens(), prompt, pattern) as bound:
        bound()
