"""The row engine against one forward per window and against masks by hand; the plan; the windows; the clean run.

Tolerance: 1e-5 on log-probabilities, as in test_knockout.py on logits: another kernel and another length of sums.
The largest difference seen in what passes is 1e-6; a wrong row is off by the effect, which is above 1e-3.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.gold import Cut, gold_logits, places, twin
from kit.sweeps import layer_inputs, swept
from kit.tiny import TEXTS, TOWERS, picture, tiny_graph, tiny_model, tiny_processor

import nnsight_mmflow as mmf
from nnsight_mmflow import MMFlowError, NoEffectError, Span, SpanError
from nnsight_mmflow.inside.plan import ROW_BUDGET, Sizes
from nnsight_mmflow.patterns.flow.edges import PAPER, WITH_BOXES, WITH_OPTIONS, default_edges, named_spans
from nnsight_mmflow.patterns.flow.reference import run_by_forwards
from nnsight_mmflow.runs.identity import prompt_identity
from nnsight_mmflow.runs.plan import make_plan, sizes_of
from nnsight_mmflow.runs.sweep import answer_of
from nnsight_mmflow.spans.windows import window_layers

SAME, VISIBLE = 1e-5, 1e-3
QUESTION = "is the circle red or blue ?"
BACKENDS = ("sdpa", "eager")
WINDOWS = (1, 3, 9)
# "head" is the first position and "body" the rest of the prefix; "patches" a box of the image (`made`).
FURTHER = ("image->image", "image->suffix", "body->question", "patches->last", "patches->image - patches")
SIZES = Sizes(n_layers=5, layer_weights=1000, width=64, unembed_weights=500, tower_flops=10**6, bytes_per_number=4)


def made(graph, question=QUESTION, seed=0, boxes=((8.0, 8.0, 40.0, 32.0),), image=True):
    """A prompt whose spans hold the edges' names, those of `FURTHER` too."""
    prompt = graph.prompt(
        picture(seed) if image else None, question, "red", options=("red", "blue"), boxes=boxes if image else ()
    )
    spans, _ = named_spans(prompt)
    prefix = spans["prefix"]
    spans = spans.having(
        head=Span("head", prefix.positions[:1], prefix.row), body=Span("body", prefix.positions[1:], prefix.row)
    )
    if image:
        spans = spans.having(patches=spans["image"].box((0.0, 0.0, 20.0, 12.0), (48.0, 40.0, 64.0, 64.0)))
    return replace(prompt, spans=spans)


def planned(graph, prompt, edges, windows=WINDOWS, row_budget=ROW_BUDGET):
    return make_plan(sizes_of(graph, prompt), prompt.spans, tuple(edges), tuple(windows), row_budget)


def both(graph, prompt, edges, windows=WINDOWS, row_budget=ROW_BUDGET):
    """(plan, clean, by rows, by forwards)"""
    plan = planned(graph, prompt, edges, windows, row_budget)
    clean = swept(graph, prompt, plan, 3)
    return plan, clean, clean.cells, by_forwards(graph, plan, prompt, clean)


FORWARDS = {}


def by_forwards(graph, plan, prompt, clean):
    """One forward per cell, run once for each prompt and its cells: into which rows they are cut changes nothing."""
    key = (graph, plan.cells, prompt_identity(prompt))
    if key not in FORWARDS:
        FORWARDS[key] = run_by_forwards(graph, plan, prompt, clean.token)
    return FORWARDS[key]


def agree(rows, forwards):
    assert rows.shape == forwards.shape
    assert (rows[:, 0] - forwards[:, 0]).abs().max() <= SAME
    assert rows[:, 1].equal(forwards[:, 1]), "the top token of each cell"


def felt(plan, clean, numbers):
    """By edge, the largest change of the answer's log-probability."""
    changes = (numbers[:, 0] - clean.base).abs()
    return {
        edge: max(float(change) for cell, change in zip(plan.cells, changes, strict=True) if cell[0] == edge)
        for edge in plan.edges
    }


