"""Editing: the closed form, the optimisation against whole forwards, weights that stay as they are, errors."""

import numpy as np
import pytest
import torch
from kit.families import EAGER_ONLY, FAMILIES, family
from kit.tiny import picture, tiny_graph

import nnsight_mmflow as mmf
from nnsight_mmflow.patterns.edit.fine_tune import fine_tune
from nnsight_mmflow.patterns.edit.update import solve
from nnsight_mmflow.patterns.edit.value import PAPER, RELEASED, find_changes, read_keys
from nnsight_mmflow.runs.answers import answer_scores, with_target

QUESTION = "what color is the circle ?"
QUIET = {"progress": False, "report": str}
SHORT = mmf.EditSettings(steps=5, stop_at=None)


def fact_of(graph, seed=0, target="red", **more):
    return mmf.Fact(prompt=graph.prompt(picture(seed, 96, 64), QUESTION), target=target, at="text('circle')", **more)


def graph_of(name):
    return family(name, "eager" if name in EAGER_ONLY else "sdpa")


# The closed form: spec, checklist A 8.


@pytest.mark.parametrize("facts", [1, 3])
def test_the_update_is_the_papers_equation(facts):
    random = torch.Generator().manual_seed(0)
    old = torch.randn(7, 12, dtype=torch.float64, generator=random)
    keys = torch.randn(facts, 12, dtype=torch.float64, generator=random)
    wanted = torch.randn(facts, 7, dtype=torch.float64, generator=random)
    lam = 0.01
    update = solve(keys, wanted - keys @ old.T, lam)
    new = old + update.matrix()
    # W* = (lambda W0 + Z K^T) (lambda I + K K^T)^-1, keys and values in columns
    inverse = torch.linalg.inv(lam * torch.eye(12, dtype=torch.float64) + keys.T @ keys)
    assert torch.allclose(new, (lam * old + wanted.T @ keys) @ inverse, atol=1e-10)
    free = new.clone().requires_grad_(True)
    objective = (keys @ free.T - wanted).pow(2).sum() + lam * (free - old).pow(2).sum()
    (gradient,) = torch.autograd.grad(objective, free)
    assert gradient.abs().max() < 1e-10
    assert torch.linalg.matrix_rank(update.matrix()) == facts
    if facts == 1:
        key, before = keys[0], old @ keys[0]
        reached = key @ key / (lam + key @ key)
        assert torch.allclose(new @ key, before + reached * (wanted[0] - before), atol=1e-12)
        other = torch.randn(12, dtype=torch.float64, generator=random)
        bleed = (wanted[0] - before) * (key @ other) / (lam + key @ key)
        assert torch.allclose(update.change(other[None])[0], bleed, atol=1e-12)


# The optimisation.


def slow_changes(graph, fact, layers, settings):
    """The same by hooks on whole forwards of the model, from the pixels, one after another."""
    model, ids = graph.adapter.model, with_target(graph, fact.prompt, fact.target, settings.first_token)[1]
    inputs = graph.checked(with_target(graph, fact.prompt, fact.target, settings.first_token)[0])
    position, norms = fact.position(), {}
    changes = {layer: torch.zeros(graph.d_model, requires_grad=True) for layer in layers}

    def hook_of(layer):
        def hook(module, given, output):
            norms.setdefault(layer, output[0, position].detach().norm())
            changed = output.clone()
            changed[0, position] = changed[0, position] + changes[layer]
            return changed

        return hook

    hooks = [graph.mlp_out(layer)._module.register_forward_hook(hook_of(layer)) for layer in layers]
    adam, probabilities = torch.optim.Adam(changes.values(), lr=settings.learning_rate), []
    for step in range(settings.steps + 1):
        logits = model(**inputs).logits[0, -len(ids) :].float()
        log = logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)].sum()
        probabilities.append(float(log.detach().exp()))
        if step == settings.steps:
            break
        loss = -log
        if settings.norm_penalty:
            for layer, change in changes.items():
                size = change.norm() if bool(change.any()) else change.sum() * 0
                loss = loss + settings.norm_penalty * size / norms[layer] ** 2
        adam.zero_grad()
        loss.backward()
        adam.step()
        if settings.clip is not None:
            for layer, change in changes.items():
                if change.detach().norm() > settings.clip * norms[layer]:
                    change.data *= settings.clip * norms[layer] / change.detach().norm()
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    return [change.detach() for change in changes.values()], probabilities


