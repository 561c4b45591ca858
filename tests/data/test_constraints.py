"""Questions with constraints: the released files with their defects, our own lines, and nano's rows."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.tiny import picture
from PIL import Image

import nnsight_mmflow as mmf

KNOWN = """,question,subject,main_entity,image_url
0,This building is located in,Space Needle,This building,./A photo of Space Needle
1,This application was made by,Chrome,"This application,",./A photo of Chrome
"""
MOVIES = """,question,director,main_entity,image_url
9,Name a movie directed by this director?,Zoë Example,this director,./A photo of Zoë Example
"""
OKVQA = """,question,main_entity,image_url
7,Why might someone go to this place?,this place,./val2014/COCO_val2014_000000304557.jpg
40,What is the man wearing?,the suit,./val2014/COCO_val2014_000000000001.jpg
41,,this,./val2014/COCO_val2014_000000000001.jpg
"""


def written(folder, name, text):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_the_three_files_are_told_apart_by_their_columns(tmp_path):
    known, _ = mmf.data.read_constraint_questions(written(tmp_path, "multimodal_known.csv", KNOWN))
    assert [(one.key, one.subject, one.visual.text, one.kind) for one in known] == [
        ("known-0", "Space Needle", "This building", "known"),
        ("known-1", "Chrome", "This application", "known"),  # the comma belongs to the sentence
    ]
    movies, _ = mmf.data.read_constraint_questions(written(tmp_path, "multimodal_movies.csv", MOVIES))
    assert (movies[0].subject, movies[0].visual.start, movies[0].source) == ("Zoë Example", 25, "multimodal_movies.csv")
    rows, bad = mmf.data.read_constraint_questions(written(tmp_path, "okvqa.csv", OKVQA), skip_bad=True)
    assert [one.key for one in rows] == ["okvqa-7"]
    assert len(bad) == 2
    assert bad[0] == (
        "line 3: the constraint 'the suit' does not stand in the question 'What is the man wearing?' (case counts)"
    )
    with pytest.raises(mmf.DataError, match=r"2 of 3 rows of .*okvqa.csv are bad:\n  line 3(.|\n)*skip_bad=True"):
        mmf.data.read_constraint_questions(tmp_path / "okvqa.csv")


def test_pictures_are_files_or_one_of_a_folder_of_candidates(tmp_path):
    composed, split = (unicodedata.normalize(form, "A photo of Zoë Example") for form in ("NFC", "NFD"))
    assert composed != split
    for number in (2, 10, 1):
        path = tmp_path / split / f"Image_{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    (tmp_path / split / "notes.txt").write_text("no picture")
    file = written(tmp_path, "movies.csv", MOVIES)
    found = [
        mmf.data.read_constraint_questions(file, tmp_path, candidate=candidate)[0][0].image.name
        for candidate in range(3)
    ]
    assert found == ["Image_1.jpg", "Image_2.jpg", "Image_10.jpg"]
    with pytest.raises(mmf.DataError, match="holds 3 picture.s.; candidate 3"):
        mmf.data.read_constraint_questions(file, tmp_path, candidate=3)
    with pytest.raises(mmf.DataError, match="image './A photo of Space Needle' is missing"):
        mmf.data.read_constraint_questions(written(tmp_path, "known.csv", KNOWN), tmp_path)
    (tmp_path / "val2014").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val2014" / "COCO_val2014_000000304557.jpg")
    rows, bad = mmf.data.read_constraint_questions(written(tmp_path, "okvqa.csv", OKVQA), tmp_path, skip_bad=True)
    assert rows[0].image.is_file()
    assert len(bad) == 2


def test_answers_are_joined(tmp_path):
    file = written(tmp_path, "known.csv", KNOWN)
    by_subject = {"Space Needle": "Seattle", "known-1": ["Google", "Alphabet"]}
    rows, _ = mmf.data.read_constraint_questions(file, answers=by_subject)
    assert [one.answers for one in rows] == [("Seattle",), ("Google", "Alphabet")]
    facts = [{"subject": "Space Needle", "attribute": " Seattle", "prompt": "x"}]
    mapping = written(tmp_path, "facts.json", json.dumps(facts))
    assert mmf.data.read_constraint_questions(file, answers=mapping)[0][0].answers == ("Seattle",)
    assert mmf.data.read_constraint_questions(file, answers=written(tmp_path, "map.json", json.dumps(by_subject)))
    with pytest.raises(mmf.DataError, match="neither a mapping"):
        mmf.data.read_constraint_questions(file, answers=written(tmp_path, "odd.json", "[1]"))
    with pytest.raises(mmf.DataError, match="no answers can be read from"):
        mmf.data.read_constraint_questions(file, answers=tmp_path / "gone.json")


def test_files_that_are_none(tmp_path):
    with pytest.raises(mmf.DataError, match="there is no question file"):
        mmf.data.read_constraint_questions(tmp_path / "gone.csv")
    with pytest.raises(mmf.DataError, match="there is no folder of images"):
        mmf.data.read_constraint_questions(written(tmp_path, "known.csv", KNOWN), tmp_path / "gone")
    with pytest.raises(mmf.DataError, match=r"lacks the column.s. main_entity, image_url; it has 'question', 'x'"):
        mmf.data.read_constraint_questions(written(tmp_path, "other.csv", "question,x\n1,2\n"))
    with pytest.raises(mmf.DataError, match="holds no usable question"):
        mmf.data.read_constraint_questions(written(tmp_path, "empty.csv", KNOWN.splitlines()[0] + "\n"))
    odd = written(tmp_path, "odd.jsonl", '{"visual": null}\n{"key": \n')
    with pytest.raises(mmf.DataError, match=r"line 1: has not the fields(.|\n)*line 2: is no JSON"):
        mmf.data.read_constraint_questions(odd)


def test_our_own_lines_come_back(tmp_path):
    picture(0).save(tmp_path / "one.png")
    question = mmf.data.ConstraintQuestion(
        "k1",
        tmp_path / "one.png",
        "what is the dish of this place in spring ?",
        mmf.data.Constraint(text="this place", start=20, end=30),
        (mmf.data.Constraint.find("spring", "what is the dish of this place in spring ?"),),
        answers=("pie", "soup"),
        replacement="place zorvia",
        kind="two",
    )
    file = mmf.data.write_constraint_questions([question], tmp_path / "rows.jsonl")
    (again,), bad = mmf.data.read_constraint_questions(file, tmp_path)
    assert again == question
    assert not bad
    with pytest.raises(mmf.DataError, match="holds a picture, not the path"):
        mmf.data.write_constraint_questions(mmf.nano.constraint_questions()[:1], tmp_path / "rows.jsonl")


@given(question=st.text(min_size=1, max_size=30), data=st.data())
def test_a_constraint_is_what_stands_at_its_place(question, data):
    start = data.draw(st.integers(0, len(question) - 1))
    end = data.draw(st.integers(start + 1, len(question)))
    text = question[start:end]
    assert (
        mmf.data.ConstraintQuestion("k", "i", question, mmf.data.Constraint(text, start, end)).constraints[0].text
        == text
    )
    found = mmf.data.Constraint.find(text, question)
    assert question[found.start : found.end] == text
    with pytest.raises(mmf.DataError, match="not the constraint"):
        mmf.data.ConstraintQuestion("k", "i", question, mmf.data.Constraint(text + "x", start, end))
    with pytest.raises(mmf.DataError, match="has no constraint"):
        mmf.data.ConstraintQuestion("k", "i", question, None)


# Nano's rows.


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


def test_nano_has_several_hundred_rows():
    rows = [one for count in (1, 2) for named in (False, True) for one in mmf.nano.constraint_questions(count, named)]
    assert len(rows) == 448
    assert len({one.key for one in rows}) == 448
    for one in rows:
        assert one.answers[0] != one.replaced_answers[0]
        assert (one.visual is None) == one.kind.endswith("name")
        assert len(one.constraints) == (2 if one.kind.startswith("season") else 1)
    with pytest.raises(mmf.DataError, match="1 or 2 constraints, not 3"):
        mmf.nano.constraint_questions(3)


@pytest.mark.parametrize(
    ("way", "constraints"), [("flag", 1), ("phrase", 1), ("name", 1), ("flag", 2), ("phrase", 2), ("season", 2)]
)
def test_nano_answers_the_clean_and_the_corrupt_question(nano, way, constraints):
    prompts, corrupt = mmf.nano.trace_pairs(nano, 96, way, constraints)
    rows = mmf.nano.constraint_questions(constraints, way == "name")[:96]
    wanted = [row.answers[0] for row in rows]
    changed = [row.replaced_answers[0] for row in rows]
    from nnsight_mmflow.runs.answers import answer_scores

    clean = answer_scores(nano, prompts, wanted)
    assert sum(right for _, right in clean) >= 93
    broken = answer_scores(nano, [one.prompt for one in corrupt], wanted)
    assert sum(right for _, right in broken) <= 2
    if way != "season":
        other = answer_scores(nano, [one.prompt for one in corrupt], changed)
        assert sum(right for _, right in other) >= 91


def test_ways_that_there_are_not(nano):
    for arguments in ((3, "colour"), (3, "season")):
        with pytest.raises(mmf.DataError, match="way must be one of flag, phrase, name, season"):
            mmf.nano.trace_pairs(nano, *arguments)
    with pytest.raises(mmf.DataError, match="nano holds 1 to 128"):
        mmf.nano.trace_pairs(nano, 129, "flag", 2)
    row = mmf.nano.constraint_questions()[0]
    with pytest.raises(mmf.PromptError, match="instead of 7[0-9]"):
        row.corrupted(nano, row.prompt(nano), "zorvia")
    bare = mmf.data.ConstraintQuestion("k", row.image, row.question, row.visual)
    with pytest.raises(mmf.PromptError, match="has no replacement"):
        bare.corrupted(nano, bare.prompt(nano))
    with pytest.raises(mmf.DataError, match="not one of nano's held-out facts"):
        mmf.nano.same_answers(nano, mmf.nano.prompts(nano, 1))
