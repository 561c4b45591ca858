"""graph.generate with Knockout is a greedy loop without a cache, masked by hand at every step (gold.py).

Tolerance: 1e-5 on logits of size 2 to 3, as in test_knockout.py; cached and uncached steps are two more kernels, and
generate counts a padded row's positions from its first real one, which rotary positions do not see but rounding does.
"""

import pytest
import torch
from kit.gold import Cut, gold_generate, places, twin
from kit.tiny import TEXTS, picture, tiny_graph, tiny_model, tiny_processor

import nnsight_mmflow as mmf
from nnsight_mmflow import Knockout, MMFlowError, NoEffectError

SAME, VISIBLE = 1e-5, 1e-3
N_TOKENS = 5
QUESTION = "is the circle red or blue ?"
OTHERS = ("what color is the circle ?", "is there a red circle ?", "what is to the left of the blue circle ?")
BACKENDS = ("sdpa", "eager")


def generated(graph, prompt, *patterns, n_tokens=N_TOKENS):
    """(tokens (rows, n), logits (rows, n, words)) of greedy generation, the end token held off."""
    with (
        torch.no_grad(),
        graph.generate(
            prompt,
            *patterns,
            do_sample=False,
            min_new_tokens=n_tokens,
            max_new_tokens=n_tokens,
            return_dict_in_generate=True,
            output_logits=True,
        ) as tracer,
    ):
        result = tracer.result.save()
    length = prompt.inputs["input_ids"].shape[1]
    return result.sequences[:, length:], torch.stack(result.logits, 1)


def made(graph, rows):
    if rows == "one":
        return graph.prompt(picture(0), QUESTION)
    return graph.batch([graph.prompt(picture(number), question) for number, question in enumerate(OTHERS)])


def cuts_at(graph, prompt, source, target, layers, when, heads=None):
    """The cuts for a sequence of a length: the prompt's rows, the generated ones, or both."""
    length = prompt.inputs["input_ids"].shape[1]

    def cuts(now):
        found = []
        for row in range(len(prompt.inputs["input_ids"])):
            at = places(graph.processor, prompt.inputs, row)
            targets = at[target] if when in ("prefill", "all") else ()
            if when in ("decode", "all") and length - 1 in at[target]:
                targets = (*targets, *range(length, now))
            found.append(Cut(tuple(layers), targets, at[source], row, heads))
        return found

    return cuts


GOLD = {}


def gold_of(model, inputs, cuts, n_tokens):
    """The reference, run once for what both backends are held against."""
    length = inputs["input_ids"].shape[1]
    seen = str([cuts(length + step) for step in range(n_tokens)]), str(inputs["input_ids"].tolist())
    key = (model, *seen, float(inputs["pixel_values"].double().sum()) if "pixel_values" in inputs else None)
    if key not in GOLD:
        GOLD[key] = gold_generate(model, inputs, cuts, n_tokens)
    return GOLD[key]


