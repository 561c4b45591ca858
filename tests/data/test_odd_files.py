"""Files of questions as users have them: each row is read right, or told with its line; no row ends a run.

What a row must read as is written beside it by hand; pandas and json read the whole files once more.
"""

import csv
import io
import json
import re
import string

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.tiny import picture, tiny_graph
from PIL import Image

import nnsight_mmflow as mmf
from nnsight_mmflow.data import question_files as _question_files
from nnsight_mmflow.files import rows as _row_files
from nnsight_mmflow.files import user_files as _user_files

GOOD = {"question_id": "g1", "img_id": "11", "question": "Is it new?", "answer": "yes"}
LAST = {**GOOD, "question_id": "g2"}
MARKS = {
    "U+2028": "\u2028",
    "U+2029": "\u2029",
    "U+0085": "\x85",
    "vertical tab": "\x0b",
    "form feed": "\x0c",
    "file separator": "\x1c",
    "record separator": "\x1e",
    "tab": "\t",
    "no-break space": "\xa0",
    "zero width": "\u200b",
    "BOM inside": "\ufeff",
    "emoji": "\U0001f600",
    "combining": "e\u0301",
    "right to left": "\u202e",
    "accents": "Zoë ß ñ",
    "comma": ",",
    "quote": '"',
    "apostrophe": "'",
    "backslash": "\\",
    "semicolon": ";",
    "hash": "#",
    "equals": "=1+1",
    "null word": "null",
    "NA word": "NA",
    "nan word": "nan",
    "true word": "true",
}
BREAKS = {"line feed": "\n", "carriage return and line feed": "\r\n", "carriage return": "\r", "two": "\n\n"}


