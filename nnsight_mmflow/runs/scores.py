"""What an experiment follows: the answer's first token, the whole answer, two options, or a function of one's own.

A whole answer is teacher-forced: its tokens stand behind the prompt (the last one excepted, which nothing would read),
put there as the model would write them, after a space unless the prompt ends in one. Only the answer's own tokens
count, no end token, as evaluation harnesses score. The tokens that stand there are the span `answer`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._kinds import came
from nnsight_mmflow.inside.reading import Reading, number_given
from nnsight_mmflow.runs.answers import check_behind, extended, with_target
from nnsight_mmflow.runs.fingerprint import fingerprint
from nnsight_mmflow.runs.right_answers import check_answers

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt

FIRST, WHOLE, OPTIONS, CAPTION = "first", "answer", "options", "caption"
NO_OPTIONS = "no options"
Function = Callable[[torch.Tensor, "Prompt"], float]
Score = str | Function
Numbers = list[list[float]]  # of the clean run, and of each cell: the score, whether it is said, and each token's


@dataclass(frozen=True)
class Scored:
    """A prompt, and what is read of it.

    Attributes:
        prompt: with the answer behind it, where that has several tokens.
        reading: what is read; None for the first token of the model's own answer.
        words: the tokens that are read.
    """

    prompt: Prompt
    reading: Reading | None
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quantity:
    """What a result's curves show.

    Attributes:
        column: of its table.
        label: of an axis, with the unit.
        unit: behind a number.
        what: is followed, in words.
    """

    column: str
    label: str
    unit: str
    what: str


PERCENT = Quantity("change_percent", "change of the answer's probability (%)", "%", "the answer's probability")
QUANTITIES = {
    FIRST: PERCENT,
    WHOLE: Quantity(
        "change", "change of the answer's log-probability (nats)", " nats", "the whole answer's log-probability"
    ),
    OPTIONS: Quantity("change", "change of the logit difference, true - false option", "", "the logit difference"),
    CAPTION: Quantity(
        "change",
        "change of the caption's log-probability (nats per token)",
        " nats",
        "the caption's log-probability per token",
    ),
}


def quantity_of(name: object) -> Quantity:
    """What the curves of a result show, by the score that its header names; none is named for the first token."""
    name = FIRST if name is None else str(name)
    return QUANTITIES.get(name) or Quantity("change", f"change of {name}", "", name)


def check_score(score: object, experiment: str, *also: str) -> None:
    """Refuses what is no score.

    Raises:
        MMFlowError: it is none.
    """
    known = (FIRST, WHOLE, OPTIONS, *also)
    if not (isinstance(score, str) and score in known) and (isinstance(score, type) or not callable(score)):
        raise MMFlowError(
            f"{experiment}: score is one of {', '.join(map(repr, known))}, or a function (logits, prompt) -> float;"
            f" {came(score)} came."
        )
    if not isinstance(score, str):
        _check_called(score, experiment)


def _check_called(score: Function, experiment: str) -> None:
    """Refuses a function that cannot be called with logits and a prompt."""
    try:
        signature = inspect.signature(score)
    except (ValueError, TypeError):  # written in C: it says nothing of itself
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise MMFlowError(
            f"{experiment}: score is called as {score_name(score)}(logits, prompt), but it takes {signature}: {error}."
        ) from None


def score_name(score: Score) -> str:
    """What a result calls it."""
    return score if isinstance(score, str) else getattr(score, "__name__", type(score).__name__)


def score_identity(score: Score) -> dict[str, str]:
    """What of it a run's identity holds: nothing for the first token, as runs had it before there were others."""
    if isinstance(score, str):
        return {} if score == FIRST else {"score": score}
    return {"score": f"{score_name(score)}: {fingerprint(score)}"}


def check_scored(prompts: Sequence[Prompt], score: Score, experiment: str) -> list[str]:
    """For each prompt why it cannot be scored; "" if it can.

    Raises:
        MMFlowError: a prompt without the answer that is scored; no prompt that has options.
    """
    if score == WHOLE:
        check_answers(prompts, experiment, why="which score='answer' reads")
    without = [NO_OPTIONS if score == OPTIONS and not prompt.options else "" for prompt in prompts]
    if prompts and all(without):
        raise MMFlowError(
            f"{experiment}: none of {len(prompts)} prompts has options, which score='options' holds against each other:"
            " graph.prompt(..., options=(true, false))."
        )
    return without


def readings(graph: Graph, prompt: Prompt, score: Score) -> list[Scored]:
    """What is read of a prompt: one thing, or two options that are held against each other.

    Args:
        graph: the model.
        prompt: the prompt.
        score: what is followed; of a prompt without options no difference.

    Raises:
        PromptError: the tokenizer does not know an answer, or joins it with the prompt's end.
        MMFlowError: a function that gives no number.
        ModelError: an answer of several tokens, where the family reads the prompt backwards and forwards.
    """
    if score == FIRST:
        return [Scored(prompt, None)]
    if score == OPTIONS:
        assert prompt.options is not None
        (true, ids), (false, others) = (with_target(graph, prompt, option) for option in prompt.options)
        if len(ids) == len(others) == 1:
            return [Scored(prompt, Reading((ids[0],), against=others[0]), _words(graph, ids))]
        return [_forced(graph, true, ids), _forced(graph, false, others)]
    if score == WHOLE:
        return [_forced(graph, *with_target(graph, prompt, str(prompt.answer)))]
    longer, ids = (prompt, []) if prompt.answer is None else with_target(graph, prompt, prompt.answer)
    given = replace(prompt, images=(), inputs={}) if graph.remote else prompt  # a server has no need of the picture
    reading = Reading(tuple(ids), function=score, prompt=given)  # type: ignore[arg-type]
    _check_number(graph, reading)
    return [Scored(_with_span(graph, longer), reading, _words(graph, ids))]


