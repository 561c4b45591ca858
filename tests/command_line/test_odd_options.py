"""Options of the command line: what would be ignored is refused with both names, and counts have a least."""

import json
import re

from kit.tiny import picture
from PIL import Image

from nnsight_mmflow.command_line import build_parser, main
from nnsight_mmflow.command_line import options as _options
from nnsight_mmflow.command_line.experiments import EACH, EXPERIMENTS, PROMPTS

IMAGE, QUESTION = ("--image", "x.png"), ("--question", "what ?")
ONE, DATA = (*IMAGE, *QUESTION), ("--data", "q.csv", "--images", ".")
ASKED = tuple(name for name, one in EXPERIMENTS.items() if one.takes in (PROMPTS, EACH))
JUDGED = ("flow", "skip-flow")
IGNORED = [
    *[((name, "--answer", "red"), "--answer says nothing without --image") for name in ASKED],
    *[((name, "--images", "."), "--images says nothing without --data") for name in ASKED],
    *[((name, "--skip-bad"), "--skip-bad says nothing without --data") for name in ASKED],
    *[((name, *ONE, "--skip-bad"), "--skip-bad says nothing without --data") for name in ASKED],
    *[((name, *ONE, "--images", "."), "--images says nothing without --data") for name in ASKED],
    *[((name, *DATA, "--answer", "red"), "--answer says nothing without --image") for name in ASKED],
    *[((name, *DATA, *ONE), "--data and --image exclude each other") for name in ASKED],
    *[((name, *ONE, "--limit", "3"), "--limit and --image exclude each other: that is one question") for name in ASKED],
    *[((name, "--trusted"), "--trusted says nothing without --remote") for name in EXPERIMENTS],
    *[((name, "--workers", "2", "--remote"), "--workers and --remote exclude each other") for name in EXPERIMENTS],
    *[((name, "--ray-address", "auto"), "--ray-address says nothing without --workers") for name in EXPERIMENTS],
    (("check", "nano", "--trusted"), "--trusted says nothing without --remote"),
    (("spans", "nano", "x.png", "what ?", "--trusted"), "--trusted says nothing without --remote"),
    *[((name, *ONE, "--all"), "--all says nothing without --answer") for name in JUDGED],
    *[((name, *IMAGE), "--image and --question belong together") for name in ASKED],
    *[((name, *QUESTION), "--image and --question belong together") for name in ASKED],
    *[((name, "--data", "q.csv"), "--data needs --images DIR") for name in ASKED],
    *[((name, *ONE), "give --answer") for name in ("lens", "saliency", "prune")],
    (("prune", "--workers", "2", "--timed", "3"), "--workers and --timed 3 exclude each other"),
    (("attention-and-effect", *ONE), "what of the picture is read? --source SPAN"),
    (("prune", "--k1", "3", "--methods", "visionzip"), "--k1 says nothing without one of --methods fastv"),
    (("prune", "--k2", "3", "--methods", "fastv", "fastervlm"), "--k2 says nothing without one of --methods himap"),
    *[
        ((name, *given), text)
        for name in ("trace", "attribution-patching")
        for given, text in (
            (QUESTION, "--question says nothing without --image"),
            (("--answer", "red"), "--answer says nothing without --image"),
            (("--other-image", "y.png"), "--other-image says nothing without --image or --data"),
            (("--blank",), "--blank says nothing without --image or --data"),
            (("--constraint", "cup"), "--constraint says nothing without --image or --data"),
            (("--template", "chat"), "--template says nothing without --image or --data"),
            (("--instruction", "short"), "--instruction says nothing without --image or --data"),
            (("--pad-to-square",), "--pad-to-square says nothing without --image or --data"),
            (("--phrase", "a mug"), "--phrase says nothing without --constraint or --data"),
            (("--token", "mug"), "--token says nothing without --constraint or --data"),
            ((*ONE, "--phrase", "a mug", "--blank"), "--phrase says nothing without --constraint"),
            ((*ONE, "--constraint", "cup", "--phrase", "a", "--token", "b"), "--phrase and --token exclude"),
            (("--data", "q.csv", "--phrase", "a", "--token", "b"), "--phrase and --token exclude"),
            (("--data", "q.csv", "--phrase", "a", "--blank"), "--phrase and --blank exclude each other"),
            (("--data", "q.csv", "--token", "a", "--other-image", "x.png"), "--token and --other-image exclude"),
            (("--data", "q.csv", "--blank", "--other-image", "x.png"), "give one of --other-image FILE, --blank"),
            (("--data", "q.csv", "--constraint", "cup"), "--constraint needs --phrase or --token"),
            (("--images", "."), "--images says nothing without --data"),
            (("--answers", "a.json"), "--answers says nothing without --data"),
            (("--skip-bad",), "--skip-bad says nothing without --data"),
            ((*ONE, "--blank", "--answers", "a.json"), "--answers says nothing without --data"),
            (("--data", "q.csv", "--answer", "red"), "--answer says nothing without --image"),
            (("--data", "q.csv", *ONE), "--data and --image exclude each other"),
            ((*ONE, "--blank", "--limit", "2"), "--limit and --image exclude each other"),
            (ONE, "give one of --other-image FILE, --blank, or --constraint TEXT"),
            ((*ONE, "--constraint", "cup"), "--constraint needs --phrase or --token"),
        )
    ],
    *[
        (("edit", *given), f"{given[0]} says nothing without --image")
        for given in (QUESTION, ("--constraint", "cup"), ("--target", "mug"), ("--instruction", "x"), ("--pad-to-square",))
    ],
    *[
        (("edit", *ONE, *given), f"{given[0]} and --image exclude each other: it is for nano's own facts")
        for given in (("--together", "2"), ("--control-layers", "3"), ("--controls", "3"), ("--bound", "0.1"))
    ],
    (("edit", *ONE, "--limit", "2"), "--limit and --image exclude each other: that is one question"),
    (("edit", *ONE, "--workers", "2"), "--workers and --image exclude each other: one fact is one edit"),
    (("edit", "--data", "q.csv", *ONE), "--data and --image exclude each other"),
    (("edit", "--data", "q.csv"), "--layers missing"),
    (("edit", "--answers", "a.json"), "--answers says nothing without --data"),
    *[(("nano", "train", *given), f"{given[0]} says nothing to `mmflow nano train`") for given in (("--limit", "3"), ("--model", "x"))],
    *[
        (("nano", "eval", *given), f"{given[0]} says nothing to `mmflow nano eval`, which takes --model, --limit")
        for given in (("--out", "x"), ("--seed", "0"), ("--steps", "3"), ("--device", "cpu"))
    ],
    *[
        (("nano", "samples", *given), f"{given[0]} says nothing to `mmflow nano samples`")
        for given in (("--limit", "3"), ("--model", "x"), ("--seed", "1"), ("--steps", "3"), ("--device", "cpu"))
    ],
]  # fmt: skip
COUNTS = [
    *[((name, "--limit", number), "--limit") for name in EXPERIMENTS for number in ("-3", "0", "1.5", "x", "nan")],
    *[(("flow", "--window", number), "--window") for number in ("0", "-1", "1.5")],
    *[(("flow", "--control", number), "--control") for number in ("-1", "x")],
    *[((name, "--workers", number), "--workers") for name in EXPERIMENTS for number in ("0", "-2")],
    *[((name, "--controls", number), "--controls") for name in ("flow", "trace", "prune", "knockout-by-patch") for number in ("-1", "x")],
    *[((name, "--window", "0"), "--window") for name in ("trace", "skip-flow", "word-overlap", "knockout-by-token", "knockout-by-patch")],
    *[((name, "--top", "0"), "--top") for name in ("lens", "lens-by-patch", "word-overlap")],
    (("attribution-patching", "--exact", "-1"), "--exact"),
    (("knockout-by-patch", "--size", "0"), "--size"),
    (("disruption", "--seed", "-1"), "--seed"),
    *[(("trace", "--half-width", number), "--half-width") for number in ("-1", "0.5")],
    *[(("prune", "--max-new-tokens", number), "--max-new-tokens") for number in ("0", "-1")],
    (("prune", "--timed", "-1"), "--timed"),
    (("edit", "--together", "0"), "--together"),
    (("nano", "train", "--steps", "0"), "--steps"),
    (("nano", "eval", "--limit", "-1"), "--limit"),
]  # fmt: skip


