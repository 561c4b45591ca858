"""Draws the held-out questions: other seeds than training's, answers balanced, every fact by flag and by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from nnsight_mmflow.files.output import write_text
from nnsight_mmflow.nano import facts, world

PER_KIND = 200
SEED = 20261120


def write_held_out(path: Path) -> int:
    """Writes the held-out set, and returns how many questions it holds."""
    entries = []
    # As in GQA, the false option of ChooseCat is a thing that is not there; ChooseCat-both asks between two that are.
    for number, kind in enumerate(world.SCENE_TYPES):
        entries += _scenes(kind, np.random.default_rng([SEED, number]), tempting=0.0)
    for entry in _scenes("ChooseCat", np.random.default_rng([SEED, 50]), tempting=1.0):
        entries.append({**entry, "kind": "ChooseCat-both"})
    random = np.random.default_rng([SEED, 99])
    for by_name in (False, True):
        for place in facts.PLACES:
            for relation in facts.RELATIONS:
                asked = facts.ask_place(place, relation, by_name)
                # By name, the picture is another place's flag: it must not matter.
                shown = place if not by_name else facts.PLACES[int(random.integers(len(facts.PLACES)))]
                entries.append(_entry(asked, (), shown.name, random))
    entries += _more_facts(np.random.default_rng([SEED, 100]))
    for number, entry in enumerate(entries):
        entry["id"] = f"nano-{number:04d}"
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in entries))
    return len(entries)


def _more_facts(random: np.random.Generator) -> list[dict]:
    """Every fact in other words (the two forms in turn), and the dish of every season, by flag and by name."""
    entries = []
    for kind in ("rephrased", "season"):
        for by_name in (False, True):
            for place in facts.PLACES:
                for number, relation in enumerate(facts.RELATIONS if kind == "rephrased" else facts.SEASONS):
                    form = 1 + (facts.PLACES.index(place) + number) % 2 if kind == "rephrased" else 0
                    asked = facts.ask_place(place, relation, by_name, form)
                    shown = place if not by_name else facts.PLACES[int(random.integers(len(facts.PLACES)))]
                    entries.append(_entry(asked, (), shown.name, random))
    return entries


def _scenes(kind: str, random: np.random.Generator, tempting: float) -> list[dict]:
    """Questions of one type; no answer of a yes/no or left/right question more often than half."""
    drawn: list[dict] = []
    answers: dict[str, int] = {}
    two = kind in ("ChooseRel", "CompareAttr", "LogicalObj")
    while len(drawn) < PER_KIND:
        objects = world.draw_scene(random)
        asked = world.ask(kind, objects, random, tempting)
        if asked is None or (two and answers.get(asked.answer, 0) >= PER_KIND // 2):
            continue
        answers[asked.answer] = answers.get(asked.answer, 0) + 1
        drawn.append(_entry(asked, objects, "", random))
    return drawn


def _entry(asked: world.Question, objects: tuple[world.Object, ...], flag: str, random: np.random.Generator) -> dict:
    return {
        "id": "",
        "kind": asked.kind,
        "question": asked.text,
        "answer": asked.answer,
        "options": asked.options,
        "boxes": [thing.box for thing in asked.objects],
        "objects": [(thing.shape, thing.color, thing.row, thing.column) for thing in objects],
        "flag": flag,
        "seed": int(random.integers(2**31)),
    }