def check(graph, model, prompt, patterns, cuts, n_tokens=N_TOKENS):
    """Ours are gold's tokens and logits; returns how far from the clean ones each step's logits are, by row."""
    tokens, logits = generated(graph, prompt, *patterns, n_tokens=n_tokens)
    gold_tokens, gold = gold_of(model, prompt.inputs, cuts, n_tokens)
    end = model.config.text_config.eos_token_id
    assert not (gold_tokens == end).any(), "the reference does not hold the end token off: take another picture"
    assert tokens.equal(gold_tokens)
    assert (logits - gold).abs().max() <= SAME
    _, clean = gold_of(model, prompt.inputs, lambda now: (), n_tokens)
    return (logits - clean).abs().amax(-1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", ["one", "mixed"])
@pytest.mark.parametrize("text", TEXTS)
def test_clean_generation_is_gold(backend, rows, text):
    graph = tiny_graph(text, attention=backend)
    assert (check(graph, twin(text), made(graph, rows), (), lambda now: ()) <= SAME).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", ["one", "mixed"])
@pytest.mark.parametrize(
    ("source", "target"), [("image", "question"), ("image", "last"), ("question", "last"), ("last", "last")]
)
@pytest.mark.parametrize("heads", [None, (0, 3)])
def test_prefill_only(backend, rows, source, target, heads):
    graph = tiny_graph(attention=backend)
    prompt = made(graph, rows)
    pattern = Knockout(source=source, target=target, layers=(1, 2), heads=heads)
    changed = check(graph, twin(), prompt, [pattern], cuts_at(graph, prompt, source, target, (1, 2), "prefill", heads))
    assert (changed[:, 0] > VISIBLE).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", ["one", "mixed"])
@pytest.mark.parametrize("when", ["all", "decode"])
@pytest.mark.parametrize("heads", [None, (1,)])
@pytest.mark.parametrize("source", ["image", "question"])
def test_every_step(backend, rows, when, heads, source):
    graph = tiny_graph(attention=backend)
    prompt = made(graph, rows)
    pattern = Knockout(source=source, target="last", layers=range(5), heads=heads, when=when)
    changed = check(graph, twin(), prompt, [pattern], cuts_at(graph, prompt, source, "last", range(5), when, heads))
    assert (changed[:, 1:] > VISIBLE).all()
    if when == "decode":
        assert (changed[:, 0] <= SAME).all(), "the prompt's forward is clean"
    else:
        assert (changed[:, 0] > VISIBLE).all()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("rows", ["one", "mixed"])
def test_every_step_of_every_text_model(text, rows):
    graph = tiny_graph(text)
    prompt = made(graph, rows)
    pattern = Knockout(source="image", target="last", layers=(0, 3), when="all")
    cuts = cuts_at(graph, prompt, "image", "last", (0, 3), "all")
    assert (check(graph, twin(text), prompt, [pattern], cuts) > VISIBLE).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_prefill_and_every_step_are_three_different_things(backend):
    graph = tiny_graph(attention=backend)
    prompt = made(graph, "one")
    logits = {}
    for when in ("prefill", "decode", "all"):
        _, logits[when] = generated(graph, prompt, Knockout(source="image", target="last", layers=range(5), when=when))
    for one, other in (("prefill", "decode"), ("prefill", "all"), ("decode", "all")):
        assert (logits[one] - logits[other]).abs().max() > VISIBLE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", ["one", "mixed"])
def test_several_patterns_at_several_steps(backend, rows):
    graph = tiny_graph(attention=backend)
    prompt = made(graph, rows)
    asked = [
        ("image", "question", (1, 2), "prefill", None),
        ("image", "last", (2, 3), "all", None),
        ("question", "last", (2,), "decode", (0, 1)),
    ]
    patterns = [Knockout(source=s, target=t, layers=at, when=when, heads=heads) for s, t, at, when, heads in asked]
    parts = [cuts_at(graph, prompt, s, t, at, when, heads) for s, t, at, when, heads in asked]
    changed = check(graph, twin(), prompt, patterns, lambda now: [cut for part in parts for cut in part(now)])
    assert (changed > VISIBLE).all()
    for left_out in range(3):
        fewer = patterns[:left_out] + patterns[left_out + 1 :]
        _, without = generated(graph, prompt, *fewer)
        assert (without - generated(graph, prompt, *patterns)[1]).abs().max() > VISIBLE, "each of them must count"


def test_the_image_hidden_at_every_step_is_hidden(graph):
    # All layers, all positions after the image, every step: the pixels cannot matter, to the last bit.
    pattern = Knockout(source="image", target="~image", layers=range(5), when="all")
    one, other = (graph.prompt(picture(seed), QUESTION) for seed in (10, 20))
    (tokens, logits), (other_tokens, other_logits) = (generated(graph, prompt, pattern) for prompt in (one, other))
    assert tokens.equal(other_tokens)
    assert logits.equal(other_logits)
    clean = [generated(graph, prompt)[1] for prompt in (one, other)]
    assert (clean[0] - clean[1]).abs().max() > 0.01


# Early stops: the warnings of nnsight about steps that never came are errors here (pyproject.toml).


def stops(tokens, end):
    """How many tokens each row has until it says `end`, that one counted."""
    rows = tokens.tolist()
    return [row.index(end) + 1 if end in row else len(row) for row in rows]


def ending_at(end, backend="sdpa"):
    """A graph of its own, Qwen2 (it repeats itself least), that ends where it says that token."""
    graph = mmf.adapt(tiny_model("qwen2", attention=backend), tiny_processor())
    graph.adapter.model.generation_config.eos_token_id = end
    return graph


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("when", ["prefill", "all", "decode"])
def test_early_stop_warns_of_nothing(backend, when):
    prompt = made(tiny_graph("qwen2"), "one")
    cuts = cuts_at(tiny_graph("qwen2"), prompt, "image", "last", range(5), when)
    gold, _ = gold_generate(twin("qwen2"), prompt.inputs, cuts, 8)
    end = next(token for token in gold[0].tolist() if token != gold[0, 0])
    (stop,) = stops(gold, end)
    assert 2 <= stop < 8
    pattern = Knockout(source="image", target="last", layers=range(5), when=when)
    graph = ending_at(end, backend)
    with torch.no_grad(), graph.generate(prompt, pattern, do_sample=False, max_new_tokens=8) as tracer:
        ids = tracer.result.save()
    assert ids[:, len(prompt) :].equal(gold[:, :stop])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("when", ["prefill", "all", "decode"])
def test_rows_that_stop_at_different_steps(backend, when):
    batch = made(tiny_graph("qwen2"), "mixed")
    cuts = cuts_at(tiny_graph("qwen2"), batch, "image", "last", range(5), when)
    gold, _ = gold_generate(twin("qwen2"), batch.inputs, cuts, 8)
    end = next(token for token in gold.flatten().tolist() if len({*stops(gold, token)}) > 1)
    pattern = Knockout(source="image", target="last", layers=range(5), when=when)
    graph = ending_at(end, backend)
    with torch.no_grad(), graph.generate(batch, pattern, do_sample=False, max_new_tokens=8) as tracer:
        ids = tracer.result.save()
    ours = ids[:, batch.inputs["input_ids"].shape[1] :]
    assert ours.shape[1] == max(stops(gold, end))
    for row, stop in enumerate(stops(gold, end)):
        assert ours[row, :stop].equal(gold[row, :stop])


@pytest.mark.parametrize("when", ["all", "decode"])
def test_two_patterns_and_an_early_stop(when):
    prompt = made(tiny_graph("qwen2"), "one")
    asked = (("image", (0, 1, 2)), ("question", (1, 2, 3)))
    parts = [cuts_at(tiny_graph("qwen2"), prompt, source, "last", layers, when) for source, layers in asked]
    gold, _ = gold_generate(twin("qwen2"), prompt.inputs, lambda now: [c for part in parts for c in part(now)], 8)
    end = next(token for token in gold[0].tolist() if token != gold[0, 0])
    (stop,) = stops(gold, end)
    patterns = [Knockout(source=source, target="last", layers=layers, when=when) for source, layers in asked]
    graph = ending_at(end)
    with torch.no_grad(), graph.generate(prompt, *patterns, do_sample=False, max_new_tokens=8) as tracer:
        ids = tracer.result.save()
    assert ids[:, len(prompt) :].equal(gold[:, :stop])


def test_decode_that_never_comes_is_refused():
    prompt = made(tiny_graph("qwen2"), "one")
    first, _ = generated(tiny_graph("qwen2"), prompt, n_tokens=1)
    graph = ending_at(int(first))
    pattern = Knockout(source="image", target="last", layers=range(5), when="decode")
    with (
        pytest.raises(NoEffectError),
        torch.no_grad(),
        graph.generate(prompt, pattern, do_sample=False, max_new_tokens=6) as tracer,
    ):
        tracer.result.save()


def test_decode_of_a_single_token_is_refused(graph, prompt):
    pattern = Knockout(source="image", target="last", layers=range(5), when="decode")
    with (
        pytest.raises(NoEffectError),
        torch.no_grad(),
        graph.generate(prompt, pattern, do_sample=False, max_new_tokens=1) as tracer,
    ):
        tracer.result.save()


# Errors and no-ops.


@pytest.mark.parametrize("when", ["decode", "all"])
def test_target_that_no_step_stands_for_is_refused(graph, prompt, when):
    # "question" does not hold the last position, so no decode step is a target.
    pattern = Knockout(source="image", target="question", layers=(1, 2), when=when)
    with (
        pytest.raises(NoEffectError),
        torch.no_grad(),
        graph.generate(prompt, pattern, do_sample=False, min_new_tokens=3, max_new_tokens=3) as tracer,
    ):
        tracer.result.save()


@pytest.mark.parametrize("when", ["prefill", "decode", "all"])
def test_swapped_edge_is_refused_before_it_runs(graph, prompt, when):
    with pytest.raises(NoEffectError, match="swapped"):
        graph.generate(prompt, Knockout(source="question", target="image", layers=1, when=when), max_new_tokens=3)


@pytest.mark.parametrize("when", ["prefill", "decode", "all"])
def test_row_without_the_span_is_refused(graph, when):
    batch = graph.batch([graph.prompt(picture(0), QUESTION), graph.prompt(None, QUESTION)])
    with pytest.raises(NoEffectError, match="row 1 would change nothing"):
        graph.generate(batch, Knockout(source="image", target="last", layers=1, when=when), max_new_tokens=3)


@pytest.mark.parametrize("when", ["prefill", "decode", "all"])
def test_same_pattern_twice_is_refused(graph, prompt, when):
    pattern = Knockout(source="image", target="last", layers=1, when=when)
    with (
        pytest.raises(NoEffectError),
        torch.no_grad(),
        graph.generate(prompt, pattern, pattern, do_sample=False, min_new_tokens=3, max_new_tokens=3) as tracer,
    ):
        tracer.result.save()


def test_starved_together_is_refused(graph, prompt):
    one = Knockout(source="image | question", target="last", layers=1, when="all")
    other = Knockout(source="prefix | suffix", target="last", layers=1, when="all")
    with (
        pytest.raises(MMFlowError, match="together leave"),
        torch.no_grad(),
        graph.generate(prompt, one, other, do_sample=False, min_new_tokens=3, max_new_tokens=3) as tracer,
    ):
        tracer.result.save()


@pytest.mark.parametrize("rows", ["one", "mixed"])
def test_the_whole_prompt_hidden_from_the_steps_is_gold(graph, rows):
    # The newest token still reads itself and those generated before it, so nothing starves.
    prompt = made(graph, rows)
    patterns = [
        Knockout(source=source, target="last", layers=1, when="decode") for source in ("image | question", "prefix")
    ]
    patterns.append(Knockout(source="suffix", target="last", layers=1, when="decode"))
    length = prompt.inputs["input_ids"].shape[1]

    def cuts(now):
        rows = range(len(prompt.inputs["input_ids"]))
        return [Cut((1,), tuple(range(length, now)), tuple(range(length)), row) for row in rows]

    changed = check(graph, twin(), prompt, patterns, cuts)
    assert (changed[:, 0] <= SAME).all()
    assert (changed[:, 1:] > VISIBLE).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_model_is_unchanged(backend):
    graph = tiny_graph(attention=backend)
    prompt = made(graph, "one")
    tokens, logits = generated(graph, prompt)
    configuration = graph.adapter.model.generation_config.to_dict()
    generated(graph, prompt, Knockout(source="image", target="last", layers=range(5), when="all"))
    again, logits_again = generated(graph, prompt)
    assert again.equal(tokens)
    assert logits_again.equal(logits)
    assert graph.adapter.model.generation_config.to_dict() == configuration


def test_model_is_clean_after_an_error(graph, prompt):
    tokens, logits = generated(graph, prompt)
    pattern = Knockout(source="image", target="last", layers=range(5), when="decode")
    with (
        pytest.raises(NoEffectError),
        torch.no_grad(),
        graph.generate(prompt, pattern, pattern, do_sample=False, min_new_tokens=3, max_new_tokens=3) as tracer,
    ):
        tracer.result.save()
    again, logits_again = generated(graph, prompt)
    assert again.equal(tokens)
    assert logits_again.equal(logits)
