"""The command line as a person uses it, in process, on nano."""

import json
import re

import pandas as pd
import pytest

import nnsight_mmflow as mmf
from nnsight_mmflow.command_line import main


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The files that `mmflow nano samples` writes."""
    folder = tmp_path_factory.mktemp("world")
    assert run("nano", "samples", "--out", folder) == 0
    return folder


def test_samples_are_a_sheet_and_files_to_use(world):
    assert (world / "contact_sheet.png").stat().st_size > 50_000
    assert len(list((world / "images").glob("*.png"))) == len((world / "questions.jsonl").read_text().splitlines())


def test_flow_writes_picture_table_result_and_report(tmp_path, capsys):
    assert run("flow", "--limit", 6, "--window", 1, 3, "--out", tmp_path) == 0
    told = capsys.readouterr().err
    assert "6 prompt(s) to run" in told
    table = pd.read_csv(tmp_path / "flow.csv")
    assert set(table["window"]) == {1, 3}
    assert set(table["edge"]) >= {"image->last", "object->question", "true_option->last"}
    assert (tmp_path / "flow.png").stat().st_size > 20_000
    report = (tmp_path / "report.md").read_text()
    assert f"{table['prompt'].nunique()} of 6 prompts counted" in report
    assert "centres 0 to 1 all contain layer 0" in report
    loaded = mmf.results.FlowResult.load(tmp_path)
    assert len(loaded.to_frame()) == len(table)
    before = (tmp_path / "prompts.jsonl").read_bytes()
    assert run("flow", "--limit", 6, "--window", 1, 3, "--out", tmp_path) == 0
    assert "0 prompt(s) to run, 6 done already" in capsys.readouterr().err
    assert (tmp_path / "prompts.jsonl").read_bytes() == before
    assert run("flow", "--limit", 6, "--window", 9, "--out", tmp_path) == 2
    assert "windows was [1, 3], is [9]" in capsys.readouterr().err


def test_flow_on_files_and_on_one_picture(tmp_path, world, capsys):
    data = ("--data", world / "questions.jsonl", "--images", world / "images")
    assert run("flow", *data, "--limit", 5, "--edges", "image->last", "--window", 3, "--out", tmp_path / "a") == 0
    assert set(pd.read_csv(tmp_path / "a" / "flow.csv")["edge"]) == {"image->last"}
    image = sorted((world / "images").glob("*.png"))[0]
    one = ("--image", image, "--question", "what color is the diamond ?", "--window", 1)
    assert run("flow", *one, "--out", tmp_path / "b") == 0
    assert len(pd.read_csv(tmp_path / "b" / "flow.csv")) == 40  # ten layers, the paper's four edges
    assert run("flow", *one, "--answer", "nonsense", "--out", tmp_path / "c") == 2
    assert "none of 1 prompts was answered correctly" in capsys.readouterr().err


def test_bad_rows_stop_the_run_unless_skipped(tmp_path, world, capsys):
    lines = (world / "questions.jsonl").read_text().splitlines()[:3]
    broken = json.dumps({**json.loads(lines[0]), "img_id": "gone"})
    (tmp_path / "q.jsonl").write_text("\n".join([lines[0], broken, *lines[1:]]))
    data = (
        "flow",
        "--data",
        tmp_path / "q.jsonl",
        "--images",
        world / "images",
        "--window",
        3,
        "--out",
        tmp_path / "o",
    )
    assert run(*data) == 2
    assert "line 2: image 'gone' is missing in" in capsys.readouterr().err
    assert run(*data, "--skip-bad") == 0
    assert "skipped: line 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("flow", "--edges", "question->image"), "would change nothing"),
        (("flow", "--edges", "photo->last"), "'photo' is not known"),
        (("flow", "--image", "x.png"), "--image and --question belong together"),
        (("flow", "--image", "x.png", "--question", "what ?"), "there is no image file 'x.png'"),
        (("flow", "--data", "q.csv"), "--data needs --images DIR"),
        (("flow", "--data", "q.csv", "--image", "x", "--question", "y"), "--data and --image exclude each other"),
        (("flow", "--model", "no/such"), "no processor can be loaded from 'no/such'"),
        (("lens", "--image", "x.png", "--question", "what ?"), "give --answer"),
        (("flow", "--limit", "100000"), "100000 questions of"),
    ],
)
def test_errors_are_one_message_and_status_2(arguments, text, capsys, tmp_path):
    assert run(*arguments, "--out", tmp_path) == 2
    told = capsys.readouterr().err
    assert text in told
    assert "Traceback" not in told


def test_a_word_that_nano_does_not_know(world, capsys):
    image = next((world / "images").glob("*.png"))
    assert run("spans", "nano", image, "what color is the umbrella ?") == 2
    told = capsys.readouterr().err
    assert "does not know 'umbrella'. It knows 168 words" in told
    assert " zorvia" in told


def test_spans_and_lens(world, tmp_path, capsys):
    image = next((world / "images").glob("*.png"))
    assert run("spans", "nano", image, "what color is the ring ?", "--out", tmp_path / "spans.png") == 0
    assert re.search(r"image +3-66 +64", capsys.readouterr().out)
    assert run("lens", "--limit", 2, "--out", tmp_path) == 0
    assert (tmp_path / "lens.png").stat().st_size > 20_000
    assert set(pd.read_csv(tmp_path / "lens.csv")["site"]) == {"resid", "attn", "mlp"}


def test_eval_prints_a_table(capsys):
    assert run("nano", "eval", "--limit", 5) == 0
    assert re.search(r"\| QueryAttr \| \d+\.\d% \|", capsys.readouterr().out)


def test_trace_of_nano_and_of_a_file_of_constraints(world, tmp_path, capsys):
    assert run("trace", "--limit", 2, "--out", tmp_path / "nano") == 0
    told = capsys.readouterr().err
    assert told.count("control, runs with the same answer") == 5
    report = (tmp_path / "nano" / "report.md").read_text()
    for text in ("corruption: the flag of", "phrase", "2 of 2 prompts counted"):
        assert text in report
    for name in ("by_flag", "by_phrase", "by_name", "two_constraints_by_flag", "two_constraints_by_season"):
        assert (tmp_path / "nano" / name / "causal_trace.png").stat().st_size > 20_000
        assert (tmp_path / "nano" / name / "causal_trace.csv").exists()
        assert f"]({name}/causal_trace.png)" in report
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = mmf.nano.constraint_questions()[:3]
    lines = [",question,subject,main_entity,image_url"]
    for number, row in enumerate(rows):
        row.image.save(folder / f"{number}.png")
        lines.append(f"{number},{row.question},{row.subject},this place,./{number}.png")
    lines.append("3,what is the capital of this place ?,oberon,that place,./0.png")
    (tmp_path / "known.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "answers.json").write_text(json.dumps({row.subject: row.answers[0] for row in rows[:1]}))
    common = ("--data", tmp_path / "known.csv", "--images", folder, "--out", tmp_path / "out", "--all")
    assert run("trace", *common) == 2
    assert "line 5: the constraint 'that place' does not stand" in capsys.readouterr().err
    assert run("trace", *common, "--skip-bad") == 2
    assert "no question of" in capsys.readouterr().err
    assert run("trace", *common, "--skip-bad", "--phrase", "place oberon") == 0
    assert "skipped: line 5" in capsys.readouterr().err
    assert set(pd.read_csv(tmp_path / "out" / "causal_trace.csv")["prompt"]) >= {"known-0", "known-1"}


def test_edit_of_nano_and_of_a_fact_of_yours(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nnsight_mmflow.command_line.edit.OTHERS", 4)
    assert run("edit", "--limit", 2, "--control-layers", 9, "--out", tmp_path / "nano") == 0
    assert "efficacy generalisation specificity" in re.sub(" +", " ", capsys.readouterr().err)
    report = (tmp_path / "nano" / "report.md").read_text()
    assert "| edit, layer 4 | efficacy | the prompt itself | " in report
    assert "| fine-tuning, layer 4 | " in report
    for name in ("one_at_a_time/edit_report.png", "one_at_a_time/layers.png", "2_at_once/edit_report.png"):
        assert (tmp_path / "nano" / name).stat().st_size > 10_000
        assert f"]({name})" in report
    picture = tmp_path / "flag.png"
    mmf.nano.constraint_questions()[0].image.save(picture)
    asked = ("--image", picture, "--question", "what is the capital of this place ?", "--constraint", "this place")
    assert run("edit", *asked, "--out", tmp_path / "own") == 2
    assert "--target, --layers missing" in capsys.readouterr().err
    assert run("edit", *asked, "--target", "yarm", "--layers", 4, "--out", tmp_path / "own") == 0
    assert "1 of 1 facts answered anew" in capsys.readouterr().err
    edit = mmf.results.EditResult.load(tmp_path / "own", mmf.load("nano"))
    assert edit.to_frame()["target"].tolist() == ["yarm"]
