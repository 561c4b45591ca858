"""The command line: one sentence and exit status 2 for what is wrong, the traceback with --debug, and told early."""

import re

import pytest

import nnsight_mmflow as mmf
from nnsight_mmflow import command_line
from nnsight_mmflow.command_line import COMMANDS, main, shared
from nnsight_mmflow.command_line.experiments import EXPERIMENTS
from nnsight_mmflow.spans.grammar import NAMES, check_expression
from nnsight_mmflow.spans.row_spans import Spans

PICTURE = "{picture}"
EARLY = [  # told without the model
    ("flow --edges image", 'an edge is "source->target"'),
    ("flow --edges photo->last", "'photo' is not known"),
    ("flow --edges image->last->last", 'an edge is "source->target"'),
    ("flow --edges image->", 'an edge is "source->target"'),
    ("flow --edges image[0->last", "is no span expression"),
    ("flow --edges image|photo->last", "'photo' is not known"),
    ("flow --edges image.bass->last", "'image.bass' is not known"),
    ("flow --edges image[x]->last", "is not known"),
    ("flow --edges image+question->last", "is not known"),
    ("flow --edges len(image)->last", "is not known"),
    ("flow --window 0", "--window: 0 is less than 1"),
    ("flow --window 3 -1", "--window: -1 is less than 1"),
    ("flow --control -1", "--control: -1 is less than 0"),
    ("flow --controls -1", "--controls: -1 is less than 0"),
    ("flow --template vicuna", "--template vicuna: chat, vicuna_v1 or llava_llama_3"),
    ("flow --data nosuch.csv --images .", "nosuch.csv"),
    ("flow --limit 100000", "100000 questions of"),
    ("lens --data {text} --images nosuch", "nosuch"),
    ("trace --data nosuch.csv --blank", "nosuch.csv"),
    ("trace --data {questions} --images {folder} --blank --answers a.json", "--answers says nothing to"),
    ("trace --data {questions} --blank", "--data needs --images DIR"),
    ("edit --data nosuch.csv --layers 4", "nosuch.csv"),
    ("edit --data nosuch.csv --layers 99", "layers [99] do not exist; there are 10"),
    ("skip-flow --spans image photo", "'photo' is not known"),
    ("word-overlap --at photo", "'photo' is not known"),
    ("contributions --source photo", "'photo' is not known"),
    ("contributions --target photo", "'photo' is not known"),
    ("attribution-patching --spans photo", "'photo' is not known"),
    ("knockout-by-token --source photo", "'photo' is not known"),
    ("knockout-by-patch --target text(", "is no span expression"),
    ("knockout-by-patch --layers 3 99", "layers [99] do not exist; there are 10"),
    ("lens-by-patch --layers 10", "layers [10] do not exist"),
    ("disruption --layers 10", "layers [10] do not exist"),
    ("attention-and-effect --layers 10", "layers [10] do not exist"),
    ("flow --image nosuch.png --question what", "there is no image file 'nosuch.png'"),
    ("flow --image {text} --question what", "cannot be read as an image"),
    ("flow --image {folder} --question what", "cannot be read as an image"),
    ("lens --at photo", "'photo' is not known"),
    ("lens --at text(", "is no span expression"),
    ("lens --at objects", "'objects' is not known"),
    ("attention-and-effect --source image.bax((0,0,9,9))", "is not known"),
    ("attention-and-effect --image {picture} --question what", "what of the picture is read?"),
    ("trace --sites foo", "--sites foo"),
    ("trace --sites mlp foo", "--sites foo"),
    ("trace --spans photo", "'photo' is not known"),
    ("trace --spans image ~~photo", "'photo' is not known"),
    ("trace --window 0", "--window: 0 is less than 1"),
    ("trace --image nosuch.png --question what --blank", "there is no image file 'nosuch.png'"),
    ("trace --image {picture} --question what --other-image nosuch.png", "there is no image file 'nosuch.png'"),
    ("edit --layers 99", "layers [99] do not exist; there are 10"),
    ("edit --layers 3 -11", "layers [-11] do not exist"),
    ("edit --controls 10", "layers [10] do not exist"),
    ("edit --control-layers 10", "layers [10] do not exist"),
    ("edit --together 0", "--together: 0 is less than 1"),
    ("edit --bound -1", "--bound -1"),
    ("edit --bound nan", "--bound nan"),
    ("edit --bound inf", "--bound inf"),
    ("prune --k1 99", "--k1 99: tokens can leave before layers 1 to 9"),
    ("prune --k1 0", "--k1 0"),
    ("prune --k1 -1", "--k1 -1"),
    ("prune --k2 10", "--k2 10"),
    ("prune --k1 5 --k2 5", "--k2 5 is not behind --k1 5"),
    ("prune --methods foo", "there is no method 'foo'"),
    ("prune --methods fastv foo", "there is no method 'foo'"),
    ("prune --max-new-tokens 0", "--max-new-tokens: 0 is less than 1"),
    ("prune --timed -1", "--timed: -1 is less than 0"),
    ("spans nano nosuch.png what", "there is no image file 'nosuch.png'"),
    ("nano train --steps 0", "--steps: 0 is less than 1"),
    ("nano train --seed -1", "--seed: -1 is less than 0"),
]
LOADING = [  # told by loading
    ("flow --model no/such --image {picture} --question what", "no processor can be loaded from 'no/such'"),
    ("flow --device cuda", "there is no CUDA here"),
    ("flow --device gpu", "is no device"),
    ("lens --dtype float99", "is no number type"),
    ("check nosuch", "no processor can be loaded from 'nosuch'"),
    ("check {folder}", "no processor can be loaded"),
    ("nano eval --model {folder}", "no processor can be loaded"),
    ("spans {folder} {picture} what", "no processor can be loaded"),
    ("trace --model {folder} --image {picture} --question what --blank", "no processor can be loaded"),
]
RUNNING = [  # told by the prompts
    ("flow --limit 2 --edges question->image", "would change nothing"),
    ("flow --limit 2 --edges image[3]->last", "image[3] was asked for"),
    ("lens --limit 2 --at image.tile[0]", "image has no tiles"),
    ("lens --image {picture} --question umbrella --answer red", "does not know 'umbrella'"),
    ("lens --limit 2 --at text('zzz')", "'zzz' does not occur"),
    ("spans nano {picture} umbrella", "does not know 'umbrella'"),
    ("flow --image {picture} --question umbrella", "does not know 'umbrella'"),
]
PARSED = [  # told by the parser
    ("flow --window x", "'x' is no whole number"),
    ("flow --window", "expected at least one argument"),
    ("flow --engine fast", "invalid choice: 'fast'"),
    ("flow --attention flash", "invalid choice: 'flash'"),
    ("flow --nosuch 3", "unrecognized arguments: --nosuch 3"),
    ("flow --limit x", "'x' is no whole number"),
    ("flow --control 1.5", "'1.5' is no whole number"),
    ("nosuch", "invalid choice: 'nosuch'"),
    ("", "the following arguments are required: COMMAND"),
    ("edit --layers x", "invalid int value: 'x'"),
    ("edit --bound x", "invalid float value: 'x'"),
    ("edit --settings foo", "invalid choice: 'foo'"),
    ("prune --mode foo", "invalid choice: 'foo'"),
    ("saliency --scope foo", "invalid choice: 'foo'"),
    ("disruption --ways foo", "invalid choice: 'foo'"),
    ("skip-flow --part foo", "invalid choice: 'foo'"),
    ("skip_flow", "invalid choice: 'skip_flow'"),
    ("saliency --stage foo", "invalid choice: 'foo'"),
    ("spans nano", "the following arguments are required: IMAGE, QUESTION"),
    ("spans nano a.png what --box 1 2 3", "expected 4 arguments"),
    ("check", "the following arguments are required: MODEL"),
    ("nano foo", "invalid choice: 'foo'"),
    ("trace --engine fast", "invalid choice: 'fast'"),
]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    base = tmp_path_factory.mktemp("named")
    mmf.nano.samples(1)[0].image.save(base / "picture.png")
    (base / "text.png").write_text("this is no picture")
    (base / "folder").mkdir()
    (base / "questions.csv").write_text("question_id,img_id,question,answer\n1,picture,what ?,red\n")
    return {name.partition(".")[0]: base / name for name in ("picture.png", "text.png", "folder", "questions.csv")}


