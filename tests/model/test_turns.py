"""Two threads on one model: they wait for one another, and get what each would get alone."""

import threading

import pytest
import torch

import nnsight_mmflow as mmf
from nnsight_mmflow.remote import turns as _turns
from nnsight_mmflow.remote.turns import turn_of
from nnsight_mmflow.runs import experiment as _experiment

QUIET = {"progress": False, "report": lambda text: None}
BLOCKED = mmf.Knockout(source="image", target="last", layers=range(10))


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


def logits(graph, prompt, *patterns):
    with torch.no_grad(), graph.trace(prompt, *patterns):
        found = graph.unembed.output[0, -1].save()
    return found


def generated(graph, prompt, *patterns):
    with graph.generate(prompt, *patterns, max_new_tokens=2, do_sample=False) as tracer:
        ids = tracer.result.save()
    return ids


def at_once(work, threads=2):
    """What each thread got, and the errors."""
    found, errors = {}, []

    def run(number):
        try:
            found[number] = work(number)
        except BaseException as error:
            errors.append(error)

    started = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(threads)]
    for one in started:
        one.start()
    for one in started:
        one.join(60)
    assert not any(one.is_alive() for one in started), "they wait for one another for ever"
    return found, errors


def test_traces_and_generations_of_two_threads_are_those_of_one(nano):
    prompts = mmf.nano.prompts(nano, 4)
    ways = [(logits, ()), (logits, (BLOCKED,)), (generated, ()), (generated, (mmf.FastV(k=4),))]
    alone = [[way(nano, prompt, *patterns) for prompt in prompts] for way, patterns in ways]

    def work(number):
        turns = range(len(ways)) if number else reversed(range(len(ways)))
        return {turn: [ways[turn][0](nano, prompt, *ways[turn][1]) for prompt in prompts] for turn in turns}

    found, errors = at_once(work)
    assert not errors
    for number in found:
        for turn, expected in enumerate(alone):
            assert all(torch.equal(a, b) for a, b in zip(found[number][turn], expected, strict=True))


def test_without_turns_they_fail(nano, monkeypatch):
    """If this passes one day, nnsight can do it by itself, and `_turns` can go."""
    prompts = mmf.nano.prompts(nano, 4)
    monkeypatch.setattr(_turns, "in_turn", lambda graph, make: make())
    fresh = mmf.load("nano")
    _, errors = at_once(lambda number: [logits(fresh, prompt, BLOCKED) for _ in range(30) for prompt in prompts])
    assert errors


def test_experiments_of_two_threads_are_those_of_one(nano):
    prompts = mmf.nano.prompts(nano, 2)
    asked = {"edges": ["image->last"], "window": 3, "only_correct": False, **QUIET}
    runs = [
        lambda: mmf.flow(nano, prompts, **asked).to_frame(),
        lambda: mmf.lens(nano, prompts, only_correct=False, progress=False).to_frame(),
        lambda: mmf.contributions(nano, prompts, progress=False).to_frame(),
    ]
    alone = [run() for run in runs]
    found, errors = at_once(lambda number: runs[number](), len(runs))
    assert not errors
    assert all(found[number].equals(alone[number]) for number in range(len(runs)))


def test_two_graphs_of_one_model_have_one_turn_and_other_models_their_own(nano):
    again = mmf.adapt(nano.model, nano.processor)
    assert turn_of(again.model) is turn_of(nano.model)
    assert turn_of(mmf.load("nano").model) is not turn_of(nano.model)
    assert turn_of(nano.model, True) is not turn_of(nano.model)


def test_a_thread_may_trace_inside_its_own_experiment(nano):
    prompts = mmf.nano.prompts(nano, 2)
    told = []
    mmf.prune_report(
        nano,
        prompts,
        [mmf.FastV(k=4)],
        controls=0,
        timed=0,
        judge=lambda prompt, written: told.append(logits(nano, prompt)) or 1.0,
        **QUIET,
    )
    assert len(told) == 4


def test_an_error_gives_the_turn_back(nano):
    prompt = mmf.nano.prompts(nano, 1)[0]
    with pytest.raises(mmf.MMFlowError):
        mmf.flow(nano, prompt, ["question->image"], **QUIET)
    with pytest.raises(ValueError, match="mine"), nano.trace(prompt):
        raise ValueError("mine")
    found, errors = at_once(lambda number: logits(nano, prompt), 1)
    assert not errors
    assert len(found) == 1


def test_a_graph_with_its_turn_travels(nano):
    import pickle

    assert "turn" not in nano.__getstate__()
    assert _experiment.turn_of is turn_of
    assert pickle.dumps(mmf.Knockout(source="image", target="last", layers=2))
