"""Facts of nano to edit: asked by flag, with the answer of another place as the new one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nnsight_mmflow._errors import DataError
from nnsight_mmflow.data.questions import prompts_of
from nnsight_mmflow.nano import facts
from nnsight_mmflow.nano.questions import samples
from nnsight_mmflow.patterns.edit.value import Fact

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt

CONSTRAINT = "text('this place')"


def edit_facts(graph: Graph, n: int, seed: int = 0) -> list[Fact]:
    """Facts to write, drawn by a seed: each asked by flag, with other prompts about it.

    `same` holds the flag painted anew twice ("other image"), the question in two other forms ("rephrased"), and the
    question by name, with the held-out picture ("by name").

    Raises:
        DataError: more than there are.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> fact = mmf.nano.edits(mmf.load("nano"), 1)[0]
        >>> list(fact.same)
        ['other image', 'rephrased', 'by name']
    """
    total = len(facts.PLACES) * len(facts.RELATIONS)
    if not 0 < n <= total:
        raise DataError(f"{n} facts were asked for; nano holds 1 to {total}.")
    random = np.random.default_rng([seed, 4])
    by_flag, by_name = (samples(total, f"fact-{way}") for way in ("flag", "name"))
    edits = []
    for number in random.permutation(total)[:n]:
        place, relation = facts.PLACES[number // 3], facts.RELATIONS[number % 3]
        answers = sorted({str(getattr(other, relation)) for other in facts.PLACES} - {str(getattr(place, relation))})
        flag, name = by_flag[number], by_name[number]
        edits.append(
            Fact(
                prompt=prompts_of(graph, [flag])[0],
                target=answers[int(random.integers(len(answers)))],
                at=CONSTRAINT,
                same={
                    "other image": [_by_flag(graph, place, relation, 0, random) for _ in range(2)],
                    "rephrased": [_by_flag(graph, place, relation, form, random) for form in (1, 2)],
                    "by name": prompts_of(graph, [name]),
                },
            )
        )
    return edits


def _by_flag(graph: Graph, place: facts.Place, relation: str, form: int, random: np.random.Generator) -> Prompt:
    from PIL import Image

    asked = facts.ask_place(place, relation, False, form)
    return graph.prompt(Image.fromarray(facts.paint_flag(place, random)), asked.text, asked.answer, kind=asked.kind)
