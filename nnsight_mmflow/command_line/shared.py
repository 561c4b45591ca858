"""What the commands share: the model, the prompts, quiet libraries, where an experiment runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict, TypeVar

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.command_line.early import check_early
from nnsight_mmflow.command_line.experiments import EXPERIMENTS
from nnsight_mmflow.command_line.incomplete import refuse_no_question
from nnsight_mmflow.runs.workers import Workers

if TYPE_CHECKING:
    from nnsight_mmflow.data.questions import Question
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt


Read = TypeVar("Read")


class Asking(TypedDict):
    """How a question becomes a prompt."""

    template: str | None
    instruction: str | None
    pad_to_square: bool


class Where(TypedDict, total=False):
    """Who measures."""

    workers: Workers


@dataclass
class Asked:
    """The questions of a command, read before a model is loaded.

    Attributes:
        questions: those of a file, or nano's own; none where one picture is given.
        skipped: what was wrong with those that were left out.
    """

    questions: list[Question] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def load_graph(given: argparse.Namespace) -> Graph:
    """The model asked for, once what is wrong whatever it says is told."""
    return graph_after(given, lambda given: None)[0]


def graph_after(given: argparse.Namespace, read: Callable[[argparse.Namespace], Read]) -> tuple[Graph, Read]:
    """The model, and what `read` reads of files: what is wrong with them is told before the model is loaded."""
    check_early(given)
    content = read(given)
    return _loaded(given), content


def _loaded(given: argparse.Namespace) -> Graph:
    from transformers.utils import logging

    import nnsight_mmflow as mmf

    logging.disable_progress_bar()
    options = {"attn_implementation": given.attention, "dtype": given.dtype, "device_map": given.device}
    if getattr(given, "workers", None) is not None:  # they load it; here it makes the prompts
        options["dispatch"] = False
    graph = mmf.load(
        given.model, remote=given.remote, **{name: value for name, value in options.items() if value is not None}
    )
    return graph.at(None, trusted=given.trusted)


def graph_and_prompts(given: argparse.Namespace) -> tuple[Graph, list[Prompt]]:
    """The model, and the prompts asked for: one question, a file of them, or nano's own.

    Raises:
        MMFlowError: no question of the file is left.
    """
    from nnsight_mmflow.data.questions import Question, prompts_of

    graph, asked = graph_after(given, _read)
    settings = how_asked(given)
    if given.image:
        if given.answer:
            return graph, prompts_of(graph, [Question("", given.image, given.question, given.answer)], **settings)
        return graph, [graph.prompt(given.image, given.question, **settings)]
    refuse_no_question(given)
    skipped: list[str] | None = asked.skipped if given.skip_bad else None
    prompts = prompts_of(graph, asked.questions, bad=skipped, **settings)
    for problem in asked.skipped:
        say(f"skipped: {problem}")
    if not prompts:
        raise MMFlowError(f"no question of {given.data} is left: every row was skipped.")
    return graph, prompts


def _read(given: argparse.Namespace) -> Asked:
    from nnsight_mmflow import nano
    from nnsight_mmflow.data.question_files import read_questions

    if given.image:
        return Asked()
    if given.data:
        questions, bad = read_questions(given.data, given.images, skip_bad=given.skip_bad)
        return Asked(questions[: given.limit], bad)
    if given.model != "nano":
        return Asked()
    return Asked(nano.samples(given.limit or EXPERIMENTS[given.command].nano))


def how_asked(given: argparse.Namespace) -> Asking:
    """The template, the instruction and the padding that are asked for."""
    return {"template": given.template, "instruction": given.instruction, "pad_to_square": given.pad_to_square}


def who_measures(given: argparse.Namespace) -> Where:
    """The workers that are asked for, as experiments take them; nothing for this process, or NDIF."""
    return {} if given.workers is None else {"workers": Workers(given.workers, given.ray_address)}


def only_correct(given: argparse.Namespace, prompts: list[Prompt]) -> bool:
    """Whether prompts that are answered wrongly are left out: not without right answers, nor with `--all`."""
    return all(prompt.answer is not None for prompt in prompts) and not given.all
