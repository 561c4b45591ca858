"""nano: it loads like any model, knows its world, needs its image, and can be rebuilt."""

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

import nnsight_mmflow as mmf
from nnsight_mmflow.nano import build, exchange, facts, world
from nnsight_mmflow.nano.batches import IGNORED, PHASES, Batches
from nnsight_mmflow.nano.evaluate import GUESSING, as_table, evaluate
from nnsight_mmflow.nano.exchange import draw_pairs
from nnsight_mmflow.nano.held_out import write_held_out
from nnsight_mmflow.nano.train import learning_rate, save, train

SCENES = mmf.nano.KINDS[:6]


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


def test_loads_with_plain_transformers(nano):
    model = LlavaForConditionalGeneration.from_pretrained(mmf.nano.FOLDER)
    processor = AutoProcessor.from_pretrained(mmf.nano.FOLDER)
    sample = mmf.nano.samples(1)[0]
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.question}]}]
    text = processor.apply_chat_template(talk, add_generation_prompt=True)
    inputs = processor(text=text, images=sample.image, return_tensors="pt")
    prompt = nano.prompt(sample.image, sample.question)
    assert torch.equal(inputs["input_ids"], prompt.inputs["input_ids"])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, nano.adapter.model(**prompt.inputs).logits)
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert processor.decode(ids[0, len(prompt) :], skip_special_tokens=True) == sample.answer
    assert nano.name == "nano"


@pytest.mark.slow
def test_accuracy_with_and_without_the_image(nano):
    found = evaluate(nano, limit=100)
    table = as_table(found)
    for kind in SCENES:
        assert found[kind]["own"] >= 0.97, table
        for other in ("blank", "swapped"):
            # 100 questions: two standard errors of a coin are 10 points
            assert found[kind][other] <= GUESSING[kind] + 0.11, table
    for kind in ("fact-flag", "fact-name"):
        assert found[kind]["own"] >= 0.99, table
    # which of two shapes that are both there has that colour: presence alone cannot tell
    assert found["ChooseCat-both"]["own"] >= 0.95, table
    assert found["fact-flag"]["blank"] < 0.2, table  # a flag is needed to name its place
    assert found["fact-name"]["swapped"] >= 0.99, table  # by name, the picture does not matter


def right(graph, kind, layers):
    """Share of right first tokens, the image hidden from all that follows it in these layers."""
    questions = mmf.nano.samples(60, kind)
    batch = graph.batch([graph.prompt(question.image, question.question) for question in questions])
    hidden = [mmf.Knockout(source="image", target="question | suffix | text('\\n')", layers=layers)] if layers else []
    with torch.no_grad(), graph.trace(batch, *hidden):
        tokens = graph.unembed.output[:, -1].argmax(-1).save()
    words = graph.processor.tokenizer.batch_decode(tokens[:, None])
    return sum(word == question.answer for word, question in zip(words, questions, strict=True)) / len(questions)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCENES)
def test_layers_matter_as_they_should(nano, kind):
    clean = right(nano, kind, [])
    assert right(nano, kind, range(nano.n_layers)) <= GUESSING[kind] + 0.2  # 60 questions: three standard errors
    assert right(nano, kind, range(nano.n_layers - 2, nano.n_layers)) >= clean - 0.1


def test_every_layer_swap_of_the_image_is_felt(nano):
    """Image hidden from everything after it in all layers: the logits do not depend on the pixels (spec, item 7)."""
    questions = mmf.nano.samples(2, "QueryAttr")
    blocked = mmf.Knockout(source="image", target="question | suffix | text('\\n')", layers=range(nano.n_layers))
    logits = []
    for question in questions:
        prompt = nano.prompt(question.image, questions[0].question)
        with torch.no_grad(), nano.trace(prompt, blocked):
            logits.append(nano.unembed.output[0, -1].save())
    assert (logits[0] - logits[1]).abs().max() <= 1e-5  # float noise of masked sums


