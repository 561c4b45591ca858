"""The command line, experiment by experiment: the same options everywhere, and each runs and writes what it says."""

import inspect
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from kit.no_process import NoProcess

import nnsight_mmflow as mmf
from nnsight_mmflow.command_line import build_parser, experiments, main, pairs
from nnsight_mmflow.command_line.experiments import EXPERIMENTS
from nnsight_mmflow.command_line.facts import graph_and_facts
from nnsight_mmflow.workers import crew

COMMON = (
    "--model --attention --dtype --device --image --question --answer --data --images --skip-bad --limit --template"
    " --instruction --pad-to-square --out --remote --trusted --workers --ray-address"
).split()
# What each is given beside --limit 2, so that it is quick; and what lies in its folder then. test_command_line.py runs
# trace and edit so.
RUNS = {
    "flow": ("--window 3 --edges image->last --controls 1", "flow.png flow.csv flow.parquet report.md"),
    "lens": ("--all --top 3", "lens.png lens.csv lens.parquet"),
    "attribution-patching": ("--spans last --exact 3", "attribution.csv by_flag/attribution.png"),
    "contributions": ("--heads", "contributions.png contributions.csv contributions.parquet"),
    "skip-flow": ("--spans image --scope from_layer --all", "skip_flow.png skip_flow.csv skip_flow.parquet"),
    "word-overlap": ("--window 3 --top 5", "word_overlap.png word_overlap.csv word_overlap.parquet"),
    "saliency": ("--scope layer", "paper/saliency.png released/saliency.csv disruption/disruption.png report.md"),
    "disruption": ("--ways img2txt --layers 3 4", "disruption.png disruption.csv disruption.parquet"),
    "knockout-by-patch": ("--size 2 --layers 4 5 --controls 2", "knockout_by_patch.csv 1_*/knockout_by_patch.png"),
    "knockout-by-token": ("--window 3", "flow.csv 0_*/flow.png 1_*/flow.parquet"),
    "lens-by-patch": ("--layers 4 --top 2", "lens_by_patch.csv 0_*/lens_by_patch.png 1_*/lens_by_patch.parquet"),
    "attention-and-effect": ("--layers 3 4 --controls 2", "attention_and_effect.csv 1_*/attention_and_effect.png"),
    "features": ("--at question --layers 2 5", "features.png features.csv features.parquet"),
    "prune": ("--methods fastv --timed 0 --max-new-tokens 2", "prune_report.png prune_report.csv report.md"),
}  # fmt: skip
# What those need beside a file of questions that have neither constraints nor new answers.
OF_A_FILE = {
    "trace": "--blank --sites mlp --window 3 --controls 0",
    "attribution-patching": "--constraint color --token ring",
    "edit": "--constraint color --target red --layers 4",
}