def run(line, names, capsys, out):
    """(status, what stands on standard error, without progress bars)."""
    arguments = [part.format(**names) if "{" in part else part for part in line.split()]
    if arguments and arguments[0] in EXPERIMENTS:
        arguments += ["--out", str(out)]
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code
    told = [part for part in re.split(r"[\r\n]", capsys.readouterr().err) if part.strip()]
    return status, [part for part in told if not re.search(r"\d+%\|| \w+\(s\) to run;|^lens: ", part)]


def failing(rows, names, capsys, out):
    failed = []
    for line, wanted in rows:
        try:
            status, told = run(line, names, capsys, out)
        except Exception as error:
            failed.append(f"{line}: ended in {type(error).__name__}: {error}")
            continue
        start = f"mmflow {line.split()[0]}: " if line and line.split()[0] in COMMANDS else "mmflow: "
        if status != 2 or len(told) != 1 or wanted not in told[0] or not told[0].startswith(("mmflow: ", start)):
            failed.append(f"{line}: {status}, {told}")
    return failed


def test_what_is_wrong_whatever_the_model_says_is_told_before_it_is_loaded(names, capsys, tmp_path, monkeypatch):
    def loads(*given, **more):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(mmf, "load", loads)
    failed = failing(EARLY, names, capsys, tmp_path)
    assert not failed, "\n".join(failed)