def test_samples_are_the_same_every_time(tmp_path):
    one, two = mmf.nano.samples(13), mmf.nano.samples(13)
    assert [question.kind for question in one[:7]] == [*SCENES, SCENES[0]]
    for a, b in zip(one, two, strict=True):
        assert np.array_equal(np.asarray(a.image), np.asarray(b.image))
    write_held_out(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == mmf.nano.HELD_OUT.read_bytes()
    with pytest.raises(mmf.DataError, match="no question type"):
        mmf.nano.samples(3, "Colour")
    with pytest.raises(mmf.DataError, match="nano holds 1 to 200"):
        mmf.nano.samples(201, "QueryAttr")


def test_boxes_hold_the_objects(nano):
    """The pixels of a box differ from the background, and its tokens are 2x2 patches."""
    for question in mmf.nano.samples(30):
        pixels = np.asarray(question.image).astype(int)
        for left, top, right_edge, bottom in question.boxes:
            cell = pixels[top:bottom, left:right_edge]
            assert (abs(cell - world.BACKGROUND) > 60).any(-1).sum() > 20
        prompt = nano.prompt(question.image, question.question)
        if question.boxes:
            assert len(prompt.spans["image"].box(question.boxes[0])) == 4


def test_questions_and_answers_agree_with_the_scene():
    random = np.random.default_rng(3)
    for _ in range(300):
        objects = world.draw_scene(random)
        by_shape = {thing.shape: thing for thing in objects}
        assert len(by_shape) == len(objects) == len({(thing.row, thing.column) for thing in objects})
        for kind in world.SCENE_TYPES:
            asked = world.ask(kind, objects, random)
            if asked is None:
                continue
            words = asked.text.split()
            if kind in ("QueryAttr", "ChooseAttr"):
                shape = next(word for word in words if word in world.SHAPES)
                assert by_shape[shape].color == asked.answer
            elif kind == "ChooseRel":
                one, two = (by_shape[word].column for word in words if word in world.SHAPES)
                assert asked.answer == ("left" if one < two else "right")
            elif kind == "CompareAttr":
                one, two = (by_shape[word].color for word in words if word in world.SHAPES)
                assert asked.answer == ("yes" if one == two else "no")
            elif kind == "LogicalObj":
                there = any(word in by_shape for word in words if word in world.SHAPES)
                assert asked.answer == ("yes" if there else "no")
            else:
                assert by_shape[asked.answer].color == words[2]
                assert {asked.answer, asked.options[1]} == {word for word in words if word in world.SHAPES}


def test_flags_tell_places_apart():
    assert len({(place.pattern, place.colors) for place in facts.PLACES}) == len(facts.PLACES) == 32
    for relation in ("capital", "founder"):
        assert len({getattr(place, relation) for place in facts.PLACES}) == 32


@pytest.mark.parametrize("step", [phase.first for phase in PHASES])
def test_trained_tokens_are_the_answers(step):
    words, batch = build.words(), Batches(1).draw(step)
    answers = {*world.SHAPES, *world.COLORS, "left", "right", "yes", "no", "</s>"}
    answers |= {getattr(place, relation) for place in facts.PLACES for relation in facts.RELATIONS}
    answers |= {dish for place in facts.PLACES for dish in place.dishes}
    trained = {words[label] for label in batch.labels.flatten().tolist() if label != IGNORED}
    assert trained <= answers
    assert len(trained) > 20
    row, asked = batch.input_ids[0].tolist(), batch.labels[0].tolist()
    for position, label in enumerate(asked[:-1]):  # a label is the word that comes next
        if label != IGNORED and row[position + 1] != 0:
            assert row[position + 1] == label


def test_a_dish_needs_the_place_and_the_season():
    """Neither alone says it: each season has several dishes, no place the same dish all year."""
    for season in range(4):
        assert len({place.dishes[season] for place in facts.PLACES}) >= 4
    assert all(len(set(place.dishes)) > 1 for place in facts.PLACES)


def test_pairs_ask_the_same_by_flag_and_by_name():
    pairs, words = draw_pairs(np.random.default_rng(0), 5), build.words()
    assert torch.equal(pairs.answer[0::2], pairs.answer[1::2])
    for row in range(10):
        ids, last = pairs.input_ids[row].tolist(), int(pairs.last[row])
        assert words[ids[last]] == ":"
        assert set(ids[last + 1 :]) <= {0}
        named = words[ids[int(pairs.constraint[row])]]
        assert named == "place" if row % 2 == 0 else named in facts.NAMES


def test_the_planted_ways_are_those_of_the_masks():
    """Only the constraint reads the picture, up to EARLY; it is read behind LATE alone."""
    pairs = draw_pairs(np.random.default_rng(1), 2)
    early, middle, late = exchange._masks(pairs)
    image = range(3, 67)
    for row in range(4):
        place, last = int(pairs.constraint[row]), int(pairs.last[row])
        for mask in (early, middle, late):
            free, held = mask[row, 0], mask[8 + row, 0]  # the third copy of the rows
            assert torch.equal(free, torch.ones_like(free).tril())
            assert not held[last, list(image)].any()
            assert not held[place - 1, list(image)].any()
            assert held[70 if place > 70 else place, 67]  # text still reads text
        assert early[8 + row, 0, place, list(image)].all()
        assert not middle[8 + row, 0, place, list(image)].any()
        assert not early[8 + row, 0, last, place]
        assert not middle[8 + row, 0, last, place]
        assert late[8 + row, 0, last, place]


def test_the_constraints_state_decides_the_answer(nano):
    """What was planted is there: after layer LATE the state of "place" is put in from a question about another fact."""
    facts_by_flag = mmf.nano.prompts(nano, 24, "fact-flag")
    at, swapped = "text('this place')", 0
    for number, prompt in enumerate(facts_by_flag):
        giver = facts_by_flag[(number + 7) % 24]
        patch = mmf.Patch(at=at, site="resid", layers=exchange.LATE, value=mmf.values.from_run(giver))
        with torch.no_grad(), nano.trace(prompt, patch):
            token = nano.unembed.output[0, -1].argmax().save()
        swapped += nano.processor.tokenizer.decode([int(token)]) == giver.answer
    assert swapped >= 22


@pytest.mark.slow
def test_training_goes_on_where_it_stopped(tmp_path):
    quiet = {"seed": 3, "n_layers": 2, "report": lambda text: None, "checkpoint_every": 2}
    whole = train(tmp_path / "a", steps=4, **quiet)
    train(tmp_path / "b", steps=2, **quiet)
    resumed = train(tmp_path / "b", steps=4, **quiet)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert (one - other).abs().max() <= 1e-5  # bfloat16 sums of two runs
    save(resumed, tmp_path / "model")
    assert mmf.load(str(tmp_path / "model")).n_layers == 2


def test_the_learning_rate_rises_and_falls():
    assert learning_rate(0) < learning_rate(150) < learning_rate(199)
    assert learning_rate(3000) > learning_rate(3900)