def as_json(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(*rows, end="\r\n", **how):
    names = list(dict.fromkeys(name for row in rows for name in row))
    target = io.StringIO(newline="")
    writer = csv.DictWriter(target, names, lineterminator=end, **how)
    writer.writeheader()
    writer.writerows(rows)
    return target.getvalue().encode()


def told(read, file, **options):
    """'' and what was read, or the error's text."""
    try:
        return "", read(file, **options)
    except mmf.MMFlowError as error:
        return str(error), None
    except Exception as error:
        return f"FOREIGN {type(error).__name__}: {error}", None


def unchecked(function):
    """As users have it: the tests check types at each call, and would be first."""
    return getattr(function, "__wrapped__", function)


def wrong_with(name, file, text, good=("g1", "g2")):
    """Without skip_bad the row is told with its line; with it, the rows around it are read."""
    error, _ = told(mmf.data.read_questions, file)
    found = []
    if not re.search(rf"line \d+: .*{text}", error, re.DOTALL):
        found.append(f"{name}: told {error or 'nothing'!r}")
    error, read = told(mmf.data.read_questions, file, skip_bad=True)
    keys = tuple(one.key for one in read[0]) if read else ()
    if keys != good:
        found.append(f"{name}: with skip_bad {keys}, {error}")
    return found


# Rows that are fine, and what they are.

FINE = {
    "plain": ({}, {}),
    "id is a number": ({"question_id": 7, "img_id": 11}, {"key": "7", "image": "11"}),
    "leading zeros": ({"question_id": "007"}, {"key": "007"}),
    "a long number": ({"question_id": 10**30}, {"key": "1" + "0" * 30}),
    "options": ({"options": ["yes", "no"]}, {"options": ("yes", "no")}),
    "the paper's options": ({"true option": "yes", "false option": "no"}, {"options": ("yes", "no")}),
    "absent options": ({"true option": "-", "false option": "-"}, {"options": None}),
    "empty options": ({"true option": "", "false option": ""}, {"options": None}),
    "a box": ({"boxes": [[1, 2, 3, 4]]}, {"boxes": ((1, 2, 3, 4),)}),
    "boxes": ({"boxes": [[1, 2, 3, 4], [0.5, 0, 9.25, 9]]}, {"boxes": ((1, 2, 3, 4), (0.5, 0, 9.25, 9))}),
    "no boxes": ({"boxes": []}, {"boxes": ()}),
    "a negative edge": ({"boxes": [[-1, -2, 3, 4]]}, {"boxes": ((-1, -2, 3, 4),)}),
    "the paper's box": (
        {f"central object {side}": value for side, value in zip("xywh", (2, 3, 10, 8), strict=True)},
        {"boxes": ((2, 3, 12, 11),)},
    ),
    "two objects": (
        {f"object{n} {side}": n + 1 for n in (1, 2) for side in "xywh"},
        {"boxes": ((2, 2, 4, 4), (3, 3, 6, 6))},
    ),
    "an absent object": ({f"object2 {side}": "-" for side in "xywh"}, {"boxes": ()}),
    "kind": ({"kind": "mine"}, {"kind": "mine"}),
    "the released type": ({"type_detailed": "chooseAttr"}, {"kind": "chooseAttr"}),
    "unused columns": ({"captions": "a cup", "image_w": 40, "operations": "x"}, {}),
    "an index": ({"": 0}, {}),
    "another index": ({"Unnamed: 0": 0}, {}),
    **{f"{name} in the question": ({"question": f"Is{mark}it?"}, {"question": f"Is{mark}it?"}) for name, mark in MARKS.items()},
    **{f"{name} in the answer": ({"answer": f"y{mark}s"}, {"answer": f"y{mark}s"}) for name, mark in MARKS.items()},
    **{f"{name} in the question": ({"question": f"Is{mark}it?"}, {"question": f"Is{mark}it?"}) for name, mark in BREAKS.items()},
}  # fmt: skip


@pytest.mark.parametrize(
    "form", ["jsonl", "ndjson", "csv", "csv, line feeds", "csv, BOM", "csv, all quoted", "jsonl, BOM"]
)
def test_rows_that_are_fine_read_as_they_are_written(tmp_path, form):
    wrong = {}
    for name, (fields, expected) in FINE.items():
        row = {**GOOD, **fields}
        if form.startswith("csv"):
            cells = {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}
            how = {"quoting": csv.QUOTE_ALL} if "quoted" in form else {}
            if "feeds" in form and "carriage return" in name:
                continue  # Python's csv writes it bare there, so that the file itself says something else
            content = as_csv(
                cells, {**dict.fromkeys(cells, ""), **LAST}, end="\n" if "feeds" in form else "\r\n", **how
            )
        else:
            content = as_json(row, LAST)
        file = tmp_path / f"rows.{form.partition(',')[0]}"
        file.write_bytes(("\ufeff".encode() if "BOM" in form else b"") + content)
        error, read = told(mmf.data.read_questions, file)
        if error:
            wrong[name] = error
            continue
        first, second = read[0]
        plain = {"key": "g1", "image": "11", "question": "Is it new?", "answer": "yes", "options": None, "boxes": ()}
        for field, value in {**plain, "kind": "", **expected}.items():
            if getattr(first, field) != value or second.key != "g2":
                wrong[name] = f"{field} is {getattr(first, field)!r}"
    assert wrong == {}


# Rows that are bad, each between two that are good.

WRONG_FIELDS = {
    "answer in a list": ({"answer": ["red"]}, "answer is list"),
    "answer is a number": ({"answer": 3}, "answer is int .3., expected text"),
    "answer is true": ({"answer": True}, "answer is bool"),
    "answer is an object": ({"answer": {"a": 1}}, "answer is dict"),
    "answer is null": ({"answer": None}, "answer is empty"),
    "answer is blank": ({"answer": "  "}, "answer is blank"),
    "answer is empty": ({"answer": ""}, "answer is empty"),
    "question is a number": ({"question": 3.5}, "question is float"),
    "question in a list": ({"question": ["what?"]}, "question is list"),
    "question is empty": ({"question": ""}, "question is empty"),
    "question is blank": ({"question": "\u2003"}, "question is blank"),
    "id is a fraction": ({"question_id": 1.5}, "question_id is float"),
    "id is true": ({"question_id": True}, "question_id is bool"),
    "id is blank": ({"question_id": " "}, "question_id is blank"),
    "id came before": ({"question_id": "g1"}, "question_id 'g1' stands on line"),
    "image in a list": ({"img_id": ["11"]}, "img_id is list"),
    "image is null": ({"img_id": None}, "img_id is empty"),
    "kind is a number": ({"kind": 4}, "kind is int"),
    "one option": ({"options": ["yes"]}, "options are two"),
    "three options": ({"options": ["a", "b", "c"]}, "options are two.*3 came"),
    "options as text": ({"options": "yes"}, "options are two|options is no JSON"),
    "options as an object": ({"options": {"true": "yes"}}, "options are two"),
    "options of numbers": ({"options": [1, 2]}, "options are two texts"),
    "options of null": ({"options": ["yes", None]}, "options are two texts"),
    "an empty option": ({"options": ["yes", ""]}, "options are two texts"),
    "the same twice": ({"options": ["yes", "yes"]}, "the options are the same"),
    "options twice": ({"options": ["a", "b"], "true option": "a", "false option": "b"}, "has options and true option both"),
    "a true option alone": ({"true option": "a", "false option": "-"}, "has a true option alone"),
    "a false option alone": ({"false option": "a"}, "has a false option alone"),
    "a box without list": ({"boxes": [1, 2, 3, 4]}, "boxes are .x0, y0, x1, y1. each"),
    "a box of three": ({"boxes": [[1, 2, 3]]}, "four numbers"),
    "a box of five": ({"boxes": [[1, 2, 3, 4, 5]]}, "four numbers"),
    "a box of text": ({"boxes": [["1", "2", "3", "4"]]}, "four numbers"),
    "a box of null": ({"boxes": [[1, 2, 3, None]]}, "four numbers"),
    "a box of true": ({"boxes": [[0, 0, True, True]]}, "four numbers"),
    "a box as object": ({"boxes": [{"x0": 1, "y0": 2, "x1": 3, "y1": 4}]}, "four numbers"),
    "boxes as text": ({"boxes": "1,2,3,4"}, "boxes are|boxes is no JSON|boxes"),
    "boxes as a number": ({"boxes": 4}, "boxes are"),
    "width and height": ({"boxes": [[10, 10, 5, 5]]}, "has no area.*x . width"),
    "no width": ({"boxes": [[1, 1, 1, 5]]}, "has no area"),
    "beyond all numbers": ({"boxes": [[0, 0, 10**400, 5]]}, "no place in a picture"),
    "boxes twice": ({"boxes": [[1, 2, 3, 4]], **{f"object1 {side}": 3 for side in "xywh"}}, "has boxes and the box of an object"),
    "a width of nothing": ({"object1 x": 1, "object1 y": 1, "object1 w": 0, "object1 h": 4}, "the box of object1 is 0 wide"),
    "a negative height": ({"object1 x": 1, "object1 y": 1, "object1 w": 3, "object1 h": -4}, "3 wide and -4 high"),
    "a box in words": ({"object1 x": "one", "object1 y": 1, "object1 w": 3, "object1 h": 4}, "not four numbers"),
    "a box of NaN": ({"object1 x": "nan", "object1 y": 1, "object1 w": 3, "object1 h": 4}, "not four numbers"),
    "a box without end": ({"object1 x": 0, "object1 y": 1, "object1 w": "inf", "object1 h": 4}, "not four numbers"),
    "half a box": ({"object1 x": 1, "object1 y": 1}, "not four numbers"),
    "a caption that is nested": ({"captions": {"a": [1]}}, "captions is dict"),
    "NUL in the question": ({"question": "is\0it?"}, "question holds a NUL"),
}  # fmt: skip
JSON_ONLY = ("is null", "is true", "is a number", "is a fraction", "nested", "in a list", "is an object", "as a number")
UNKNOWN = {
    "awnser": "'awnser' .did you mean 'answer'.",
    "box": "'box' .did you mean 'boxes'.",
    "option": "'option' .did you mean 'options'.",
    "bbox": "'bbox' .did you mean 'boxes'.",
    "Question": "'Question' .did you mean 'question'.",
    "true_option": "'true_option' .did you mean 'true option'.",
    "image_id": "'image_id' .did you mean 'img_id'.|'image_id'",
    "central object width": "did you mean 'central object",
    "zzzz": "'zzzz';",
}
LINES = {
    "broken": (b'{"question_id": \n', "is no JSON"),
    "two on a line": (as_json(GOOD).strip() + as_json(LAST), "is no JSON.*each line is one whole object"),
    "an array": (b'["g", "11", "q?", "yes"]\n', "is list, not an object"),
    "a number": (b"3\n", "is int, not an object"),
    "null": (b"null\n", "is NoneType, not an object"),
    "text": (b'"what?"\n', "is str, not an object"),
    "single quotes": (b"{'question_id': 1}\n", "is no JSON"),
    "NaN": (b'{"question_id": "n", "img_id": "1", "question": "q", "answer": "a", "boxes": [[NaN, 0, 1, 1]]}\n', "holds NaN, which is no number"),
    "Infinity": (b'{"question_id": "n", "image_w": Infinity}\n', "holds Infinity"),
    "minus Infinity": (b'{"question_id": "n", "image_w": -Infinity}\n', "holds -Infinity"),
    "1e999": (b'{"question_id": "n", "img_id": "1", "question": "q", "answer": "a", "boxes": [[0, 0, 1e999, 1]]}\n', "no place in a picture"),
    "a field twice": (b'{"question_id": "n", "question_id": "m", "img_id": "1", "question": "q", "answer": "a"}\n', "has the field 'question_id' twice"),
    "deep": (b"[" * 100_000 + b"]" * 100_000 + b"\n", "is nested too deeply"),
    "deep field": (b'{"boxes": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "is nested too deeply"),
    "a huge number": (b'{"question_id": ' + b"9" * 5000 + b"}\n", "holds a number that is too long"),
    "Latin-1": ('{"question_id": "n", "img_id": "1", "question": "Zo\xeb?", "answer": "a"}\n'.encode("latin-1"), "holds the byte 0xEB, which is no UTF-8"),
    "half a surrogate": (b'{"question_id": "n", "img_id": "1", "question": "\\ud83d?", "answer": "a"}\n', "question holds half a character"),
    "an escaped NUL": (b'{"question_id": "n", "img_id": "1\\u0000", "question": "q", "answer": "a"}\n', "img_id holds a NUL"),
    "a raw NUL": (b'{"question_id": "n\0"}\n', "holds a NUL"),
    "a comment": (b"// the rest is mine\n", "is no JSON"),
    "a trailing comma": (b'{"question_id": "n",}\n', "is no JSON"),
    "a missing field": (b'{"question_id": "n", "img_id": "1", "question": "q"}\n', "answer is empty"),
    **{f"unknown {name}": (as_json({**GOOD, "question_id": "n", name: "x"}), f"has fields that are not known: .*{text}") for name, text in UNKNOWN.items()},
    **{name: (as_json({**GOOD, "question_id": "n", **fields}), text) for name, (fields, text) in WRONG_FIELDS.items()},
}  # fmt: skip
CSV_LINES = {
    "too many fields": (b"n,11,q?,yes,more,and more\r\n", "has 2 more fields than the header"),
    "too few fields": (b"n,11,q?\r\n", "has no field 'answer'"),
    "one field": (b"n\r\n", "has no field 'img_id'"),
    "only commas": (b",,,\r\n", "question_id, img_id, question, answer is empty"),
    "Latin-1": (b"n,11,Zo\xeb?,yes\r\n", "question holds the byte 0xEB, which is no UTF-8"),
    "Windows quotes": (b"n,11,\x93q?\x94,yes\r\n", "question holds the byte 0x93.*Windows-1252"),
    "NUL": (b"n,1\x001,q?,yes\r\n", "img_id holds a NUL"),
    "text behind a quote": (b'n,11,"is" it?,yes\r\n', "cannot be read as CSV"),
    "an over-long field": (b"n,11," + b"q" * 200_000 + b",yes\r\n", "holds a field that is too long"),
    "semicolons": (b"n;11;q?;yes\r\n", "has no field 'img_id'"),
    **{
        name: (as_csv({**GOOD, "question_id": "n", **fields}).split(b"\r\n", 1)[1], text)
        for name, (fields, text) in WRONG_FIELDS.items()
        if list({**GOOD, **fields}) == list(GOOD) and not name.endswith(JSON_ONLY) and "is null" not in name
    },
}


def test_bad_rows_of_json_lines_are_told_and_skipped(tmp_path):
    wrong = []
    for name, (content, text) in LINES.items():
        (tmp_path / "rows.jsonl").write_bytes(as_json(GOOD) + content + b"\n" + as_json(LAST))
        wrong += wrong_with(name, tmp_path / "rows.jsonl", text)
    assert wrong == []
    assert len(LINES) >= 80


def test_bad_rows_of_csv_are_told_and_skipped(tmp_path):
    wrong = []
    for name, (content, text) in CSV_LINES.items():
        head, first = as_csv(GOOD).split(b"\r\n", 1)
        (tmp_path / "rows.csv").write_bytes(head + b"\r\n" + first + content + b"\r\n" + first.replace(b"g1", b"g2"))
        wrong += wrong_with(name, tmp_path / "rows.csv", text)
    for name, (fields, text) in WRONG_FIELDS.items():  # with columns of their own, as text
        if any(map(name.endswith, JSON_ONLY)) or not set(fields) - set(GOOD) or "null" in name:
            continue
        cells = {key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in fields.items()}
        around = [{**dict.fromkeys(cells, ""), **row} for row in (GOOD, LAST)]
        row = {**GOOD, "question_id": "n", **cells}
        (tmp_path / "rows.csv").write_bytes(as_csv(around[0], row, around[1]))
        wrong += wrong_with(name, tmp_path / "rows.csv", text)
    assert "\n".join(wrong) == ""


def test_a_quote_that_is_never_closed_takes_the_rest_and_says_so(tmp_path):
    (tmp_path / "rows.csv").write_bytes(as_csv(GOOD) + b'n,11,"is it?,yes\r\n' + as_csv(LAST).split(b"\r\n", 1)[1])
    wrong = wrong_with("open quote", tmp_path / "rows.csv", "opens a quote that is never closed.*line 4", good=("g1",))
    assert wrong == []


WHOLE = {
    "empty.csv": (b"", "is empty"),
    "blank.csv": (b"\n \r\n\t\n", "is empty"),
    "mark.csv": (b"\xef\xbb\xbf", "is empty"),
    "empty.jsonl": (b"\n\n", "is empty"),
    "header.csv": (b"question_id,img_id,question,answer\r\n", "holds no usable question"),
    "utf16.csv": (as_csv(GOOD).decode().encode("utf-16"), "is UTF-16; expected UTF-8 text.*CSV UTF-8"),
    "utf16le.csv": (as_csv(GOOD).decode().encode("utf-16-le"), "is UTF-16 without a mark"),
    "utf16be.jsonl": (as_json(GOOD).decode().encode("utf-16-be"), "is UTF-16 without a mark"),
    "utf32.jsonl": (as_json(GOOD).decode().encode("utf-32"), "is UTF-32"),
    "utf16.jsonl": (as_json(GOOD).decode().encode("utf-16"), "is UTF-16"),
    "book.csv": (b"PK\x03\x04" + bytes(200), "is a workbook or an archive"),
    "packed.jsonl": (b"\x1f\x8b\x08" + bytes(200), "is compressed"),
    "table.csv": (b"PAR1" + bytes(200), "is a Parquet file"),
    "picture.csv": (b"\x89PNG\r\n\x1a\n" + bytes(200), "is a picture"),
    "semicolons.csv": (as_csv(GOOD, delimiter=";"), "Its columns are divided by ';': save it with commas"),
    "tabs.csv": (as_csv(GOOD, delimiter="\t"), "Its columns are divided by '.t'"),
    "no header.csv": (as_csv(GOOD).split(b"\r\n", 1)[1], "lacks the column.s. question_id, img_id, question, answer"),
    "twice.csv": (b"question_id,img_id,question,answer,answer\r\n1,2,q,a,b\r\n", "has the column.s. 'answer' twice"),
    "no names.csv": (b"question_id,img_id,question,answer,,\r\n1,2,q,a,,\r\n", "has the column.s. '' twice"),
    "awnser.csv": (b"question_id,img_id,question,awnser\r\n1,2,q,a\r\n", "lacks the column.s. answer.*'awnser' .did you mean 'answer'"),
    "latin.csv": ("question_id,img_id,question,answer,r\xe9sum\xe9\r\n".encode("latin-1"), "line 1: the header holds the byte 0xE9"),
    "nul.csv": (b"question_id,img_id,question,answer,a\0\r\n1,2,q,a,b\r\n", "line 1: the header holds a NUL"),
    "array.json": (json.dumps([GOOD, LAST]).encode(), "is one JSON array; expected JSON lines"),
    "pretty array.json": (json.dumps([GOOD], indent=2).encode(), "is one JSON array; expected JSON lines"),
    "pretty.json": (json.dumps(GOOD, indent=2).encode(), "is no JSON.*each line is one whole object"),
    "csv in disguise.jsonl": (as_csv(GOOD), "is no JSON"),
    "json in disguise.csv": (as_json(GOOD), "lacks the column"),
    **{
        f"{name}.csv": (f"question_id,img_id,question,answer,{name}\r\n1,2,q,a,b\r\n".encode(), f"not known: .*{text}")
        for name, text in UNKNOWN.items()
    },
}  # fmt: skip


def test_whole_files_that_are_none_are_refused_in_words(tmp_path):
    wrong = []
    for name, (content, text) in WHOLE.items():
        (tmp_path / name).write_bytes(content)
        for options in ({}, {"skip_bad": True}):
            error, _ = told(mmf.data.read_questions, tmp_path / name, **options)
            if not re.search(text, error, re.DOTALL) or error.startswith("FOREIGN"):
                wrong.append(f"{name}: {error or 'was read'}")
    assert wrong == []


@pytest.mark.parametrize("file", ["gone.csv", ".", "a\0b.csv", "", "x" * 5000, 3, None, b"a.csv"])
def test_paths_that_are_none(tmp_path, file):
    name = tmp_path / file if isinstance(file, str) and file else file
    for read in (mmf.data.read_questions, mmf.data.read_constraint_questions):
        assert re.match("there is no question file", told(unchecked(read), name)[0])


def test_further_columns_are_left_out_by_name(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(as_json({**GOOD, "note": {"mine": [1]}}))
    (tmp_path / "rows.csv").write_bytes(as_csv({**GOOD, "note": "mine", "two": 2}))
    assert "ignore=(...)" in told(mmf.data.read_questions, tmp_path / "rows.csv")[0]
    for name in ("rows.jsonl", "rows.csv"):
        (one,), _ = mmf.data.read_questions(tmp_path / name, ignore=("note", "two"))
        assert (one.key, one.answer) == ("g1", "yes")


# Pictures by id.


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    picture(0).save(tmp_path / "outside.png")
    for name in ("11.png", "sub/12.png", "13.JPG", "14.png", "14.jpg", "a b.png", "Zoë.png", "15..png"):
        picture(1).save(folder / name)
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "inner.png").symlink_to(folder / "11.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "words.png").write_text("a page, not found")
    return folder


PLACES = {
    "11": "11.png",
    "11.png": "11.png",
    "./11.png": "11.png",
    "sub/12": "sub/12.png",
    "13": "13.JPG",
    "14.png": "14.png",
    "a b": "a b.png",
    "Zoë": "Zoë.png",
    "15.": "15..png",
    "inner": "inner.png",
}
NO_PLACES = {
    "../outside": "leads out of the folder of images",
    "../outside.png": "leads out of the folder",
    "../images/11": "leads out of the folder",
    "sub/../11": "leads out of the folder",
    "sub/../../outside.png": "leads out of the folder",
    "..": "leads out of the folder",
    "/etc/passwd": "leads out of the folder",
    "/": "leads out of the folder|missing",
    "link": "leads out of the folder.*through a link",
    "link.png": "leads out of the folder.*through a link",
    "loop": "cannot be looked up|no name of a file|missing",
    "14": "is 14.jpg or 14.png: write the ending in img_id",
    "gone": "is missing in",
    "sub": "is missing",
    ".": "is missing",
    "~/11": "is missing",
    "..\\outside": "is missing",
    "file:///etc/passwd": "is missing",
    "https://example.org/a.png": "is missing",
    "x" * 5000: "cannot be looked up|no name of a file",
    "broken": "broken.png' cannot be read as an image",
    "empty": "empty.jpg' cannot be read as an image: it is an empty file",
    "words.png": "cannot be read as an image",
}


def test_ids_stay_in_their_folder(tmp_path, images):
    wrong = []
    for identity, expected in PLACES.items():
        (tmp_path / "rows.jsonl").write_bytes(as_json({**GOOD, "img_id": identity}))
        error, read = told(mmf.data.read_questions, tmp_path / "rows.jsonl", images=images)
        if error or read[0][0].image.resolve() != (images / expected).resolve():
            wrong.append(f"{identity}: {error or read}")
    for identity, text in {**NO_PLACES, str(tmp_path / "outside.png"): "leads out of the folder"}.items():
        (tmp_path / "rows.jsonl").write_bytes(as_json({**GOOD, "img_id": identity}, {**LAST, "img_id": "11"}))
        error, _ = told(mmf.data.read_questions, tmp_path / "rows.jsonl", images=images)
        if not re.search(rf"line 1: image .*({text})", error, re.DOTALL):
            wrong.append(f"{identity[:80]}: {error or 'was read'}")
        error, read = told(mmf.data.read_questions, tmp_path / "rows.jsonl", images=images, skip_bad=True)
        if error or [one.key for one in read[0]] != ["g2"]:
            wrong.append(f"{identity[:80]}, skipped: {error}")
    assert wrong == []


CONSTRAINED = {
    "key": "k1",
    "image": "11.png",
    "question": "who made this thing ?",
    "visual": {"text": "this thing", "start": 9, "end": 19},
    "answers": ["me"],
}
CONSTRAINED_BAD = {
    "an answer is a number": ({"answers": [3]}, "answers is"),
    "answers are a number": ({"answers": 3}, "answers is 3"),
    "answers are an object": ({"answers": {"a": 1}}, "answers is"),
    "an answer is blank": ({"answers": [" "]}, "answers is"),
    "the key is a number": ({"key": 4}, "key is int"),
    "the key is empty": ({"key": ""}, "key is str"),
    "the question is a list": ({"question": ["q"]}, "question is list"),
    "no image": ({"image": None}, "image is NoneType"),
    "a constraint of text": ({"visual": "this thing"}, "the constraint is 'this thing', expected text, start and end"),
    "a constraint of a list": ({"visual": ["this thing"]}, "the constraint is"),
    "a constraint too much": ({"visual": {**CONSTRAINED["visual"], "more": 1}}, "the constraint is"),
    "a place in words": ({"visual": {**CONSTRAINED["visual"], "start": "9"}}, "start and end in characters"),
    "a place that is true": ({"visual": {**CONSTRAINED["visual"], "start": True}}, "start and end in characters"),
    "a negative place": ({"visual": {**CONSTRAINED["visual"], "start": -12}}, "start and end in characters"),
    "another place": ({"visual": {**CONSTRAINED["visual"], "start": 8}}, "not the constraint 'this thing'"),
    "no constraint": ({"visual": None}, "has no constraint"),
    "textual is an object": ({"textual": {"text": "who"}}, "the constraint is"),
    "textual is a number": ({"textual": 3}, "has not the fields"),
    "an unknown field": ({"awnsers": ["me"]}, "'awnsers' .did you mean 'answers'."),
    "it leaves the folder": ({"image": "../outside.png"}, "leads out of the folder"),
    "it is absolute": ({"image": "/etc/hostname"}, "leads out of the folder"),
    "a link": ({"image": "link.png"}, "leads out of the folder"),
    "no picture": ({"image": "broken.png"}, "cannot be read as an image"),
    "the key came before": ({"key": "k1"}, "key 'k1' stands on line 1 already"),
}


def test_rows_with_constraints(tmp_path, images):
    wrong = []
    file = tmp_path / "rows.jsonl"
    for name, (fields, text) in CONSTRAINED_BAD.items():
        file.write_bytes(as_json(CONSTRAINED, {**CONSTRAINED, "key": "k2", **fields}, {**CONSTRAINED, "key": "k3"}))
        error, _ = told(mmf.data.read_constraint_questions, file, images=images)
        if not re.search(f"line 2: .*{text}", error, re.DOTALL):
            wrong.append(f"{name}: {error or 'was read'}")
        error, read = told(mmf.data.read_constraint_questions, file, images=images, skip_bad=True)
        if error or [one.key for one in read[0]] != ["k1", "k3"]:
            wrong.append(f"{name}, skipped: {error}")
    for name, (content, text) in LINES.items():
        if name in WRONG_FIELDS or not re.match("is |holds |has the field", text):
            continue  # what a field means differs
        file.write_bytes(as_json(CONSTRAINED) + content + b"\n" + as_json({**CONSTRAINED, "key": "k3"}))
        error, _ = told(mmf.data.read_constraint_questions, file)
        if not re.search(f"line 2: {text}", error, re.DOTALL):
            wrong.append(f"{name}: {error or 'was read'}")
    for name, (content, text) in WHOLE.items():
        (tmp_path / name).write_bytes(content)
        error, _ = told(mmf.data.read_constraint_questions, tmp_path / name)
        if (
            not error
            or error.startswith("FOREIGN")
            or not re.search(f"{text}|lacks the column|holds no usable|line 1", error, re.DOTALL)
        ):
            wrong.append(f"{name}: {error or 'was read'}")
    assert wrong == []


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ({"k1": 3}, "the answer of 'k1' is 3"),
        ({"k1": ["a", 3]}, "the answer of 'k1' is"),
        ({"k1": {"a": 1}}, "the answer of 'k1' is"),
        (b'{"k1": NaN}', "holds NaN"),
        (b'{"k1": "a", "k1": "b"}', "has the field 'k1' twice"),
        (b"", "is empty"),
        (b"\xff\xfe{\0", "is UTF-16"),
        (b'[{"subject": "s", "attribute": 3}]', "attribute is 3"),
        (b'{"k1": ["a", null]}', "the answer of 'k1' is"),
        (b"[" * 100_000, "nested too deeply|cannot be read|no JSON"),
        (b"3", "neither a mapping"),
    ],
)  # fmt: skip
def test_answers_that_are_none(tmp_path, answers, text):
    file, other = tmp_path / "rows.jsonl", tmp_path / "answers.json"
    file.write_bytes(as_json(CONSTRAINED))
    if isinstance(answers, bytes):
        other.write_bytes(answers)
        answers = other
    assert re.search(text, told(unchecked(mmf.data.read_constraint_questions), file, answers=answers)[0])


POPE = {"question_id": 1, "image": "11.png", "text": "Is there a dog?", "label": "yes"}
BENCHMARK_BAD = {
    "no text": ({"text": ["Is it?"]}, "text is list, not text"),
    "another label": ({"label": ["yes"]}, "the label is"),
    "the id came before": ({"question_id": 0}, "question '0' came before"),
    "it leaves the folder": ({"image": "../outside.png"}, "leads out of the folder"),
    "it is absolute": ({"image": "/etc/hostname"}, "leads out of the folder"),
    "a picture that is none": ({"image": "gone.png"}, "there is no picture"),
}


def test_rows_of_benchmarks(tmp_path, images):
    wrong = []
    for name, (fields, text) in BENCHMARK_BAD.items():
        (tmp_path / "pope.json").write_bytes(as_json({**POPE, "question_id": 0}, {**POPE, **fields}))
        error, _ = told(lambda file: mmf.data.read_benchmark("pope", file, images), tmp_path / "pope.json")
        if not re.search(f"pope, row 1: .*{text}", error):
            wrong.append(f"{name}: {error or 'was read'}")
    choice = {"question_id": "q", "image": "11.png", "question": "What?", "choices": ["a", "b"]}
    for number in (-1, 2, True, 0.5, "x", None):
        error, _ = told(
            lambda rows: mmf.data.read_benchmark("aokvqa", rows), [{**choice, "correct_choice_idx": number}]
        )
        if "not in the published format" not in error:
            wrong.append(f"choice {number}: {error or 'was read'}")
    for limit in (0, -1):
        error, _ = told(lambda rows: mmf.data.read_benchmark("pope", rows, limit=limit), [POPE])  # noqa: B023
        if "limit is how many questions" not in error:
            wrong.append(f"limit {limit}: {error or 'was read'}")
    (tmp_path / "pope.json").write_bytes(as_json({**POPE, "text": "Is\u2028it\x85?"}))
    assert mmf.data.read_benchmark("pope", tmp_path / "pope.json").questions[0].question == "Is\u2028it\x85?"
    assert wrong == []


# What a row may hold is read as another reader reads it.

TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1).filter(str.strip)