def test_the_table_of_what_is_told_early_can_fail(names, capsys, tmp_path, monkeypatch):
    def loads(*given, **more):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(mmf, "load", loads)
    monkeypatch.setattr(shared, "check_early", lambda given: None)
    assert len(failing(EARLY, names, capsys, tmp_path)) > 30  # the parser tells the rest


def test_other_wrong_lines_are_one_sentence_and_status_2(names, capsys, tmp_path):
    failed = failing(LOADING + RUNNING + PARSED, names, capsys, tmp_path)
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("arguments", [["--debug", "prune", "--k1", "99"], ["prune", "--k1", "99", "--debug"]])
def test_debug_shows_the_traceback(names, capsys, tmp_path, arguments):
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("Traceback (most recent call last)")
    assert told.splitlines()[-1].startswith("mmflow prune: --k1 99")


@pytest.fixture
def ends(monkeypatch, capsys, tmp_path):
    """Runs `mmflow flow`, which ends in what is given; returns its status and what it wrote."""

    def made(error, *more):
        def run(given):
            raise error

        from nnsight_mmflow.command_line import flow

        monkeypatch.setattr(flow, "run", run)
        status = command_line.main(["flow", "--out", str(tmp_path), *more])
        return status, capsys.readouterr().err

    return made


def test_what_was_not_foreseen_is_one_sentence_too(ends):
    status, told = ends(ZeroDivisionError("division by zero"))
    assert status == 2
    assert told == (
        "mmflow flow: went wrong in a way that was not foreseen (ZeroDivisionError: division by zero). Nothing was"
        " finished. --debug shows where.\n"
    )
    status, told = ends(ZeroDivisionError("division by zero"), "--debug")
    assert "Traceback" in told
    assert "in run" in told


def test_a_long_message_is_its_first_and_last_line(ends):
    _, told = ends(mmf.ServerError("the job failed on the server. It says:\nTraceback\n  a\n  b\nValueError: no"))
    assert told == "mmflow flow: the job failed on the server. It says: ValueError: no\n"


def test_ctrl_c_ends_with_130_and_says_what_is_kept(ends, tmp_path):
    status, told = ends(KeyboardInterrupt())
    assert (status, told) == (130, "mmflow flow: stopped. Nothing was finished.\n")
    (tmp_path / "prompts.jsonl").write_text("{}\n")
    status, told = ends(KeyboardInterrupt())
    assert told == (
        f"mmflow flow: stopped. What is finished is kept in {tmp_path}: the same command goes on from there.\n"
    )


def test_a_full_disk_says_what_is_kept(ends, tmp_path):
    status, told = ends(OSError(28, "No space left on device", str(tmp_path / "flow.png")))
    assert status == 2
    assert "No space left on device" in told
    assert len(told.splitlines()) == 1


def test_a_pipe_that_nobody_reads_is_quiet(ends):
    assert ends(BrokenPipeError()) == (141, "")


EXPRESSIONS = [
    *NAMES,
    "image[0]",
    "~image",
    "question - text('color')",
    "image | question & last",
    "image[0].base",
    "text('color', 0)",
    "(image)",
    " image ",
    "image - ~last",
]
NONE = [
    "photo",
    "image.bass",
    "image + last",
    "image @ last",
    "len(image)",
    "3",
    "'image'",
    "image[last]",
    "image[1:2]",
]
NONE += ["image[True]", "-image", "not image", "image or last", "lambda: image", "image.tile", "image if last else all"]
NONE += [
    "",
    " ",
    "image[1:2]",
    "image |",
    "text(",
    "a\x00b",
    "image[0",
    "image..base",
    "image->last",
    "[image]",
    "{image}",
    "*image",
]


def test_the_grammar_says_what_spans_say():
    """Where one prompt answers an expression, it can be read before there is a prompt; and the other way round."""
    from nnsight_mmflow._errors import SpanError

    spans = mmf.nano.prompts(mmf.load("nano"), 1)[0].spans
    assert isinstance(spans, Spans)
    for expression in EXPRESSIONS:
        assert len(spans[expression]) >= 0
        check_expression(expression)
    for expression in NONE:
        with pytest.raises(SpanError):
            spans[expression]
        with pytest.raises(SpanError):
            check_expression(expression)