def gold_numbers(graph, model, prompt, plan, clean, cells):
    """The same numbers from masks made by hand."""
    found = []
    for edge, size, centre in cells:
        source, target = edge.split("->")
        at = {**places(graph.processor, prompt.inputs), **{n: prompt.spans[n].positions for n in (source, target)}}
        low, high = centre - size // 2, centre + (size - 1) // 2  # odd sizes: (size - 1) / 2 on each side
        layers = tuple(layer for layer in range(graph.n_layers) if low <= layer <= high)
        logits = gold_logits(model, prompt.inputs, [Cut(layers, at[target], at[source])])[0, -1].double()
        found.append([logits.log_softmax(-1)[int(clean.token)].item(), logits.argmax().item()])
    return torch.tensor(found, dtype=torch.float64)


# Rows are forwards are gold.


# Each text model on each tower, and either of them under either attention.
PAIRWISE = [(BACKENDS[(i + j) % 2], text, tower) for i, text in enumerate(TEXTS) for j, tower in enumerate(TOWERS)]


@pytest.mark.parametrize(("backend", "text", "tower"), [*PAIRWISE, ("eager", "llama", "clip")])
def test_default_edges(backend, text, tower):
    graph = tiny_graph(text, tower, attention=backend)
    prompt = made(graph)
    edges = default_edges([prompt])
    assert edges == PAPER + WITH_BOXES + WITH_OPTIONS
    windows = WINDOWS if (text, tower) == ("llama", "clip") else (3,)
    plan, clean, rows, forwards = both(graph, prompt, edges, windows)
    agree(rows, forwards)
    assert min(felt(plan, clean, rows).values()) > VISIBLE, "every edge must be felt somewhere"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("text", ["llama", "phi"])
@pytest.mark.parametrize("edge", FURTHER)
def test_further_edges(backend, text, edge):
    graph = tiny_graph(text, attention=backend)
    plan, clean, rows, forwards = both(graph, made(graph), [edge], (1, 3))
    agree(rows, forwards)
    assert felt(plan, clean, rows)[edge] > VISIBLE


@pytest.mark.parametrize("row_budget", [1, 77, 160, 200, 10_000])
def test_chunks_of_any_size(graph, row_budget):
    prompt, edges = made(graph), (*PAPER, "image->image", "patches->question")
    plan, _, rows, forwards = both(graph, prompt, edges, (1, 3), row_budget)
    agree(rows, forwards)
    starts = {chunk.start for chunk in plan.chunks}
    assert starts == {3, 68, 76}, "tails of 74, 9 and 1 positions"
    whole = 1 + 2 * (row_budget >= 10_000)  # with a large budget a tail is one chunk
    assert (len(plan.chunks) == 3) == (whole == 3)
    for chunk in plan.chunks:
        assert len(chunk.windows) == 1 or len(chunk.windows) * chunk.tail <= row_budget


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("text", TEXTS)
def test_rows_are_gold(backend, text):
    graph = tiny_graph(text, attention=backend)
    prompt = made(graph, seed=1)
    edges = ("image->question", "question->last", "last->last", "image->suffix")
    plan, clean, rows, forwards = both(graph, prompt, edges, (1, 3))
    sample = [number for number, cell in enumerate(plan.cells) if cell[2] in (0, 2, 4)]
    gold = gold_numbers(graph, twin(text), prompt, plan, clean, [plan.cells[number] for number in sample])
    agree(rows[sample], gold)
    agree(forwards[sample], gold)


@pytest.mark.parametrize("edge", [*FURTHER, "object->question", "other->question", "true_option->last"])
def test_further_rows_are_gold(graph, edge):
    prompt = made(graph, seed=2)
    plan, clean, rows, _ = both(graph, prompt, [edge], (3,))
    agree(rows, gold_numbers(graph, twin(), prompt, plan, clean, plan.cells))