def _check_number(graph: Graph, reading: Reading) -> None:
    """Refuses a function that gives no number, before any forward: it is called with logits of zeros.

    Where it fails on these, it may still take those of the model: the run tells.
    """
    import torch

    assert reading.function is not None
    logits = torch.zeros(reading.count, graph.adapter.model.config.get_text_config().vocab_size)
    try:
        found = reading.function(logits, reading.prompt)
    except Exception:
        return
    number_given(found, reading.function, logits)


def answered_alike(graph: Graph, scored: Scored, other: Prompt) -> Prompt:
    """Another prompt of the same length, with the same answer behind it."""
    end = scored.prompt.spans["all"].row[1]
    behind = scored.prompt.inputs["input_ids"][0, end:].tolist()
    return extended(other, behind, graph.processor.tokenizer) if scored.reading is not None else other


def caption_reading(graph: Graph, prompt: Prompt, tokens: Sequence[int]) -> Scored:
    """The model's own caption behind the prompt, read as the mean over its tokens."""
    check_behind(graph, prompt, len(tokens), "the caption")
    longer = extended(prompt, list(tokens[:-1]), graph.processor.tokenizer)
    return Scored(longer, Reading(tuple(tokens), mean=True), _words(graph, tokens))


def _forced(graph: Graph, longer: Prompt, ids: list[int]) -> Scored:
    return Scored(_with_span(graph, longer), Reading(tuple(ids)), _words(graph, ids))


def _with_span(graph: Graph, prompt: Prompt) -> Prompt:
    """The prompt with a span `answer`, an empty one where the answer has one token: that is read at `last`."""
    there = len(prompt.spans.tokens) > prompt.spans["all"].row[1]
    return prompt if there else extended(prompt, [], graph.processor.tokenizer)


def _words(graph: Graph, ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(graph.processor.tokenizer.decode([one]) for one in ids)


def difference(parts: Sequence[Numbers]) -> Numbers:
    """The numbers of a prompt's one part; of two options those of the first less those of the second."""
    if len(parts) == 1:
        return parts[0]
    true, false = parts
    return [[a[0] - b[0], float(a[0] > b[0])] for a, b in zip(true, false, strict=True)]


def columns(name: str, base: Sequence[float], numbers: Sequence[float], words: Sequence[str]) -> dict[str, object]:
    """What a table's row says of a score; the numbers of the first token are its log-probability and the top token.

    Args:
        name: of the score.
        base: the clean run's numbers.
        numbers: the cell's.
        words: the tokens that are read.
    """
    if name == FIRST:
        change = numbers[0] - base[0]
        return {
            "base_probability": math.exp(base[0]),
            "probability": math.exp(numbers[0]),
            "change_percent": math.expm1(change) * 100,
            "log_probability_change": change,
            "answer_changed": int(numbers[1]) != int(base[1]),
        }
    row: dict[str, object] = {"clean": base[0], "score": numbers[0], "change": numbers[0] - base[0]}
    if name in QUANTITIES:
        row["answer_changed"] = bool(numbers[1]) != bool(base[1])
    if name in (WHOLE, CAPTION):  # of a caption the mean probability of a token, by the geometric mean
        row["change_percent"] = math.expm1(numbers[0] - base[0]) * 100
        row |= {"tokens": list(words), "clean_token_scores": list(base[2:]), "token_scores": list(numbers[2:])}
    return row


def token_table(table: pd.DataFrame, names: Sequence[str], score: object, base: str = "clean") -> pd.DataFrame:
    """A row per token of the answer: what tells rows apart, token (its number), word, clean, score, change.

    Args:
        table: with lists of the tokens' numbers.
        names: of the columns that tell its rows apart.
        score: of the run.
        base: what is compared with, where that is not the clean run.

    Raises:
        MMFlowError: the score is not made of tokens.
    """
    import pandas as pd

    if "token_scores" not in table:
        raise MMFlowError(
            f"this result has score={score or FIRST!r}, which is not made of tokens: run it with score='answer' (or"
            " 'caption' in mmf.flow)."
        )
    rows = [
        {**{name: row[name] for name in names}, "token": number, "word": word, base: was, "score": now}
        for row in table.to_dict("records")
        for number, (word, was, now) in enumerate(
            zip(row["tokens"], row[f"{base}_token_scores"], row["token_scores"], strict=True)
        )
    ]
    found = pd.DataFrame(rows)
    return found.assign(change=found["score"] - found[base])
