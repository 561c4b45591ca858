"""Runs an experiment of the table: the result to load again, its table as CSV, its figure as PNG, its summary told."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.command_line.experiments import EACH, EXPERIMENTS, PAIRS
from nnsight_mmflow.command_line.own_options import Option
from nnsight_mmflow.command_line.pairs import graph_and_pairs
from nnsight_mmflow.command_line.shared import graph_and_prompts, only_correct, who_measures
from nnsight_mmflow.command_line.words import add_words, write_words
from nnsight_mmflow.files.output import output_folder, write_csv, write_figure

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.results import Result


@dataclass(frozen=True)
class Run:
    """One call of the function.

    Attributes:
        name: of its folder within that of the command; "" where it is the only one.
        given: what the function takes behind the graph.
        settings: what it takes by name, beside the command's own options.
        of: what it is of, for messages.
        prompt: where it is of a single one.
    """

    name: str
    given: tuple[object, ...]
    settings: dict[str, object] = field(default_factory=dict)
    of: str = ""
    prompt: Prompt | None = None


def run(given: argparse.Namespace) -> None:
    """Runs the experiment, and writes its figure, its table, and the result to load; a folder for each of several."""
    import pandas as pd

    import nnsight_mmflow as mmf
    from nnsight_mmflow.patterns.flow.result import FlowResult

    folder = output_folder(given.out)
    experiment = EXPERIMENTS[given.command]
    graph, runs = _runs(given)
    names = dict.fromkeys(_dest(option) for option in experiment.options)
    asked = {name: value for name in names if (value := getattr(given, name, None)) is not None}
    measured: Callable[..., Result] = getattr(mmf, experiment.function)
    tables: list[pd.DataFrame] = []
    kind = ""
    for plan in runs:
        where = output_folder(folder, plan.name) if plan.name else folder
        try:
            result = measured(graph, *plan.given, **{**asked, **plan.settings}, **who_measures(given), folder=where)
        except MMFlowError as error:
            raise type(error)(f"{plan.of}: {error}" if plan.of else str(error)) from None
        kind = result.kind
        result.save(where)  # again: a run tells that it could not be saved, a command ends with it
        figure, table = result.plot(), result.to_frame()
        if isinstance(result, FlowResult) and plan.prompt is not None:
            write_words(figure, plan.prompt)
            add_words(table, plan.prompt)
        write_figure(where / f"{kind}.png", figure, dpi=150)
        write_csv(where / f"{kind}.csv", table)
        say(f"{plan.of}: {result.summary()}" if plan.of else result.summary())
        table.insert(0, "run", plan.name)
        tables.append(table)
    files = f"{kind}.png, {kind}.csv, {kind}.parquet"
    if not runs[0].name:
        say(f"written to {folder}: {files}")
        return
    write_csv(folder / f"{kind}.csv", pd.concat(tables, ignore_index=True))
    say(f"written to {folder}: {kind}.csv of all, and in {', '.join(plan.name for plan in runs)} each: {files}")


def _dest(option: Option) -> str:
    """What the function calls an option."""
    return str(option.keywords.get("dest") or option.flag.removeprefix("--").replace("-", "_"))


def _runs(given: argparse.Namespace) -> tuple[Graph, list[Run]]:
    """The model, and the calls that the command is."""
    experiment = EXPERIMENTS[given.command]
    if experiment.takes == PAIRS:
        graph, pairs = graph_and_pairs(given)
        return graph, [Run(name, (pair.clean, pair.corrupt), of=name) for name, pair in pairs.items()]
    graph, prompts = graph_and_prompts(given)
    if experiment.takes == EACH:
        one_of_many = not given.image
        return graph, [
            Run(
                _folder_name(number, prompt) if one_of_many else "",
                (prompt,),
                of=f"question {prompt.key or number}" if one_of_many else "",
                prompt=prompt,
            )
            for number, prompt in enumerate(prompts)
        ]
    judged: dict[str, object] = {"only_correct": only_correct(given, prompts)} if experiment.judged else {}
    return graph, [Run("", (prompts,), judged)]


def _folder_name(number: int, prompt: Prompt) -> str:
    """The number of a question and, where it can be part of a file's name, its key."""
    return f"{number}_{prompt.key}" if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", prompt.key) else str(number)