def test_prompts_of_text_alone(graph):
    prompt = made(graph, image=False)
    plan, clean, rows, forwards = both(graph, prompt, ("question->last", "body->question", "last->last"), (1, 3))
    agree(rows, forwards)
    assert plan.sizes.tower_flops == 0
    assert min(felt(plan, clean, rows).values()) > VISIBLE


def test_two_images(graph):
    prompt = graph.prompt([picture(0), picture(1)], QUESTION)
    edges = ("image[0]->image[1]", "image[1]->question", "image->last")
    plan, clean, rows, forwards = both(graph, prompt, edges, (1,), 400)
    agree(rows, forwards)
    assert min(felt(plan, clean, rows).values()) > VISIBLE


@pytest.mark.parametrize("n_layers", [1, 2, 8])
def test_models_of_other_depths(n_layers):
    graph = tiny_graph(n_layers=n_layers)
    prompt = made(graph)
    plan, clean, rows, forwards = both(graph, prompt, ("image->last", "image->question"), (1, 2, 4))
    agree(rows, forwards)
    cells = [cell for cell in plan.cells if cell[1] == 1]
    chosen = [plan.cells.index(cell) for cell in cells]
    agree(rows[chosen], gold_numbers(graph, twin(n_layers=n_layers), prompt, plan, clean, cells))


def test_item_4_image_to_question_in_the_last_layer_is_the_clean_run(eager_graph):
    plan, clean, rows, _ = both(eager_graph, made(eager_graph), ("image->question",), (1,))
    last = plan.cells.index(("image->question", 1, 4))
    # Row and clean run sum in another order (shared prefix, longer keys); the knockout itself adds exactly nothing.
    assert abs(rows[last, 0] - clean.base) <= SAME
    assert rows[last, 1] == clean.token


def sliding_graph(width):
    model = tiny_model("mistral")
    model.config.text_config.sliding_window = width
    return mmf.adapt(model, tiny_processor())


@pytest.mark.parametrize("width", [85, 120, 4096])
def test_sliding_window_that_holds_the_prompt(width):
    # 77 positions and 3 generated ones fit, so the window closes nothing: rows must work though together they are more.
    graph = sliding_graph(width)
    _, _, rows, forwards = both(graph, made(graph), ("image->question", "question->last", "image->last"), (1, 3), 200)
    agree(rows, forwards)


@pytest.mark.parametrize("width", [70, 40])
def test_a_sliding_window_shorter_than_the_prompt_is_what_rows_see(width):
    # Far keys are closed by the window in every row as well: the masks are those of the clean run.
    graph = sliding_graph(width)
    prompt = made(graph)
    _, _, rows, forwards = both(graph, prompt, ("question->last", "image->question"), (1, 3))
    agree(rows, forwards)


def test_a_row_that_the_sliding_window_has_closed_already_is_refused():
    graph = sliding_graph(40)
    prompt = made(graph)
    plan = planned(graph, prompt, ("text('USER')->last",), (1,))
    with pytest.raises(NoEffectError, match="in layer 0: a sliding window has closed all of it already"):
        swept(graph, prompt, plan)


# Half precision: what rows and forwards differ by is rounding, not an error.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    graph = mmf.adapt(tiny_model().to(dtype), tiny_processor())
    prompt = made(graph)
    _, _, rows, forwards = both(graph, prompt, PAPER, (3,))
    assert rows.isfinite().all()
    # Three (bfloat16) or four (float16) decimal digits through 8 layers; effects here reach 1.
    assert (rows[:, 0] - forwards[:, 0]).abs().max() <= (0.02 if dtype == torch.float16 else 0.15)
    assert (rows[:, 0] - rows[0, 0]).abs().max() > 0.2


# The cache.


def test_repeated_the_bits_are_the_same(graph):
    prompt = made(graph)
    plan = planned(graph, prompt, (*PAPER, "image->image"))
    first, again = swept(graph, prompt, plan, 3), swept(graph, prompt, plan, 3)
    assert again.base == first.base
    assert again.cells.equal(first.cells)


