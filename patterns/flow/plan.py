"""The plan of a knockout sweep over prompts: edges, controls and rows of each; what it costs, and what travels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow.patterns.flow.controls import with_controls
from nnsight_mmflow.patterns.flow.edges import default_edges, named_spans, without_answer
from nnsight_mmflow.patterns.flow.measure import expected_bytes, requests_of
from nnsight_mmflow.runs.plan import make_plan, sizes_of
from nnsight_mmflow.spans.row_spans import NEEDS

if TYPE_CHECKING:
    from nnsight_mmflow.inside.plan import Plan
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.runner import Task
    from nnsight_mmflow.spans.row_spans import Spans


@dataclass(frozen=True)
class FlowPlan:
    """What is swept of each prompt.

    Attributes:
        edges: those that were asked for.
        spans: of each prompt, with the spans that edges name beside its own, and those of controls.
        plans: the rows of each.
        missing: of each prompt what it lacks for edges by boxes or options, and why.
        lacking: for how many prompts an edge has no control.
    """

    edges: tuple[str, ...]
    spans: list[Spans]
    plans: list[Plan]
    missing: list[dict[str, str]]
    lacking: Counter[str]


def plan_of(
    graph: Graph,
    prompts: list[Prompt],
    edges: Sequence[str] | None,
    windows: tuple[int, ...],
    controls: int,
    row_budget: int,
    seeds: Sequence[str] | None = None,
) -> FlowPlan:
    """The plan of all prompts.

    Args:
        graph: the model.
        prompts: what is asked.
        edges: "source->target" each; None for the paper's, and those that boxes and options add.
        windows: window sizes.
        controls: how many each edge gets.
        row_budget: positions in one chunk of rows.
        seeds: of each prompt's controls; drawn by its content unless given.

    Raises:
        MMFlowError: a prompt without the spans of an edge.
        NoEffectError: an edge that would change nothing.
    """
    named = [named_spans(prompt) for prompt in prompts]
    asked = tuple(edges) if edges is not None else default_edges(prompts)
    kept = [_kept(number, missing, asked, default=edges is None) for number, (_, missing) in enumerate(named)]
    bare = [without_answer(spans, one) for (spans, _), one in zip(named, kept, strict=True)]
    check_answers(kept, bare)
    kept = [tuple(edge for edge in one if edge not in empty) for one, empty in zip(kept, bare, strict=True)]
    reach, blocks = graph.adapter.sliding_window(), graph.adapter.bidirectional
    controlled = [
        with_controls(spans, one, controls, seed, reach, blocks(spans))
        for seed, (spans, _), one in zip(seeds or [prompt.digest() for prompt in prompts], named, kept, strict=True)
    ]
    plans = [
        make_plan(sizes_of(graph, prompt), spans, own_edges + more, windows, row_budget, blocks(spans))
        for prompt, own_edges, (spans, more, _) in zip(prompts, kept, controlled, strict=True)
    ]
    lacking = Counter(edge for _, _, why in controlled for edge in why)
    return FlowPlan(asked, [spans for spans, _, _ in controlled], plans, [missing for _, missing in named], lacking)


def _kept(number: int, missing: dict[str, str], asked: tuple[str, ...], *, default: bool) -> tuple[str, ...]:
    """A prompt's edges; those that it lacks the spans for are left out if they were not asked for by name."""
    kept = []
    for edge in asked:
        lacking = {what for name, what in NEEDS.items() if name in edge.replace("->", " ").split() and what in missing}
        if not lacking:
            kept.append(edge)
        elif not default:
            raise MMFlowError(f"edge {edge!r} of prompt {number}: " + "; ".join(missing[what] for what in lacking))
    return tuple(kept)


def check_answers(kept: Sequence[tuple[str, ...]], bare: Sequence[tuple[str, ...]]) -> None:
    """Refuses an edge with the span `answer` where every prompt's answer has one token.

    Raises:
        NoEffectError: there is one.
    """
    for edge in dict.fromkeys(edge for empty in bare for edge in empty):
        if sum(edge in empty for empty in bare) == sum(edge in one for one in kept):
            raise NoEffectError(
                f"{edge!r} would change nothing: an answer of one token has nothing behind the prompt, so that the span"
                " 'answer' holds no position, here of no prompt. Such an answer is read at 'last'."
            )


def cost(left: list[Task], engine: str) -> str:
    """What the prompts that are left cost, in words."""
    plans = [task.given[2] for task in left]
    naive = sum(plan.naive_flops for plan in plans)
    needed = sum(plan.row_flops for plan in plans) if engine == "rows" else naive
    return (
        f"at most {sum(plan.n_rows for plan in plans)} rows, {needed / 1e12:.3g} TFLOP by engine={engine!r}"
        f" (one forward per window: {naive / 1e12:.3g} TFLOP);"
        f" about {max(plans, key=lambda plan: plan.bytes).memory if plans else '0 MB'} beside the weights."
    )


def travels(left: list[Task], most: int) -> str:
    """What travels for them, with at most so many chunks in a request."""
    sizes = [expected_bytes(task.given[0], task.given[2], most) for task in left]
    requests = sum(requests_of(task.given[2], most) for task in left)
    up, down = (sum(sizes_of_prompt[way] for sizes_of_prompt in sizes) / 1e3 for way in (0, 1))
    return f" {requests} request(s); at most {up:.0f} kB go up and {down:.0f} kB come back."
