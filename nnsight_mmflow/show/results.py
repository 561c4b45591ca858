"""Results as notebooks show them: a small table, the figure, and how the numbers came about."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from nnsight_mmflow.show.html import INK, box, figure, frame_table, heading, table
from nnsight_mmflow.show.overviews import overview
from nnsight_mmflow.spans.grammar import NAMES

if TYPE_CHECKING:
    from nnsight_mmflow.patterns.flow.job import FlowJob
    from nnsight_mmflow.runs.results import Result

ESSENTIALS = ("attention", "engine", "windows", "window", "layers", "controls", "scope", "mode", "metric", "seed")


def result_html(result: Result) -> str:
    """The overview, the figure, the header's essentials, and the summary to open."""
    name = type(result).__name__
    held = [(key, result.header[key]) for key in ESSENTIALS if result.header.get(key) not in (None, "", [])]
    opened = f'<details style="{INK}"><summary>summary and settings</summary>'
    return box(
        heading(f"{name}: {told(result)}", f"{result.n_rows} rows in .to_frame()"),
        frame_table(overview(result)),
        figure(result.plot(), f"{name}: {result.summary().splitlines()[0]}"),
        f'{opened}<pre style="{INK};white-space:pre-wrap;font-size:12px">{escape(result.summary())}</pre>',
        table(("setting", "value"), held),
        "</details>",
    )


def told(result: Result) -> str:
    """The model, and how many prompts count."""
    header = result.header
    of = {"n_counted": "prompt{} counted", "n_prompts": "prompt{}", "n_facts": "fact{}"}
    counts = ((header[key], what) for key, what in of.items() if key in header)
    counted = next((f", {count} {what.format('' if count == 1 else 's')}" for count, what in counts), "")
    return f"{str(header.get('model', '?')).rstrip('/').split('/')[-1]}{counted}{named_spans(header)}{_under(header)}"


def named_spans(header: dict) -> str:
    """The spans that it is of, where they are not among those that every prompt has."""
    told = ""
    for role in ("source", "target", "at"):
        given = header.get(role)
        own = [one for one in (given if isinstance(given, list) else [given]) if isinstance(one, str)]
        own = [one if len(one) <= 40 else f"{one[:37]}..." for one in own if one not in NAMES]
        if own:
            told += f", {role}={', '.join(map(repr, own[:2]))}{', ...' if len(own) > 2 else ''}"
    return told


def _under(header: dict) -> str:
    """The first of the patterns that acted, if some did."""
    acted = [one for one in header.get("patterns") or () if isinstance(one, str)]
    if not acted:
        return ""
    first = acted[0] if len(acted[0]) <= 80 else f"{acted[0][:77]}..."
    return f", under {first}{' and more' if len(acted) > 1 else ''}"


def job_html(job: FlowJob) -> str:
    """Which prompts are fetched. Nothing is asked of the server, and no job's id is shown: it is a secret."""
    rows = [
        (task.given[0].key or number, task.given[0].question, "sent" if task.identity in job.jobs else "fetched")
        for number, task in enumerate(job.work)
    ]
    fetched = sum(row[2] == "fetched" for row in rows)
    note = f"kept in {job.folder}; .status asks the server, .result() waits"
    return box(
        heading(f"FlowJob: {fetched} of {len(rows)} prompts fetched", note), table(("prompt", "question", ""), rows)
    )
