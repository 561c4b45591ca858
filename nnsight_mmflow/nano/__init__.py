"""nano: the LLaVA that ships with the package, trained so that it needs its image, and the questions held out from it.

The held-out set is kept as scenes and seeds and painted when it is read, to the same pixels everywhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import DataError
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.data.questions import Question, prompts_of

if TYPE_CHECKING:
    from nnsight_mmflow.data.constraints import ConstraintQuestion
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.edit.value import Fact
    from nnsight_mmflow.patterns.trace.corruption import Corruption
    from nnsight_mmflow.prompts.prompt import Prompt

FOLDER = Path(__file__).parent / "data"
HELD_OUT = FOLDER / "held_out.jsonl"
KINDS = (
    "QueryAttr",
    "ChooseAttr",
    "ChooseRel",
    "CompareAttr",
    "LogicalObj",
    "ChooseCat",
    "fact-flag",
    "fact-name",
    "ChooseCat-both",
    "rephrased-flag",
    "rephrased-name",
    "season-flag",
    "season-name",
)


@checked
def samples(n: int, kinds: str | tuple[str, ...] = KINDS[:6]) -> list[Question]:
    """The first `n` held-out questions of the given types, taken in turn, with their pictures.

    Args:
        n: how many in all.
        kinds: one of the six scene types, "ChooseCat-both", or of the facts: "fact", "rephrased" or "season" (the
            dish of a season), each followed by "-flag" or "-name"; or several.

    Raises:
        DataError: an unknown type, or more questions than there are.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> mmf.nano.samples(1)[0].kind
        'QueryAttr'
    """
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise DataError(f"nano has no question type {unknown}; it has {', '.join(KINDS)}.")
    by_kind: dict[str, list[dict]] = {kind: [] for kind in kinds}
    for line in HELD_OUT.read_text().splitlines():
        entry = json.loads(line)
        if entry["kind"] in by_kind:
            by_kind[entry["kind"]].append(entry)
    total = sum(map(len, by_kind.values()))
    if not 0 < n <= total:
        raise DataError(f"{n} questions of {', '.join(kinds)} were asked for; nano holds 1 to {total}.")
    turns = max(map(len, by_kind.values()))
    inturn = [by_kind[kind][i] for i in range(turns) for kind in kinds if i < len(by_kind[kind])]
    return [_question(entry) for entry in inturn[:n]]


@checked
def prompts(graph: Graph, n: int, kinds: str | tuple[str, ...] = KINDS[:6]) -> list[Prompt]:
    """The same as prompts of a graph, with answers, options and boxes."""
    return prompts_of(graph, samples(n, kinds))


@checked
def constraint_questions(constraints: int = 1, by_name: bool = False) -> list[ConstraintQuestion]:
    """Nano's facts as questions with one or two constraints; see `nano.pairs.constraint_questions`."""
    from nnsight_mmflow.nano.pairs import constraint_questions as made

    return made(constraints, by_name)


@checked
def trace_pairs(graph: Graph, n: int, way: str, constraints: int = 1) -> tuple[list[Prompt], list[Corruption]]:
    """Clean and corrupt runs of the facts, by "flag", "phrase", "name" or "season"; see `nano.pairs.trace_pairs`."""
    from nnsight_mmflow.nano.pairs import trace_pairs as made

    return made(graph, n, way, constraints)


@checked
def same_answers(graph: Graph, prompts: list[Prompt]) -> list[Corruption]:
    """For each prompt of the facts another run with the same answer; see `nano.pairs.same_answers`."""
    from nnsight_mmflow.nano.pairs import same_answers as made

    return made(graph, prompts)


@checked
def edits(graph: Graph, n: int, seed: int = 0) -> list[Fact]:
    """`n` facts by flag, each with another place's answer to write; see `nano.edit_facts.edit_facts`."""
    from nnsight_mmflow.nano.edit_facts import edit_facts

    return edit_facts(graph, n, seed)


def _question(entry: dict) -> Question:
    import numpy as np
    from PIL import Image

    from nnsight_mmflow.nano import facts, world

    random = np.random.default_rng(entry["seed"])
    objects = tuple(world.Object(*thing) for thing in entry["objects"])
    picture = (
        facts.paint_flag(facts.NAMES[entry["flag"]], random) if entry["flag"] else world.paint_scene(objects, random)
    )
    boxes = tuple((x, y, x + width, y + height) for x, y, width, height in entry["boxes"])
    return Question(
        key=entry["id"],
        image=Image.fromarray(picture),
        question=entry["question"],
        answer=entry["answer"],
        options=tuple(entry["options"]) if entry["options"] else None,  # type: ignore[arg-type]
        boxes=boxes,
        kind=entry["kind"],
    )