@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_any_text_comes_back(tmp_path_factory, rows):
    folder = tmp_path_factory.getbasetemp()
    made = [{**GOOD, "question_id": f"q{i}", "question": q, "answer": a} for i, (q, a) in enumerate(rows)]
    # The csv module writes a lone carriage return bare, and pandas takes it for the end of a line.
    content = as_csv(*made, quoting=csv.QUOTE_ALL)
    (folder / "any.csv").write_bytes(content)
    (folder / "any.jsonl").write_bytes(as_json(*made))
    for name in ("any.csv", "any.jsonl"):
        read, _ = mmf.data.read_questions(folder / name)
        assert [(one.question, one.answer) for one in read] == rows
    frame = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    assert list(zip(frame["question"], frame["answer"], strict=True)) == rows


@given(content=st.binary(max_size=200) | st.text(string.printable, max_size=200).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    for name in ("bytes.csv", "bytes.jsonl"):
        (folder / name).write_bytes(content)
        for read in (mmf.data.read_questions, mmf.data.read_constraint_questions):
            for skip_bad in (True, False):
                assert not told(read, folder / name, skip_bad=skip_bad)[0].startswith("FOREIGN")


# One bad row never ends a run.


def test_rows_that_no_prompt_can_be_made_of_are_skipped(tmp_path):
    graph = tiny_graph()
    picture(0).save(tmp_path / "whole.png")
    picture(0).save(tmp_path / "half.jpg")
    content = (tmp_path / "half.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) * 9 // 10])
    Image.new("RGB", (900, 3)).save(tmp_path / "long.png")
    Image.new("I;16", (8, 8)).save(tmp_path / "deep.png")
    asked = {"question": "is there a ring ?", "answer": "yes"}
    rows = [
        {"question_id": 1, "img_id": "whole", **asked},
        {"question_id": 2, "img_id": "half", **asked},
        {"question_id": 3, "img_id": "long", **asked},
        {"question_id": 4, "img_id": "deep", **asked},
        {"question_id": 5, "img_id": "whole", **asked, "question": "is there an umbrella ?"},
        {"question_id": 6, "img_id": "whole", **asked, "boxes": [[70, 0, 80, 8]]},
        {"question_id": 7, "img_id": "whole", **asked, "boxes": [[0, 0, 8, 8]]},
    ]
    (tmp_path / "rows.jsonl").write_bytes(as_json(*rows))
    questions, _ = mmf.data.read_questions(tmp_path / "rows.jsonl", tmp_path, skip_bad=True)
    bad = []
    prompts = mmf.data.prompts_of(graph, questions, bad=bad)
    assert [prompt.key for prompt in prompts] == ["1", "7"]
    expected = ("cannot be read", "times as long", "is of mode I;16", "does not know 'an', 'umbrella'", "lies outside")
    for number, (one, text) in enumerate(zip(bad, expected, strict=True), 2):
        assert one.startswith(f"question {number} (line {number}): ")
        assert text in one


# Each table can fail.


@pytest.mark.parametrize(
    ("where", "name", "planted", "table"),
    [
        (_row_files, "unknown", lambda *_: "", "unknown box"),
        (_question_files, "_options", lambda row: None, "three options"),
        (_question_files, "_boxes", lambda row: (), "no width"),
        (_question_files, "_text", lambda row, name: str(row.get(name) or ""), "answer is a number"),
        (_row_files, "bad_text", lambda text: "", "Latin-1"),
        (_user_files, "_no_number", float, "NaN"),
        (_user_files, "_once", dict, "a field twice"),
    ],
)
def test_the_tables_can_fail(tmp_path, monkeypatch, where, name, planted, table):
    content, text = LINES[table]
    (tmp_path / "rows.jsonl").write_bytes(as_json(GOOD) + content + b"\n" + as_json(LAST))
    assert wrong_with(table, tmp_path / "rows.jsonl", text) == []
    monkeypatch.setattr(where, name, planted)
    assert wrong_with(table, tmp_path / "rows.jsonl", text)


def test_lines_by_splitlines_are_told(tmp_path, monkeypatch):
    """The planted fault of the old reader: a line mark of Unicode ends a line."""
    (tmp_path / "rows.jsonl").write_bytes(as_json({**GOOD, "question": "Is\u2028it?"}))
    assert told(mmf.data.read_questions, tmp_path / "rows.jsonl")[0] == ""
    real = _row_files.read_text
    monkeypatch.setattr(_row_files, "read_text", lambda file: "\n".join(real(file).splitlines()))
    assert "is no JSON" in told(mmf.data.read_questions, tmp_path / "rows.jsonl")[0]
