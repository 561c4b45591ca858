"""Nano's facts as questions with constraints, and as clean and corrupt runs for causal tracing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import DataError
from nnsight_mmflow.data.constraints import Constraint, ConstraintQuestion
from nnsight_mmflow.nano import facts
from nnsight_mmflow.nano.questions import samples
from nnsight_mmflow.patterns.trace.corruption import Corruption, other_image, replace_phrase

if TYPE_CHECKING:
    from nnsight_mmflow.data.questions import Question
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt

WAYS = ("flag", "phrase", "name", "season")
VISUAL = "this place"


def constraint_questions(constraints: int = 1, by_name: bool = False) -> list[ConstraintQuestion]:
    """Nano's facts with their constraints: 96 questions with one, 128 with two (the place, and a season).

    By flag, the visual constraint is "this place", and its replacement names another place with another answer; by
    name, the place's name is a text constraint.

    Raises:
        DataError: `constraints` is neither 1 nor 2.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> one = mmf.nano.constraint_questions(2)[0]
        >>> one.visual.text, one.textual[0].text
        ('this place', 'spring')
    """
    if constraints not in (1, 2):
        raise DataError(f"nano has questions with 1 or 2 constraints, not {constraints}.")
    relations = facts.RELATIONS if constraints == 1 else facts.SEASONS
    kind = f"{'fact' if constraints == 1 else 'season'}-{'name' if by_name else 'flag'}"
    questions = []
    for number, asked in enumerate(samples(len(facts.PLACES) * len(relations), kind)):
        place, relation = facts.PLACES[number // len(relations)], relations[number % len(relations)]
        other = _other(place, relation)
        textual = [Constraint.find(relation, asked.question)] if constraints == 2 else []
        named = Constraint.find(place.name if by_name else VISUAL, asked.question)
        questions.append(
            ConstraintQuestion(
                key=asked.key,
                image=asked.image,
                question=asked.question,
                visual=None if by_name else named,
                textual=tuple([named, *textual] if by_name else textual),
                subject=place.name,
                answers=(asked.answer,),
                replacement=other.name if by_name else f"place {other.name}",
                replaced_answers=(facts.ask_place(other, relation, True).answer,),
                source="nano",
                kind=kind,
            )
        )
    return questions


def trace_pairs(graph: Graph, n: int, way: str, constraints: int = 1) -> tuple[list[Prompt], list[Corruption]]:
    """(prompts, corruptions) for causal tracing: the corrupt run asks the same of a place with another answer.

    Args:
        graph: the model "nano".
        n: how many, 1 to 96 (with two constraints to 128).
        way: "flag" (by flag; the picture is replaced by another place's flag), "phrase" (by flag; "this place" is
            replaced by another place's name), "name" (by name; the name is replaced), or "season" (by flag, with two
            constraints; the season is replaced).
        constraints: 1 (its capital, founder or animal), or 2 (its dish in a season).

    Raises:
        DataError: an unknown way, or more than there are.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> prompts, corrupt = mmf.nano.trace_pairs(mmf.load("nano"), 3, "name")
        >>> corrupt[0].how.startswith("phrase")
        True
    """
    if way not in WAYS or (way == "season" and constraints != 2):
        raise DataError(f"way must be one of {', '.join(WAYS)} (season with constraints=2), not {way!r}.")
    everything = constraint_questions(constraints, by_name=way == "name")
    if not 0 < n <= len(everything):
        raise DataError(f"{n} questions were asked for; nano holds 1 to {len(everything)}.")
    pictures = {question.subject: question.image for question in everything}
    prompts, corrupt = [], []
    for number, asked in enumerate(everything[:n]):
        prompt = asked.prompt(graph)
        if way == "flag":
            image = pictures[asked.replacement.removeprefix("place ")]
            corruption = other_image(graph, prompt, image, "the flag of another place")  # type: ignore[arg-type]
        elif way == "season":
            corruption = _other_season(graph, prompt, asked, number)
        else:
            phrase = f"phrase: another place's name, such as {asked.replacement!r} for {asked.constraints[0].text!r}"
            corruption = replace(asked.corrupted(graph, prompt), how=phrase)
        prompts.append(prompt)
        corrupt.append(corruption)
    return prompts, corrupt


def same_answers(graph: Graph, prompts: list[Prompt]) -> list[Corruption]:
    """For each prompt of the facts another run with the same answer: its flag painted anew; by name, another flag."""
    import numpy as np
    from PIL import Image

    kinds = ("fact-flag", "fact-name", "season-flag", "season-name")
    held: dict[str, Question] = {sample.key: sample for sample in samples(448, kinds)}
    subjects = {
        question.key: question.subject
        for count in (1, 2)
        for named in (False, True)
        for question in constraint_questions(count, named)
    }
    corruptions = []
    for number, prompt in enumerate(prompts):
        if prompt.key not in held:
            raise DataError(f"prompt {number} ({prompt.key!r}) is not one of nano's held-out facts.")
        random, place = np.random.default_rng([7, number]), facts.NAMES[subjects[prompt.key]]
        named = held[prompt.key].kind.endswith("name")
        shown = facts.PLACES[int(random.integers(len(facts.PLACES)))] if named else place
        picture = Image.fromarray(facts.paint_flag(shown, random))
        corruptions.append(
            other_image(graph, prompt, picture, "another flag" if named else "the same flag, painted anew")
        )
    return corruptions


def _other(place: facts.Place, relation: str) -> facts.Place:
    """A place with another answer."""
    first, answer = facts.PLACES.index(place), facts.ask_place(place, relation, True).answer
    turned = [facts.PLACES[(first + step) % len(facts.PLACES)] for step in range(11, 11 + len(facts.PLACES))]
    return next(other for other in turned if facts.ask_place(other, relation, True).answer != answer)


def _other_season(graph: Graph, prompt: Prompt, asked: ConstraintQuestion, number: int) -> Corruption:
    place, season = facts.NAMES[asked.subject], asked.textual[0].text
    others = [other for other in facts.SEASONS if facts.ask_place(place, other, True).answer != asked.answers[0]]
    made = replace_phrase(graph, prompt, season, others[number % len(others)])
    return replace(made, how="phrase: another season")
