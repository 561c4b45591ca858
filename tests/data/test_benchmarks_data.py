"""Published benchmark formats, and their rules of what is right."""

import json

import pytest
from kit.tiny import picture, tiny_graph
from PIL import Image

import nnsight_mmflow as mmf
from nnsight_mmflow.data.scoring import as_letter, as_yes_or_no, normalised, vqa_accuracy

SCIENCE = {
    "1": {
        "question": "Which?",
        "choices": ["x", "y"],
        "answer": 1,
        "hint": "Look.",
        "image": "image.png",
        "split": "test",
    },
    "2": {"question": "What?", "choices": ["x", "y"], "answer": 0, "hint": "", "image": None, "split": "test"},
    "3": {
        "question": "Who?",
        "choices": ["p", "q", "r"],
        "answer": 2,
        "hint": "",
        "image": "image.png",
        "split": "val",
    },
}
AOKVQA = [{"question_id": "q1", "image_id": 7, "question": "What?", "choices": ["a", "b"], "correct_choice_idx": 0}]
TEXTVQA = {"data": [{"question_id": 5, "image_id": "ab", "question": "What brand?", "answers": ["dell"] * 9 + ["hp"]}]}
POPE = [{"question_id": 1, "image": "COCO_1.jpg", "text": "Is there a dog?", "label": "yes"}]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "problems.json").write_text(json.dumps(SCIENCE))
    (tmp_path / "aokvqa.json").write_text(json.dumps(AOKVQA))
    (tmp_path / "textvqa.json").write_text(json.dumps(TEXTVQA))
    (tmp_path / "pope.json").write_text("\n".join(map(json.dumps, POPE)))
    for name in ("test/1/image.png", "val/3/image.png", "000000000007.jpg", "ab.jpg", "COCO_1.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return tmp_path


def test_the_four_formats(files):
    images = files / "images"
    science = mmf.data.read_benchmark("scienceqa", files / "problems.json", images)
    assert [(one.key, one.question, one.answer) for one in science.questions] == [
        ("1", "Context: Look.\nWhich?\nA. x\nB. y", "B")  # those without a picture are left out
    ]
    assert [
        one.key for one in mmf.data.read_benchmark("scienceqa", files / "problems.json", images, split="val").questions
    ] == ["3"]
    aokvqa = mmf.data.read_benchmark("aokvqa", files / "aokvqa.json", images)
    assert (aokvqa.questions[0].image.name, aokvqa.questions[0].answer) == ("000000000007.jpg", "A")
    textvqa = mmf.data.read_benchmark("textvqa", files / "textvqa.json", images)
    assert len(textvqa.answers["5"]) == 10
    assert textvqa.instruction == "Answer the question using a single word or phrase."
    pope = mmf.data.read_benchmark("pope", files / "pope.json", images)
    assert pope.questions[0].question == "Is there a dog?"


def test_rows_as_the_datasets_library_gives_them():
    """Its rows hold pictures."""
    rows = [{**SCIENCE["1"], "image": picture(0)}, {**SCIENCE["1"], "image": None}]
    read = mmf.data.read_benchmark("scienceqa", rows)
    assert len(read.questions) == 1
    rows = [{**POPE[0], "question": POPE[0]["text"], "image": picture(seed), "question_id": seed} for seed in range(4)]
    assert len(mmf.data.read_benchmark("pope", iter(rows), limit=3).questions) == 3


def test_a_report_by_the_benchmarks_own_rule():
    graph = tiny_graph()
    rows = [{"question_id": i, "image": picture(i), "text": "is the circle red ?", "label": "yes"} for i in range(2)]
    read = mmf.data.read_benchmark("pope", rows)
    prompts = read.prompts(graph, instruction=None)
    assert [prompt.answer for prompt in prompts] == ["yes", "yes"]
    quiet = {"progress": False, "report": str, "timed": 0, "controls": 0}
    result = mmf.prune_report(graph, prompts, [mmf.FastV(k=2)], judge=read.judge, max_new_tokens=2, **quiet)
    frame = result.to_frame()
    # a random model writes neither yes nor no, and POPE's rule takes that for a yes
    assert (frame["right"] == [as_yes_or_no(written, ("yes",)) for written in frame["written"]]).all()
    assert frame["right"].mean() > 0


def test_what_is_not_in_the_format(files):
    with pytest.raises(mmf.DataError, match="no benchmark 'gqa'; there are scienceqa, aokvqa, textvqa, pope"):
        mmf.data.read_benchmark("gqa", [])
    with pytest.raises(mmf.DataError, match="row 0: not in the published format .KeyError: 'question_id'"):
        mmf.data.read_benchmark("pope", [{"image": "a.jpg", "text": "Is it?", "label": "yes"}])
    with pytest.raises(mmf.DataError, match="the label is 'maybe'"):
        mmf.data.read_benchmark("pope", [{**POPE[0], "label": "maybe"}])
    with pytest.raises(mmf.DataError, match="there is no picture"):
        mmf.data.read_benchmark("pope", POPE, files)
    with pytest.raises(mmf.DataError, match="hold no usable question"):
        mmf.data.read_benchmark("pope", [])
    with pytest.raises(mmf.DataError, match="cannot be read"):
        mmf.data.read_benchmark("textvqa", files / "gone.json")
    (files / "odd.json").write_text('{"rows": []}')
    with pytest.raises(mmf.DataError, match="holds no list of questions"):
        mmf.data.read_benchmark("textvqa", files / "odd.json")


@pytest.mark.parametrize(
    ("written", "right"),
    [("B", 1), ("b", 1), ("(B)", 1), ("B. a cat", 1), ("Answer: B", 1), ("The answer is B.", 1), ("option B", 1)]
    + [("A", 0), ("a cat", 0), ("Because", 0), ("", 0), ("C) dog", 0)],
)
def test_letters(written, right):
    assert as_letter(written, ("B",)) == right
    assert as_letter("a big cat", ("A",)) == 0
    assert as_letter("a", ("A",)) == 1


def test_yes_and_no():
    assert as_yes_or_no("Yes, there is. No.", ("yes",)) == 1
    assert as_yes_or_no("no", ("no",)) == 1
    assert as_yes_or_no("There is nothing", ("yes",)) == 1  # the rule looks for words, not for sense


def test_vqa_accuracy_by_hand():
    answers = ("red",) * 3 + ("blue",) * 7
    # leaving out one of the three: two others said so, 2/3, three times; leaving out another: 3/3, seven times
    assert abs(vqa_accuracy("Red.", answers) - (3 * 2 / 3 + 7) / 10) < 1e-9
    assert vqa_accuracy("green", answers) == 0
    assert vqa_accuracy("the blue", answers) == 1
    assert normalised("It's 10:30, three-ish") == "its 10:30 3 ish"