@pytest.mark.parametrize("name", FAMILIES)
def test_changes_equal_those_found_by_whole_forwards(name):
    graph = graph_of(name)
    fact = fact_of(graph)
    found = find_changes(graph, fact, [1, 2], SHORT)
    changes, probabilities = slow_changes(graph, fact, [1, 2], SHORT)
    assert np.allclose(found.probabilities, probabilities, rtol=1e-3, atol=1e-7)
    assert found.probabilities[-1] > found.probabilities[0]
    # Adam's first steps are signs of gradients: where one is almost zero, its sign may be either
    for one, other in zip(found.changes, changes, strict=True):
        assert ((one - other).abs() > 1e-3).float().mean() < 0.05


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("settings", [SHORT, RELEASED, mmf.EditSettings(steps=4, stop_at=None, norm_penalty=0.5)])
def test_settings_and_long_answers(settings, attention):
    graph = tiny_graph(attention=attention)
    fact = fact_of(graph, target="red circle")
    found = find_changes(graph, fact, [1], settings)
    changes, probabilities = slow_changes(graph, fact, [1], settings)
    assert np.allclose(found.probabilities, probabilities, rtol=1e-3)
    assert torch.allclose(found.changes[0], changes[0], atol=1e-3)


def test_keys_are_the_matrix_inputs():
    graph = tiny_graph()
    facts, seen = [fact_of(graph, seed) for seed in (0, 1)], []
    hook = graph.mlp_out(2)._module.register_forward_hook(lambda module, given, output: seen.append(given[0][0]))
    with torch.no_grad():
        for fact in facts:
            graph.adapter.model(**fact.prompt.inputs)
    hook.remove()
    wanted = torch.stack([one[fact.position()] for one, fact in zip(seen, facts, strict=True)])
    assert torch.allclose(read_keys(graph, facts, 2), wanted, atol=1e-6)


# The edited view, and the weights.


@pytest.fixture(scope="module")
def edited():
    graph = tiny_graph("llama", seed=3)
    fact = fact_of(graph)
    return graph, fact, mmf.edit(graph, fact, [1, 2], **QUIET)


def logits_of(graph, prompt):
    with torch.no_grad(), graph.trace(prompt):
        logits = graph.model.output.logits[0, -1].save()
    return logits


