"""Question files: the paper's columns, JSON lines, and every bad row by its line."""

import json
import re
from pathlib import Path

import pytest
from kit.tiny import picture, tiny_graph

import nnsight_mmflow as mmf

HEADER = (
    "question_id,img_id,question,answer,true option,false option,central object name,type_detailed,captions,image_w,"
    "image_h,central object w,central object h,central object x,central object y\n"
)
ROWS = (
    '007,11,Is the cup full or empty?,empty,empty,full,cup,chooseAttr,"a cup, a table",40,30,10,8,2,3\n',
    '008,12,"Is it new, or\nold?",old,old,new,-,chooseAttr,"",40,30,-,-,-,-\n',
)


def write(folder, text, name="mine_ChooseAttr.csv"):
    (folder / name).write_text(text)
    return folder / name


def test_a_csv_row_by_row(tmp_path):
    questions, bad = mmf.data.read_questions(write(tmp_path, HEADER + "".join(ROWS)))
    first, second = questions
    assert not bad
    assert (first.key, first.image, first.answer) == ("007", "11", "empty")  # ids are text
    assert first.options == ("empty", "full")
    assert first.boxes == ((2, 3, 12, 11),)
    assert (first.kind, first.line) == ("ChooseAttr", 2)
    assert second.question == "Is it new, or\nold?"
    assert second.boxes == ()


def test_two_objects_and_an_absent_one(tmp_path):
    boxes = ",".join(f"{name} {side}" for name in ("object1", "object2") for side in "whxy")
    text = f"question_id,img_id,question,answer,{boxes}\n1,2,q?,yes,5,6,1,2,-,-,-,-\n2,2,q?,no,5,6,1,2,3,3,0,0\n"
    one, two = mmf.data.read_questions(write(tmp_path, text, "x_LogicalObj.csv"))[0]
    assert one.boxes == ((1, 2, 6, 8),)
    assert two.boxes == ((1, 2, 6, 8), (0, 0, 3, 3))
    assert one.options is None
    assert one.kind == "LogicalObj"


def test_json_lines_hold_the_same_fields(tmp_path):
    csv = mmf.data.read_questions(write(tmp_path, HEADER + ROWS[0]))[0][0]
    names = HEADER.strip().split(",")
    values = "007,11,Is the cup full or empty?,empty,empty,full,cup,chooseAttr,x,40,30,10,8,2,3".split(",")
    lines = json.dumps(dict(zip(names, values, strict=True))) + "\n\n"
    row = mmf.data.read_questions(write(tmp_path, lines, "mine_ChooseAttr.jsonl"))[0][0]
    assert (row.key, row.options, row.boxes, row.kind) == (csv.key, csv.options, csv.boxes, csv.kind)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("9,11,what?,,a,b,c,d,e,1,1,1,1,1,1\n", "line 3: answer is empty"),
        ("9,11,what?,x,a,b,c,d,e,1,1,ten,8,2,3\n", "line 3: the box of central object is ['2', '3', 'ten', '8']"),
        ("9,11,what?,x,a,b,c,d,e,1,1,0,8,2,3\n", "line 3: the box of central object is 0 wide and 8 high"),
        ("9,11,what?,x\n", "line 3: has no field 'true option'"),
        ("9,11,what?,x,a,b,c,d,e,1,1,1,1,1,1,more\n", "line 3: has 1 more fields than the header"),
        ("9,99,what?,x,a,b,c,d,e,1,1,1,1,1,1\n", "line 3: image '99' is missing in"),
        ("9,13,what?,x,a,b,c,d,e,1,1,1,1,1,1\n", "line 3: image"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_skipped_only_on_request(tmp_path, row, text):
    picture(0).save(tmp_path / "11.png")
    (tmp_path / "13.jpg").write_bytes(b"broken")
    file = write(tmp_path, HEADER + ROWS[0] + row)
    with pytest.raises(mmf.DataError, match=re.escape(text)) as error:
        mmf.data.read_questions(file, tmp_path)
    assert "1 of 2 rows" in str(error.value)
    assert "--skip-bad" in str(error.value)
    questions, bad = mmf.data.read_questions(file, tmp_path, skip_bad=True)
    assert [question.key for question in questions] == ["007"]
    assert text in bad[0]


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(mmf.DataError, match="there is no question file"):
        mmf.data.read_questions(tmp_path / "none.csv")
    with pytest.raises(
        mmf.DataError, match=re.escape("lacks the column(s) answer; it has question_id, img_id, question")
    ):
        mmf.data.read_questions(write(tmp_path, "question_id,img_id,question\n1,2,3\n"))
    with pytest.raises(mmf.DataError, match="there is no folder of images"):
        mmf.data.read_questions(write(tmp_path, HEADER + ROWS[0]), tmp_path / "none")
    with pytest.raises(mmf.DataError, match="line 1: is no JSON"):
        mmf.data.read_questions(write(tmp_path, "{broken\n", "a.jsonl"))
    with pytest.raises(mmf.DataError, match="holds no usable question; 1 bad rows"):
        mmf.data.read_questions(write(tmp_path, "{broken\n", "a.jsonl"), skip_bad=True)


def test_prompts_name_the_question_that_fails(tmp_path):
    graph = tiny_graph()
    good = mmf.data.Question("a", picture(0), "is there a ring ?", "yes", boxes=((0, 0, 8, 8),), kind="LogicalObj")
    prompt = mmf.data.prompts_of(graph, [good])[0]
    assert (prompt.key, prompt.kind, prompt.answer, prompt.boxes) == ("a", "LogicalObj", "yes", ((0, 0, 8, 8),))
    bad = mmf.data.Question("b", picture(0), "is there an umbrella ?", "yes", line=7)
    with pytest.raises(
        mmf.PromptError, match=re.escape("question b (line 7): the tokenizer does not know 'an', 'umbrella'")
    ):
        mmf.data.prompts_of(graph, [good, bad])


GQA = Path(__file__).parents[3] / "shared" / "data" / "gqa"


@pytest.mark.skipif(not GQA.is_dir(), reason="the GQA question files are not beside the project")
def test_the_six_released_files():
    counts, images = {}, set()
    for file in sorted(GQA.glob("*.csv")):
        questions, bad = mmf.data.read_questions(file)
        assert not bad
        counts[questions[0].kind] = len(questions)
        images |= {question.image for question in questions}
        assert all(question.answer == question.options[0] for question in questions if question.options)
        assert any(question.key.startswith("0") for question in questions)
        if questions[0].kind == "LogicalObj":
            assert sum(len(question.boxes) == 1 for question in questions) == 910
    expected = (1000, 1000, 964, 570, 991, 1000)
    assert counts == dict(
        zip(("ChooseAttr", "ChooseCat", "ChooseRel", "CompareAttr", "LogicalObj", "QueryAttr"), expected, strict=True)
    )
    assert len(images) == 3818