def test_sweeps_of_two_prompts_do_not_mix(graph):
    prompts = [made(graph, seed=seed) for seed in (0, 1)]
    plans = [planned(graph, prompt, PAPER, (3,)) for prompt in prompts]
    alone = [swept(graph, prompt, plan).cells for prompt, plan in zip(prompts, plans, strict=True)]
    for prompt, plan, numbers in list(zip(prompts, plans, alone, strict=True))[::-1]:
        assert swept(graph, prompt, plan).cells.equal(numbers)
    assert not alone[0].equal(alone[1])


@pytest.mark.parametrize("max_new_tokens", [1, 2, 8])
def test_length_of_the_answer_does_not_matter_to_the_sweep(graph, max_new_tokens):
    prompt = made(graph)
    plan = planned(graph, prompt, PAPER, (3,))
    clean = swept(graph, prompt, plan, max_new_tokens)
    agree(clean.cells, run_by_forwards(graph, plan, prompt, clean.token))


@pytest.mark.parametrize("backend", BACKENDS)
def test_model_is_unchanged_by_a_sweep(backend):
    graph = tiny_graph(attention=backend)
    prompt = made(graph)
    with torch.no_grad():
        before = graph.adapter.model(**prompt.inputs).logits
    both(graph, prompt, PAPER, (3,))
    with torch.no_grad():
        assert graph.adapter.model(**prompt.inputs).logits.equal(before)


# The clean run.


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("max_new_tokens", [1, 6])
@pytest.mark.parametrize("start", [0, 5, 76])
def test_clean_run_is_greedy_generation(text, max_new_tokens, start):
    graph = tiny_graph(text)
    prompt = made(graph, seed=1)
    clean = swept(graph, prompt, max_new_tokens=max_new_tokens)
    with torch.no_grad():
        ids = graph.adapter.model.generate(**prompt.inputs, do_sample=False, max_new_tokens=max_new_tokens)
        model = graph.adapter.model(**prompt.inputs, output_hidden_states=True)
    answer = ids[0, len(prompt) :].tolist()
    assert graph.text_config.eos_token_id not in answer
    assert clean.tokens == answer
    told = answer_of(graph, prompt, max_new_tokens)
    assert told.text == graph.processor.tokenizer.decode(answer, skip_special_tokens=True).strip()
    assert (told.base, told.token) == (clean.base, answer[0])
    logits = model.logits[0, -1].double()
    assert abs(clean.base - logits.log_softmax(-1).max()) <= SAME
    assert int(clean.token) == answer[0]
    inputs = layer_inputs(graph, prompt, start)
    assert len(inputs) == 5
    for ours, theirs in zip(inputs, model.hidden_states, strict=False):
        assert (ours.hidden - theirs[:, start:]).abs().max() <= SAME


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("several", [False, True])
def test_clean_run_stops_where_generation_stops(stop, several):
    graph = mmf.adapt(tiny_model("qwen2"), tiny_processor())
    prompt = made(graph, seed=1)  # answers 15 122 127 127 ...: three different tokens
    full = swept(graph, prompt, max_new_tokens=6).tokens
    assert len({*full[:3]}) == 3
    end = full[stop - 1]
    graph.adapter.model.generation_config.eos_token_id = [2, end] if several else end
    clean = swept(graph, prompt, max_new_tokens=6)
    with torch.no_grad():
        ids = graph.adapter.model.generate(**prompt.inputs, do_sample=False, max_new_tokens=6)
    answer = ids[0, len(prompt) :].tolist()
    assert answer == full[:stop]
    assert clean.tokens == (answer[:-1] or answer), "without the end token, unless there is nothing else"
    assert answer_of(graph, prompt, 6).text == graph.processor.tokenizer.decode(clean.tokens).strip()


# Windows.


