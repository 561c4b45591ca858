"""The questions held out from nano's training, with their pictures."""

from __future__ import annotations

import json
from pathlib import Path

from nnsight_mmflow._errors import DataError
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.data.questions import Question

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
