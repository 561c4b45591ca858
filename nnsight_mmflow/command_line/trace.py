"""`mmflow trace`: causal tracing as tables, heat maps and a report; on nano's facts, or on a picture of yours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.command_line.shared import load_graph
from nnsight_mmflow.files.escaping import markdown
from nnsight_mmflow.files.output import output_folder, write_csv, write_figure, write_text

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.patterns.trace.corruption import Corruption
    from nnsight_mmflow.patterns.trace.result import CausalTraceResult
    from nnsight_mmflow.prompts.prompt import Prompt

FACTS = 48  # sixteen places, three relations each
# Nano's runs: name, way, constraints.
RUNS = (
    ("by_flag", "flag", 1),
    ("by_phrase", "phrase", 1),
    ("by_name", "name", 1),
    ("two_constraints_by_flag", "flag", 2),
    ("two_constraints_by_season", "season", 2),
)


def run(given: argparse.Namespace) -> None:
    """Runs the experiment and writes, per run, causal_trace.png, .csv, .parquet and .json; and report.md."""
    import nnsight_mmflow as mmf

    folder = output_folder(given.out)
    graph = load_graph(given)
    if given.image or given.data or given.model != "nano":
        runs: dict[str, tuple] = {"": (*(_data if given.data else _own)(graph, given), None)}
    else:
        runs = {}
        for name, way, constraints in RUNS:
            prompts, corrupt = mmf.nano.trace_pairs(graph, given.limit or FACTS, way, constraints)
            runs[name] = (prompts, corrupt, mmf.nano.same_answers(graph, prompts))
    results = {}
    for name, (prompts, corrupt, alike) in runs.items():
        where = output_folder(folder, name)
        judged = all(prompt.answer is not None for prompt in prompts)
        result = mmf.causal_trace(
            graph,
            prompts,
            corrupt,
            given.spans,
            given.sites,
            window=given.window,
            each_position=given.each_position,
            only_correct=judged and not given.all,
            same_answer=alike,
            engine=given.engine,
            folder=where,
        )
        result.save(where)  # again: a run tells that it could not be saved, a command ends with it
        write_figure(where / "causal_trace.png", result.plot(), dpi=150)
        write_csv(where / "causal_trace.csv", result.to_frame())
        results[name] = result
        say(result.summary())
    write_text(folder / "report.md", report_text(results))
    pictures = ", ".join(str(Path(name) / "causal_trace.png") for name in results)
    say(f"written to {folder}: report.md, {pictures}")


def _data(graph: Graph, given: argparse.Namespace) -> tuple[list[Prompt], list[Corruption]]:
    """The prompts and corruptions of a file of questions with constraints.

    Raises:
        MMFlowError: neither a phrase nor a word was given to put in, and the file has none; or nothing is left.
    """
    from nnsight_mmflow import corruption
    from nnsight_mmflow.data.constraint_files import read_constraint_questions

    questions, bad = read_constraint_questions(given.data, given.images, given.answers, skip_bad=given.skip_bad)
    for problem in bad:
        say(f"skipped: {problem}")
    settings = {"template": given.template, "instruction": given.instruction, "pad_to_square": given.pad_to_square}
    prompts, made = [], []
    for question in questions[: given.limit]:
        hint = ""
        try:
            prompt = question.prompt(graph, **settings)
            hint = " Or --token WORD."
            if given.token:
                one = corruption.repeat_token(graph, prompt, question.constraints[0].text, given.token)
            else:
                one = question.corrupted(graph, prompt, given.phrase or "")
        except MMFlowError as error:
            if not given.skip_bad:
                raise MMFlowError(f"question {question.key}: {error}{hint} --skip-bad goes on without it.") from None
            say(f"skipped: question {question.key}: {error}")
            continue
        prompts.append(prompt)
        made.append(one)
    if not prompts:
        raise MMFlowError(f"no question of {given.data} is left to trace.")
    return prompts, made


def _own(graph: Graph, given: argparse.Namespace) -> tuple[list[Prompt], list[Corruption]]:
    """The prompt and corruption that the arguments describe.

    Raises:
        MMFlowError: they do not go together.
    """
    from nnsight_mmflow import corruption

    prompt = graph.prompt(
        given.image,
        given.question,
        given.answer,
        template=given.template,
        instruction=given.instruction,
        pad_to_square=given.pad_to_square,
    )
    if given.other_image:
        made = corruption.other_image(graph, prompt, given.other_image, f"image {given.other_image}")
    elif given.blank:
        made = corruption.blank_image(graph, prompt)
    elif given.phrase:
        made = corruption.replace_phrase(graph, prompt, given.constraint, given.phrase)
    else:
        made = corruption.repeat_token(graph, prompt, given.constraint, given.token)
    return [prompt], [made]


def report_text(results: dict[str, CausalTraceResult]) -> str:
    """The report in Markdown: what was run, the maps, the spread over prompts, what to keep in mind."""
    lines = ["# Causal tracing", ""]
    for name, result in results.items():
        header = result.header
        left = "".join(f"; {count} left out ({markdown(why)})" for why, count in header["left_out"].items())
        lines += [
            f"## {markdown(name.replace('_', ' ') or header['model'])}",
            "",
            f"{header['n_counted']} of {header['n_prompts']} prompts counted{left}. {markdown(result.caption())}.",
            "",
            f"![heat map]({Path(name) / 'causal_trace.png'})",
            "",
            "| site | span | largest at layer | effect | quartiles over prompts | answer comes back |",
            "|---|---|---|---|---|---|",
        ]
        table = result.to_frame()
        for (site, span), part in table.groupby(["site", "span"], sort=False):
            means = part.groupby("layer")["effect"].mean()
            layer = int(means.index[int(means.to_numpy().argmax())])
            there = part[part["layer"] == layer]
            low, high = there["effect"].quantile([0.25, 0.75])
            lines.append(
                f"| {site} | {markdown(span)} | {layer} | {there['effect'].mean():+.2f} | {low:+.2f} to {high:+.2f}"
                f" | {there['answer_restored'].mean():.0%} |"
            )
        lines.append("")
    lines += [
        "## Keep in mind",
        "",
        "- A restored position may merely carry the answer further: a large effect says that the answer passes there,",
        "  not that it is stored there. Compare with the random spans of the same size.",
        "- Replacing words leaves every position before them as it was, the image's included: their effect is exactly",
        "  zero by causality. To trace the image, corrupt the image.",
        "- A large window restores more and points less: compare --window 1, 3, 5.",
        "",
    ]
    return "\n".join(lines)