def test_item_1_windows():
    spans = {
        (40, 9, 0): (0, 4),
        (40, 9, 4): (0, 8),
        (40, 9, 5): (1, 9),
        (40, 9, 39): (35, 39),
        (32, 7, 3): (0, 6),
        (32, 7, 31): (28, 31),
        (32, 2, 5): (4, 5),
        (32, 4, 5): (3, 6),
    }
    for (n_layers, size, centre), (first, last) in spans.items():
        assert list(window_layers(centre, size, n_layers)) == list(range(first, last + 1))
    assert [list(window_layers(layer, 1, 32)) for layer in range(32)] == [[layer] for layer in range(32)]


@settings(deadline=None)  # a busy machine is no error
@given(st.integers(1, 80), st.integers(1, 100), st.data())
def test_window_is_the_formula(n_layers, size, data):
    centre = data.draw(st.integers(0, n_layers - 1))
    layers = window_layers(centre, size, n_layers)
    assert centre in layers
    # from the specification, section 2: max(0, l - floor(k/2)) ... min(L, l + ceil(k/2)) - 1
    assert layers == range(max(0, centre - size // 2), min(n_layers, centre - (-size // 2)))
    assert len(layers) <= size
    if centre >= size and centre + size < n_layers:
        assert len(layers) == size


@pytest.mark.parametrize(("centre", "size"), [(5, 3), (-1, 3), (2, 0), (2, -1)])
def test_windows_that_are_none(centre, size):
    with pytest.raises(MMFlowError):
        window_layers(centre, size, 5)


# The plan.


@pytest.mark.parametrize("row_budget", [1, 100, 700, 10_000])
@pytest.mark.parametrize("windows", [(1,), (3, 1), WINDOWS, (2, 4, 5, 100)])
def test_every_cell_has_its_row(graph, row_budget, windows):
    spans = made(graph).spans
    edges = (*PAPER, *WITH_BOXES, *WITH_OPTIONS, *FURTHER)
    plan = make_plan(SIZES, spans, edges, windows, row_budget)
    assert plan.cells == tuple((edge, size, centre) for edge in edges for size in windows for centre in range(5))
    assert len(plan.row_of) == len(plan.cells)
    for (edge, size, centre), (chunk_number, row) in zip(plan.cells, plan.row_of, strict=True):
        chunk = plan.chunks[chunk_number]
        layers = window_layers(centre, size, 5)
        assert chunk.windows[row] == (layers.start, layers.stop)
        ((which, closed),) = chunk.changes[row]
        source, target = edge.split("->")
        assert closed == tuple(layers)
        assert (chunk.edges[which].amount, chunk.edges[which].heads) == (-math.inf, None)
        assert chunk.edges[which].sources == spans[source].positions
        assert tuple(chunk.start + place for place in chunk.edges[which].targets) == spans[target].positions
        assert chunk.start == spans[target].positions[0], "the tail starts at the first target"
        assert chunk.start + chunk.tail == plan.length == len(spans["all"])
    assert {*plan.row_of} == {(c, r) for c, chunk in enumerate(plan.chunks) for r in range(len(chunk.windows))}


def test_rows_are_shared_between_window_sizes(graph):
    spans = made(graph).spans
    apart = sum(make_plan(SIZES, spans, ("image->last",), (size,)).n_rows for size in (3, 5, 9))
    plan = make_plan(SIZES, spans, ("image->last",), (3, 5, 9))
    layers = {(w.start, w.stop) for size in (3, 5, 9) for w in (window_layers(at, size, 5) for at in range(5))}
    assert plan.n_rows == len(layers) < apart
    assert len(plan.cells) == 15
    # A window of 9 in a model of 5 layers is all layers wherever it stands: one row for five cells.
    assert make_plan(SIZES, spans, ("image->last",), (9,)).n_rows == 1
    assert make_plan(SIZES, spans, ("image->last",), (1, 1)).n_rows == 5


def test_rows_join_in_order(graph):
    for row_budget in (1, 200, 10_000):
        plan = make_plan(SIZES, made(graph).spans, (*PAPER, *FURTHER), WINDOWS, row_budget)
        for chunk in plan.chunks:
            firsts = [first for first, _ in chunk.windows]
            assert firsts == sorted(firsts)
            joined = [chunk.joined(layer) for layer in range(5)]
            assert joined == sorted(joined)
            assert joined[0] >= 1
            assert joined[-1] == len(chunk.windows)
            for layer in range(5):
                assert joined[layer] == max(1, sum(first <= layer for first in firsts))
        assert [chunk.start for chunk in plan.chunks] == sorted(chunk.start for chunk in plan.chunks)


@pytest.mark.parametrize("image", [True, False])
def test_cost(graph, image):
    prompt = made(graph, image=image)
    plan = planned(graph, prompt, ("question->last",), WINDOWS)
    assert plan.forward_flops > 0
    assert plan.bytes > 0
    assert plan.naive_flops == plan.forward_flops * (plan.n_rows + 1)
    assert plan.forward_flops < plan.row_flops < plan.naive_flops
    assert (plan.sizes.tower_flops > 0) is image
    assert f"{len(plan.cells)} numbers from {plan.n_rows} rows" in repr(plan)
    more = planned(graph, prompt, ("question->last", "last->last"), WINDOWS)
    assert more.row_flops > plan.row_flops
    assert more.n_rows == 2 * plan.n_rows


def test_cost_of_a_forward_by_hand():
    spans = made(tiny_graph()).spans
    plan = make_plan(SIZES, spans, ("image->last",), (1,))
    length = 77
    # 5 layers of 2 a weight and position, 4 a width, query and key; the unembedding of one position; the tower.
    assert plan.forward_flops == 5 * (2 * 1000 * length + 4 * 64 * length * length) + 2 * 500 + 10**6
    # One row more in each layer (the first row is there from the start), each of one position at most 5 keys wider.
    rows = sum(2 * 1000 * joined + 4 * 64 * joined * (76 + joined) for joined in (1, 2, 3, 4, 5))
    assert plan.row_flops == plan.forward_flops + rows + 2 * 500 * 5


def test_sizes_are_the_models(graph):
    sizes, model = sizes_of(graph, made(graph)), graph.adapter.model
    layer = model.model.language_model.layers[2]
    assert sizes.n_layers == 5
    assert sizes.layer_weights == sum(weight.numel() for weight in layer.parameters())
    assert sizes.width == 64
    assert sizes.unembed_weights == model.lm_head.weight.numel()
    assert sizes.bytes_per_number == 4
    seeing = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
    assert sizes.tower_flops == 2 * 64 * sum(weight.numel() for weight in seeing)  # 64 patches


@pytest.mark.parametrize(
    "edge", ["question->image", "last->question", "suffix->image", "image & question->last", "image->last - last"]
)
def test_edges_that_would_change_nothing(graph, edge):
    with pytest.raises(NoEffectError, match="would change nothing"):
        planned(graph, made(graph), [edge])


def test_text_only_prompt_has_no_image_edge(graph):
    with pytest.raises(NoEffectError, match="holds no position"):
        planned(graph, made(graph, image=False), ["image->last"])


@pytest.mark.parametrize("edge", ["all->last", "prefix->prefix", "head->head | last"])
def test_edges_that_starve(graph, edge):
    with pytest.raises(MMFlowError, match="nothing to read") as caught:
        planned(graph, made(graph), [edge])
    assert not isinstance(caught.value, NoEffectError)


@pytest.mark.parametrize("edge", ["image", "image=>last", "", "image-last"])
def test_edges_without_an_arrow(graph, edge):
    with pytest.raises(MMFlowError, match='"source->target"'):
        planned(graph, made(graph), [edge])


def test_edges_of_unknown_spans(graph):
    with pytest.raises(SpanError, match="There are: prefix, image"):
        planned(graph, made(graph), ["picture->last"])
