"""What the commands share: the model, the prompts, quiet libraries."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.command_line.early import check_early
from nnsight_mmflow.command_line.incomplete import refuse_no_question

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt

NANO_QUESTIONS = 120  # twenty of each scene type


def load_graph(given: argparse.Namespace) -> Graph:
    """The model asked for."""
    from transformers.utils import logging

    import nnsight_mmflow as mmf

    check_early(given)
    logging.disable_progress_bar()
    options = {"attn_implementation": given.attention, "dtype": given.dtype, "device_map": given.device}
    if getattr(given, "workers", None) is not None:  # they load it; here it makes the prompts
        options["dispatch"] = False
    graph = mmf.load(
        given.model, remote=given.remote, **{name: value for name, value in options.items() if value is not None}
    )
    return graph.at(None, trusted=given.trusted)


def make_prompts(graph: Graph, given: argparse.Namespace) -> list[Prompt]:
    """The prompts asked for: one question, a file of them, or nano's own.

    Raises:
        MMFlowError: no question of the file is left.
    """
    from nnsight_mmflow import nano
    from nnsight_mmflow.data.question_files import read_questions
    from nnsight_mmflow.data.questions import Question, prompts_of

    settings = {
        "template": given.template,
        "instruction": given.instruction,
        "pad_to_square": given.pad_to_square,
    }
    if given.image:
        if given.answer:
            return prompts_of(graph, [Question("", given.image, given.question, given.answer)], **settings)
        return [graph.prompt(given.image, given.question, **settings)]
    if given.data:
        questions, bad = read_questions(given.data, given.images, skip_bad=given.skip_bad)
        none: list[str] | None = [] if given.skip_bad else None
        prompts = prompts_of(graph, questions[: given.limit], bad=none, **settings)
        for problem in (*bad, *(none or ())):
            say(f"skipped: {problem}")
        if not prompts:
            raise MMFlowError(f"no question of {given.data} is left: every row was skipped.")
        return prompts
    refuse_no_question(given)
    return prompts_of(graph, nano.samples(given.limit or NANO_QUESTIONS), **settings)