def test_the_view_equals_changed_weights_and_leaves_the_model_as_it_was(edited):
    graph, fact, edit = edited
    before = {name: value.clone() for name, value in graph.adapter.model.state_dict().items()}
    clean, view = logits_of(graph, fact.prompt), logits_of(edit.graph, fact.prompt)
    assert (clean - view).abs().max() > 0.1
    # by hand
    by_hand = dict(before)
    for layer, update in edit.updates.items():
        name = f"model.language_model.layers.{layer}.mlp.down_proj.weight"
        by_hand[name] = before[name] + update.left @ update.right
    graph.adapter.model.load_state_dict(by_hand)
    with torch.no_grad():
        changed = graph.adapter.model(**fact.prompt.inputs).logits[0, -1]
    graph.adapter.model.load_state_dict(before)
    assert torch.allclose(changed, view, atol=1e-5)
    # only two matrices are the view's own
    own = [
        name
        for name, value in edit.graph.adapter.model.named_parameters()
        if value.data_ptr() != graph.adapter.model.get_parameter(name).data_ptr()
    ]
    assert own == [f"model.language_model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2)]
    assert torch.equal(logits_of(graph, fact.prompt), clean)


def test_apply_and_undo_are_bit_exact(edited):
    graph, fact, edit = edited
    before = {name: value.clone() for name, value in graph.adapter.model.state_dict().items()}
    clean = logits_of(graph, fact.prompt)
    with pytest.raises(mmf.MMFlowError, match="not in the weights"):
        edit.undo()
    edit.apply()
    with pytest.raises(mmf.MMFlowError, match="in the weights already"):
        edit.apply()
    assert torch.equal(logits_of(graph, fact.prompt), logits_of(edit.graph, fact.prompt))
    weight = graph.mlp_out(2)._module.weight
    weight.data[0, 0] += 1
    with pytest.raises(mmf.MMFlowError, match="layer 2 have been changed since apply"):
        edit.undo()
    weight.data.copy_(edit.graph.mlp_out(2)._module.weight)
    edit.undo()
    assert all(torch.equal(value, before[name]) for name, value in graph.adapter.model.state_dict().items())
    assert torch.equal(logits_of(graph, fact.prompt), clean)


def test_the_view_is_a_graph_like_any_other(edited):
    _, fact, edit = edited
    flows = [
        mmf.flow(edit.graph, fact.prompt, ["image->question"], window=3, only_correct=False, engine=engine, **QUIET)
        for engine in ("rows", "forward")
    ]
    rows, forward = (flow.to_frame()["log_probability_change"] for flow in flows)
    assert (rows - forward).abs().max() < 1e-5
    with edit.graph.generate(fact.prompt, max_new_tokens=3, do_sample=False) as tracer:
        ids = tracer.result.save()
    with torch.no_grad():
        wanted = edit.graph.adapter.model.generate(**fact.prompt.inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(ids, wanted)


def test_files(edited, tmp_path):
    graph, fact, edit = edited
    edit.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"edit.json", "edit.parquet", "edit.safetensors"}
    again = mmf.results.EditResult.load(tmp_path, graph)
    assert torch.equal(logits_of(again.graph, fact.prompt), logits_of(edit.graph, fact.prompt))
    assert again.to_frame().equals(edit.to_frame())
    alone = mmf.results.EditResult.load(tmp_path)
    assert alone.updates.keys() == edit.updates.keys()
    for use in (alone.apply, lambda: alone.graph):
        with pytest.raises(mmf.MMFlowError, match=r"mmf.results.EditResult.load\(folder, graph\)"):
            use()
    with pytest.raises(mmf.DataError, match="made on other weights of layer 1"):
        mmf.results.EditResult.load(tmp_path, tiny_graph("llama", seed=4))
    assert len(edit.plot()._repr_png_()) > 5_000
    assert "facts answered anew after editing layer(s) 1, 2" in edit.summary()


def test_bleed_is_predicted_and_measured(edited):
    graph, fact, edit = edited
    prompts = [fact.prompt, graph.prompt(picture(1), "is the circle red or blue ?")]
    table = edit.bleed(prompts)
    assert len(table) == 2 * (len(prompts[0]) + len(prompts[1]))
    low = table[table["layer"] == 1]
    assert np.allclose(low["predicted"], low["measured"], atol=1e-3)
    # at the fact itself: the share that the regulariser leaves
    reached = edit.to_frame().set_index("layer")["reached"]
    own = low[(low["prompt"] == "0") & (low["position"] == fact.position())]
    assert abs(float(own["measured"].iloc[0]) - reached[1]) < 1e-3
    above = table[table["layer"] == 2]
    assert not np.allclose(above["predicted"], above["measured"], atol=1e-3)  # the layer below has moved the keys
    assert set(edit.bleed(prompts, "last")["position"]) == {len(prompt) - 1 for prompt in prompts}


def test_several_facts_at_once():
    graph = tiny_graph("llama", seed=3)
    facts = [fact_of(graph, 0, "red"), fact_of(graph, 1, "blue")]
    edit = mmf.edit(graph, facts, 1, settings=mmf.EditSettings(steps=20, regulariser=1e-6), **QUIET)
    keys = read_keys(graph, facts, 1)
    found = [find_changes(graph, fact, [1], mmf.EditSettings(steps=20)).changes[0] for fact in facts]
    assert torch.allclose(edit.updates[1].change(keys), torch.stack(found), atol=1e-2)
    assert len(edit.to_frame()) == 2
    assert torch.linalg.matrix_rank(edit.updates[1].matrix()) == 2


def test_the_released_clip_leaves_the_answer_and_no_clip_raises_it():
    graph = tiny_graph("llama", seed=3)
    fact = fact_of(graph)
    clipped, free = (mmf.edit(graph, fact, 1, settings=name, **QUIET).to_frame() for name in ("released", "paper"))
    assert clipped["change_over_output"][0] <= 1.001e-4
    assert abs(clipped["after"][0] / clipped["before"][0] - 1) < 0.01
    assert free["after"][0] > 1.3 * free["before"][0]  # a random model cannot be brought to say anything from there


# Answers.


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_scores_of_long_answers_in_a_padded_batch(attention):
    graph = tiny_graph(attention=attention)
    prompts = [
        graph.prompt(picture(0), QUESTION),
        graph.prompt(picture(1), "is the circle red or blue ?"),
        graph.prompt(None, "what color is the ring ?"),
    ]
    answers = ["red circle", "blue", "the red ring"]
    found = answer_scores(graph, prompts, answers)
    for prompt, answer, (probability, right) in zip(prompts, answers, found, strict=True):
        product, top = 1.0, True
        inputs = dict(prompt.inputs)
        for word in answer.split():
            token = graph.processor.tokenizer.convert_tokens_to_ids(word)
            with torch.no_grad():
                logits = graph.adapter.model(**inputs).logits[0, -1]
            product *= float(logits.softmax(-1)[token])
            top &= int(logits.argmax()) == token
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        assert abs(probability / product - 1) < 1e-3
        assert right == top


def test_answers_that_cannot_be_scored():
    graph = tiny_graph()
    prompt = graph.prompt(picture(0), QUESTION)
    with pytest.raises(mmf.PromptError, match="does not know the answer 'umbrella'"):
        with_target(graph, prompt, "umbrella")
    with pytest.raises(mmf.PromptError, match="joins the answer ''"):
        with_target(graph, prompt, "")
    paligemma = family("paligemma")
    asked = paligemma.prompt(picture(0, 96, 64), QUESTION)
    assert len(with_target(paligemma, asked, "red blue", first_token=True)[1]) == 1
    with pytest.raises(mmf.ModelError, match="has 2 tokens, and paligemma reads the prompt's end backwards"):
        with_target(paligemma, asked, "red blue")


# Errors.


def test_edits_that_do_nothing_or_cannot_be_made():
    graph = tiny_graph("llama", seed=3)
    fact = fact_of(graph)
    with pytest.raises(mmf.NoEffectError, match="gives every new answer already"):
        mmf.edit(graph, fact, 1, settings=mmf.EditSettings(stop_at=0.0), **QUIET)
    with pytest.raises(mmf.NoEffectError, match="smaller than torch.float32 tells apart"):  # planted: it rounds away
        mmf.edit(graph, fact, 1, settings=mmf.EditSettings(clip=1e-12, steps=2, stop_at=None), **QUIET)
    with pytest.raises(mmf.MMFlowError, match="facts 0 and 1 stand at the same position"):
        mmf.edit(graph, [fact, fact_of(graph, target="blue")], 1, **QUIET)
    with pytest.raises(mmf.MMFlowError, match="settings must be one of paper, released"):
        mmf.edit(graph, fact, 1, settings="rome", **QUIET)
    with pytest.raises(mmf.MMFlowError, match="at least one fact"):
        mmf.edit(graph, [], 1, **QUIET)
    with pytest.raises(mmf.MMFlowError, match=r"layers \[9\] do not exist"):
        mmf.edit(graph, fact, 9, **QUIET)
    with pytest.raises(mmf.SpanError, match="'square' does not occur"):
        mmf.edit(graph, mmf.Fact(prompt=fact.prompt, target="red", at="text('square')"), 1, **QUIET)
    quantised = tiny_graph("llama", seed=5)
    module = quantised.mlp_out(1)._module
    module.weight = torch.nn.Parameter(module.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(mmf.ModelError, match="without quantisation"):
        mmf.edit(quantised, fact_of(quantised), 1, **QUIET)
    assert PAPER.clip is None
    assert PAPER.regulariser == 0.01


# Fine-tuning and the report.


def test_fine_tuning_moves_only_these_matrices_within_bounds():
    graph = tiny_graph("llama", seed=3)
    facts = [fact_of(graph)]
    before = {name: value.clone() for name, value in graph.adapter.model.state_dict().items()}
    for bound in (None, 1e-3):
        tuned = fine_tune(graph, facts, [1], steps=8, bound=bound, learning_rate=1e-2)
        moved = {
            name: (value - before[name]).abs().max()
            for name, value in tuned.adapter.model.named_parameters()
            if not torch.equal(value, before[name])
        }
        assert list(moved) == ["model.language_model.layers.1.mlp.down_proj.weight"]
        assert bound is None or moved.popitem()[1] <= bound * 1.001
        assert (
            answer_scores(tuned, [facts[0].prompt], ["red"])[0][0]
            > answer_scores(graph, [facts[0].prompt], ["red"])[0][0]
        )
    assert all(torch.equal(value, before[name]) for name, value in graph.adapter.model.state_dict().items())
    assert all(parameter.grad is None for parameter in graph.adapter.model.parameters())


def test_the_report_counts_what_it_says(tmp_path, monkeypatch):
    graph = tiny_graph("llama", seed=3)
    same = {"other image": [graph.prompt(picture(7), QUESTION, key="same")]}
    facts = [fact_of(graph, 0, same=same), fact_of(graph, 1, "blue", same=same)]
    others = [
        graph.prompt(picture(seed), "is the circle red or blue ?", answer, key=key, kind="pairs")
        for seed, answer, key in ((2, "red", "a"), (3, "blue", "b"), (4, "red", "same"))
    ]
    told = []
    run = {"layers": 1, "control_layers": [3], "bound": 1e-3, "progress": False, "report": told.append}
    result = mmf.edit_report(graph, facts, others, folder=tmp_path, settings=SHORT, **run)
    frame = result.to_frame()
    assert list(frame["method"].unique()) == [
        "edit, layer 1",
        "edit, layer 3",
        "fine-tuning, layer 1",
        "fine-tuning within 0.001, layer 1",
    ]
    assert told[0].startswith("edit report: 8 edit(s) to run")
    assert set(frame["prompt"][frame["measure"] == "specificity"]) == {"a", "b"}  # the third is one of `same`
    counts = frame.groupby(["method", "measure"]).size().unstack()
    assert (counts["efficacy"] == 2).all()
    assert (counts["generalisation"] == 2).all()
    assert (counts["specificity"] == 4).all()
    # the numbers are those of an edit made by hand
    edit = mmf.edit(graph, facts[1], 1, settings=SHORT, **QUIET)
    by_hand = answer_scores(edit.graph, [facts[1].prompt, same["other image"][0]], ["blue", "blue"])
    mine = frame[(frame["method"] == "edit, layer 1") & (frame["edit"] == 1) & (frame["measure"] != "specificity")]
    assert np.allclose(mine["probability"], [probability for probability, _ in by_hand], rtol=1e-3)
    # what is finished is not run again
    monkeypatch.setattr("nnsight_mmflow.patterns.edit.asked.edit", None)
    monkeypatch.setattr("nnsight_mmflow.patterns.edit.asked.fine_tune", None)
    again = mmf.edit_report(graph, facts, others, folder=tmp_path, settings=SHORT, **run)
    assert again.to_frame().equals(frame)
    assert mmf.results.EditReport.load(tmp_path).to_frame().equals(frame)
    assert len(result.plot()._repr_png_()) > 10_000
    with pytest.raises(mmf.MMFlowError, match="1 of 1 other prompts have no answer"):
        mmf.edit_report(graph, facts, [graph.prompt(picture(0), QUESTION)], **run)
    with pytest.raises(mmf.MMFlowError, match="2 fact"):
        mmf.edit_report(graph, facts, others, together=3, **run)


def test_a_report_asks_the_unedited_model_anew_in_each_run():
    """Its weights may be others by then: here the answers are turned round."""
    nano = mmf.load("nano")
    facts, others = mmf.nano.edits(nano, 1), mmf.nano.prompts(nano, 4)
    right = []
    for _ in range(2):
        frame = mmf.edit_report(nano, facts, others, 4, settings=SHORT, fine_tuning=False, **QUIET).to_frame()
        right.append(frame["right_before"][frame["measure"] == "specificity"].tolist())
        nano.unembed._module.weight.data.neg_()
    assert any(right[0])
    assert not any(right[1])