@pytest.fixture(scope="module")
def nano():
    return mmf.load("nano")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A question file with two questions about colours, and its pictures."""
    folder = tmp_path_factory.mktemp("asked")
    asked = [one for one in mmf.nano.samples(20, "QueryAttr") if "color" in one.question][:2]
    rows = [("question_id", "img_id", "question", "answer", "boxes")]
    for one in asked:
        one.image.save(folder / f"{one.key}.png")
        rows.append((one.key, one.key, one.question, one.answer, str([list(box) for box in one.boxes])))
    table = pd.DataFrame(rows[1:], columns=rows[0])
    table.to_csv(folder / "questions.csv", index=False)
    return ("--data", str(folder / "questions.csv"), "--images", str(folder))


@pytest.fixture
def loads_nothing(monkeypatch):
    monkeypatch.setattr(mmf, "load", lambda *given, **more: pytest.fail("the model was loaded"))


def options_of(command):
    (commands,) = [one for one in build_parser()._actions if hasattr(one, "choices") and one.choices]
    return {name: action for action in commands.choices[command]._actions for name in action.option_strings}


def test_every_experiment_has_the_same_options_with_the_same_meaning():
    first, *others = EXPERIMENTS
    known = options_of(first)
    for name in others:
        there = options_of(name)
        assert [one for one in COMMON if one not in there] == []
        for one in COMMON:
            ours, theirs = known[one], there[one]
            for what in ("dest", "type", "nargs", "const", "choices", "metavar"):
                same = getattr(ours, what), getattr(theirs, what)
                assert same[0] == same[1] or all(map(callable, same)), f"{name} {one}: {what} is {same}"
            told = [re.sub(r"nano: \d+|mmflow-[a-z-]+", "", action.help) for action in (ours, theirs)]
            assert told[0] == told[1]
        defaults = {one: there[one].default for one in COMMON if one != "--out"}
        assert defaults == {one: known[one].default for one in COMMON if one != "--out"}
        assert there["--out"].default == f"mmflow-{name}"


def test_options_go_to_the_function_under_their_own_names():
    """An option that the function has no word for would end in a TypeError, or be forgotten."""
    ours = {
        "edit": ("layers", "control_layers", "together", "bound", "settings"),
        "saliency": ("scope", "stage"),
        "prune": ("methods", "k1", "k2", "mode"),
    }
    for name, experiment in EXPERIMENTS.items():
        taken = inspect.signature(getattr(mmf, experiment.function)).parameters
        there = options_of(name)
        dests = {there[option.flag].dest for option in experiment.options}
        assert dests - set(taken) - set(ours.get(name, ())) == set(), name
        assert experiment.judged == ("--all" in there) == ("only_correct" in taken), name
        if "controls" in taken:
            assert "--controls" in there
    assert {"layers", "control_layers", "together", "bound", "settings"} <= set(
        inspect.signature(mmf.edit_report).parameters
    )


def test_every_experiment_has_a_command_or_readme_says_why_not():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    line = next(line for line in readme.split("\n\n") if line.startswith("No command"))
    functions = {one.function for one in EXPERIMENTS.values()} | {"edit_report"}
    public = [name for name in mmf.__all__ if inspect.isfunction(getattr(mmf, name))]
    measuring = [name for name in public if "remote" in inspect.signature(getattr(mmf, name)).parameters]
    assert len(measuring) > 15
    without = set(measuring) - functions - {"load"}
    assert [name for name in without if f"`mmf.{name}`" not in line] == []
    for name in re.findall(r"`mmf\.(\w+)`", line):
        assert name not in functions
        assert hasattr(mmf, name)


@pytest.mark.parametrize("command", RUNS)
def test_each_runs_on_nanos_own_questions(command, nano, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mmf, "load", lambda *given, **more: nano)
    monkeypatch.setattr(pairs, "RUNS", pairs.RUNS[:2])
    more, files = RUNS[command]
    asked = (command, "--limit", "2", *more.split(), "--out", str(tmp_path))
    assert main(list(asked)) == 0
    told = capsys.readouterr().err
    assert f"written to {tmp_path}: " in told
    for file in files.split():
        (there,) = tmp_path.glob(file)
        assert there.stat().st_size > (8_000 if there.suffix == ".png" else 100), file
        assert there.name in told
    assert main(list(asked)) == 0
    again = capsys.readouterr().err
    assert re.search(r" [1-9]\d* \w+\(s\) to run", again) is None, "the folder goes on"
    assert re.search(r": 0 \w+\(s\) to run, [1-9]\d* done already", again)


@pytest.mark.parametrize("command", EXPERIMENTS)
def test_each_runs_on_the_same_file_of_questions(command, nano, questions, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(mmf, "load", lambda *given, **more: nano)
    more = (*RUNS.get(command, ("",))[0].split(), *OF_A_FILE.get(command, "").split())
    assert main([command, *questions, "--limit", "1", *more, "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().err
    assert f"written to {tmp_path}: " in told, told


def test_single_questions_stand_in_one_table(nano, questions, tmp_path, monkeypatch):
    monkeypatch.setattr(mmf, "load", lambda *given, **more: nano)
    assert main(["attention-and-effect", *questions, "--layers", "4", "--controls", "1", "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "attention_and_effect.csv")
    assert table["run"].nunique() == 2
    parts = [pd.read_csv(tmp_path / name / "attention_and_effect.csv") for name in table["run"].unique()]
    assert table.drop(columns="run").equals(pd.concat(parts, ignore_index=True))
    prompt = mmf.nano.prompts(nano, 1)[0]
    prompt.images[0].save(tmp_path / "a.png")
    one = ["attention-and-effect", "--image", str(tmp_path / "a.png"), "--question", prompt.question, "--layers", "4"]
    assert (
        main([*one, "--source", f"image.box({prompt.boxes[0]})", "--controls", "0", "--out", str(tmp_path / "one")])
        == 0
    )
    source = prompt.spans["image"].box(prompt.boxes[0])
    wanted = mmf.attention_and_effect(
        nano, prompt, source, layers=4, controls=0, progress=False, report=lambda text: None
    )
    found = pd.read_csv(tmp_path / "one" / "attention_and_effect.csv")
    assert found["mass"].to_numpy() == pytest.approx(wanted.table["mass"].to_numpy(), rel=1e-9)


def test_facts_of_a_file_have_its_constraints_and_new_answers(nano, questions, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mmf, "load", lambda *given, **more: nano)
    rows = mmf.nano.constraint_questions()[:3]
    for number, row in enumerate(rows):
        row.image.save(tmp_path / f"{number}.png")
    rows = [replace(row, image=f"{number}.png") for number, row in enumerate(rows)]
    file = mmf.data.write_constraint_questions([*rows[:2], replace(rows[2], replaced_answers=())], tmp_path / "a.jsonl")
    asked = ["edit", "--data", str(file), "--images", str(tmp_path), "--layers", "4"]
    _, facts, others = graph_and_facts(build_parser().parse_args([*asked, "--limit", "2"]))
    assert [fact.target for fact in facts] == [row.replaced_answers[0] for row in rows[:2]]
    assert [fact.prompt.spans.tokens[fact.position()] for fact in facts] == ["place", "place"]
    assert [prompt.answer for prompt in others] == [row.answers[0] for row in rows[:2]]
    _, facts, _ = graph_and_facts(build_parser().parse_args([*asked, "--target", "yarm"]))
    assert [fact.target for fact in facts] == ["yarm"] * 3
    for more, text in (
        ([], f"what is the new answer of question {rows[2].key}?"),
        (["--constraint", "this place"], "--constraint says nothing to"),
        ([*questions, "--target", "red"], "which words of the questions"),
        ([*questions, "--target", "red", "--constraint", "umbrella"], "'umbrella' does not occur"),
    ):
        assert main([*asked, *more, "--out", str(tmp_path / "out")]) == 2
        assert text in capsys.readouterr().err


def test_words_stand_beside_their_positions(nano, tmp_path, monkeypatch):
    monkeypatch.setattr(mmf, "load", lambda *given, **more: nano)
    prompt = mmf.nano.prompts(nano, 1)[0]
    assert main(["knockout-by-token", "--limit", "1", "--window", "3", "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "flow.csv").drop_duplicates("edge")
    assert " ".join(table["token"]) in prompt.question
    assert [int(edge[6:-6]) for edge in table["edge"]] == list(prompt.spans["question"])


@pytest.mark.usefixtures("loads_nothing")
@pytest.mark.parametrize("command", EXPERIMENTS)
def test_where_it_runs_is_checked_before_a_model_is_loaded(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nnsight_mmflow.command_line.early.find_spec", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    for given, text in (
        (("--workers", "2", "--remote"), "--workers and --remote exclude each other"),
        (("--ray-address", "auto"), "--ray-address says nothing without --workers"),
        (("--workers", "2"), 'pip install -c constraints.txt -e ".[ray]"'),
        (("--template", "vicuna"), "--template vicuna: chat, vicuna_v1 or llava_llama_3"),
    ):
        if given[0] == "--template" and EXPERIMENTS[command].takes in (experiments.PAIRS, experiments.FACTS):
            continue  # nano's own facts take none, which is told first
        assert main([command, *given, "--out", str(tmp_path)]) == 2
        told = capsys.readouterr().err
        assert text in told
        assert told.count("\n") == 1


@pytest.mark.parametrize(("command", "file"), [("word-overlap", "word_overlap"), ("prune", "prune_report")])
def test_workers_write_what_one_process_writes(command, file, tmp_path, capsys, monkeypatch):
    """Without Ray's processes, which take seconds to start: workers/test_workers.py runs a command with it."""
    monkeypatch.setattr(crew, "cluster", contextmanager(lambda workers, address: iter([NoProcess()])))
    more = ["--limit", "2", *(["--methods", "fastv"] if command == "prune" else [])]
    assert main([command, *more, "--workers", "1", "--out", str(tmp_path / "workers")]) == 0
    assert "1 worker(s) by Ray" in capsys.readouterr().err
    alone = ["--timed", "0"] if command == "prune" else []
    assert main([command, *more, *alone, "--out", str(tmp_path / "alone")]) == 0
    here, there = (pd.read_parquet(tmp_path / name / f"{file}.parquet") for name in ("alone", "workers"))
    assert here.equals(there)


def test_earlier_names_of_options_work_and_are_not_shown(capsys):
    parse = build_parser().parse_args
    assert parse(["flow", "--control", "3"]).controls == parse(["flow", "--controls", "3"]).controls == 3
    assert parse(["trace", "--half-width", "2"]).window == parse(["trace", "--window", "5"]).window == 5
    assert parse(["edit", "--controls", "3", "4"]).control_layers == [3, 4]
    assert (parse(["flow"]).controls, parse(["trace"]).window, parse(["edit"]).control_layers) == (0, 1, None)
    for command, name in (("flow", r"--control\b"), ("trace", "--half-width"), ("edit", r"--controls\b")):
        with pytest.raises(SystemExit):
            parse([command, "--help"])
        assert not re.search(name, capsys.readouterr().out)
    assert main(["edit", "--image", "x.png", "--question", "what ?", "--controls", "3"]) == 2
    assert "--controls and --image exclude each other" in capsys.readouterr().err  # as it was typed