def status(arguments):
    """What the command line returns, or exits with."""
    try:
        return main([str(one) for one in arguments])
    except SystemExit as error:
        return error.code
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_options_that_would_be_ignored_are_refused_with_both_names(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(0).save("x.png")
    wrong = []
    for arguments, text in IGNORED:
        code, said = status(arguments), capsys.readouterr().err
        if code != 2 or not re.search(re.escape(text), said) or "Traceback" in said:
            wrong.append(f"{' '.join(arguments)}: {code}, {said}")
    assert wrong == []
    assert not [path for path in tmp_path.iterdir() if path.name != "x.png"]


def test_counts_have_a_least(capsys):
    wrong = []
    for arguments, option in COUNTS:
        code, said = status(arguments), capsys.readouterr().err
        if code != 2 or not re.search(rf"{option}: .*(less than|no whole number)", said):
            wrong.append(f"{' '.join(arguments)}: {code}, {said}")
    assert wrong == []


def test_every_option_with_a_condition_is_an_option():
    """A name in the rules that no command has would never be refused."""
    parser = build_parser()
    for command, needs in _options.NEEDS.items():
        (commands,) = [one for one in parser._actions if hasattr(one, "choices") and one.choices]
        known = {one.dest for one in commands.choices[command]._actions}
        assert {*needs, *(name for names in needs.values() for name in names)} <= known
        assert {name for name, other, _ in _options.BESIDE.get(command, ()) for name in (name, other)} <= known


def test_the_table_can_fail(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nnsight_mmflow.command_line.refuse_ignored", lambda given: None)
    assert status(("nano", "samples", "--limit", "3")) == 0


def test_with_skip_bad_one_bad_row_never_ends_a_run(tmp_path, capsys):
    """A picture cut short, one that is too long, a word nano does not know, a box outside, broken lines."""
    picture(0).save(tmp_path / "1.jpg")
    content = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) * 9 // 10])
    Image.new("RGB", (900, 3)).save(tmp_path / "long.png")
    asked = {"img_id": "1", "question": "is there a ring ?", "answer": "yes"}
    bad = [{"img_id": "half"}, {"img_id": "long"}, {"question": "is there an umbrella ?"}, {"boxes": [[70, 0, 80, 8]]},
           {"img_id": "../1"}, {"answer": ["yes"]}, {"awnser": "yes"}, {"options": ["yes"]}]  # fmt: skip
    rows = [{"question_id": 0, **asked}, *({"question_id": i + 1, **asked, **one} for i, one in enumerate(bad))]
    lines = [json.dumps(row).encode() for row in rows]
    (tmp_path / "q.jsonl").write_bytes(b"\n".join([lines[0], b"{broken", b'{"question_id": "Zo\xeb"}', *lines[1:]]))
    given = ("lens", "--data", tmp_path / "q.jsonl", "--images", tmp_path, "--all", "--out", tmp_path / "out")
    assert status(given) == 2
    assert "6 of 11 rows" in capsys.readouterr().err
    assert status((*given, "--skip-bad")) == 0
    said = capsys.readouterr().err
    assert said.count("skipped: ") == 10
    (tmp_path / "q.jsonl").write_bytes(b"\n".join(lines[1:5]))
    assert status((*given, "--skip-bad")) == 2
    assert "is left: every row was skipped" in capsys.readouterr().err
