"""nano: the LLaVA that ships with the package, trained so that it needs its image, and the questions held out from it.

The held-out set is kept as scenes and seeds and painted when it is read, to the same pixels everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.data.questions import prompts_of
from nnsight_mmflow.nano.questions import FOLDER as FOLDER
from nnsight_mmflow.nano.questions import HELD_OUT as HELD_OUT
from nnsight_mmflow.nano.questions import KINDS as KINDS
from nnsight_mmflow.nano.questions import samples as samples

if TYPE_CHECKING:
    from nnsight_mmflow.data.constraints import ConstraintQuestion
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.edit.value import Fact
    from nnsight_mmflow.patterns.trace.corruption import Corruption
    from nnsight_mmflow.prompts.prompt import Prompt


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
