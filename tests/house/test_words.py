"""Docstrings of what is public say what they mean; what every experiment takes is said in the same words."""

import inspect
import re

import pytest
from kit.every_hint import parts, public

import nnsight_mmflow as mmf

# The one place of these words. They stand in each experiment's source, since editors show the source and not what a
# decorator would write into it; more may follow them where an experiment needs more.
RUNNING = {
    "folder": "where what is finished is written as it is done, and the result; a run that was stopped goes on from"
    " there.",
    "remote": "run on NDIF (True, or a host); None: where the graph runs.",
    "workers": "how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.",
    "blocking": "False returns a Job at once: the run goes on in the background, and `job.result()` waits for its"
    " result.",
    "progress": "show a progress bar.",
    "report": "where the cost is told before the run, and trouble with the folder.",
}
EXPERIMENTS = [
    name
    for name in mmf.__all__
    if inspect.isfunction(getattr(mmf, name)) and "blocking" in inspect.signature(getattr(mmf, name)).parameters
]
# An argument that sends the reader elsewhere, or has no noun of its own.
RIDDLE = re.compile(
    r"^ +\w+(?:, \w+)*: (?:whose|theirs|(?:as|see) (?:in a|there|above|below|before))\b.*", re.MULTILINE
)
OUT_OF_SIGHT = re.compile(
    r"\bspec(?:ification)? section|\bneeds? \d+|\bas there(?:[.,;:)]|$)|\bsee there\b", re.IGNORECASE
)


def described(docstring):
    """The arguments of a docstring, by name."""
    described = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", inspect.cleandoc(docstring), re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in described}


def test_there_are_experiments():
    assert {"flow", "causal_trace", "prune_report", "edit"} <= {*EXPERIMENTS}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_every_experiment_takes_is_said_in_the_same_words(name):
    experiment = getattr(mmf, name)
    told = described(experiment.__doc__)
    assert {*inspect.signature(experiment).parameters} <= {*told}
    other = {argument: told[argument] for argument, words in RUNNING.items() if not told[argument].startswith(words)}
    assert other == {}, f"tests/house/test_words.py has the words: {RUNNING}"


def test_no_riddles():
    wrong = set()
    for name, thing in public().items():
        for label, part in parts(name, thing):
            for line in (inspect.getdoc(part) or "").splitlines():
                if RIDDLE.search(line) or OUT_OF_SIGHT.search(line):
                    wrong.add(f"{label}: {line.strip()}")
    assert not wrong, "\n".join(sorted(wrong))
