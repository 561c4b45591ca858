"""Attention contributions: what a position takes from each source token, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import NoEffectError
from nnsight_mmflow._progress import say
from nnsight_mmflow.inside.contributions import Contributions
from nnsight_mmflow.model.split import whole_here
from nnsight_mmflow.patterns.contributions.result import ContributionsResult
from nnsight_mmflow.patterns.contributions.run import Answer, read_prompt
from nnsight_mmflow.prompts.continued import generated_positions
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.generated import again, check_generated, generated_ids, planned, with_generated, written_of
from nnsight_mmflow.runs.identity import prompt_identity
from nnsight_mmflow.runs.results import versions
from nnsight_mmflow.runs.runner import Cells, Study, Task, counted, listed, prompt_task, run_study
from nnsight_mmflow.spans.edges import check_readable

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.workers import Workers


@experiment
def contributions(
    graph: Graph,
    prompts: Prompt | Sequence[Prompt],
    source: str = "image",
    target: str = "last",
    *,
    heads: bool = False,
    generated: int = 0,
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> ContributionsResult:
    """A ContributionsResult: for each prompt, layer and source token, what the target takes from it.

    A contribution is attention weight times value through the output projection, summed over heads. The table holds
    its norm (after the sum), the sum of the heads' norms, its projection on the direction of the answer (the unit row
    of the unembedding for the token that the model answers with), the mean weight, and its share of the norms of all
    positions. Where the target has several positions, the means over them.

    Everything is reduced inside the forward: no full attention map is kept, whatever the attention implementation. In
    every layer the contributions of all positions are summed up and compared with the attention's real output.

    Args:
        graph: the model.
        prompts: one prompt or several.
        source: the span that is read.
        target: the span that reads.
        heads: also a row for each head (column `head`; -1 is the sum over heads).
        generated: how many tokens the model writes first, greedily (fewer where its answer ends); each of them then has
            rows of its own beside the target's (column `generated`; -1 is the target), and `generated` and
            `generated[k]` are spans too. `result.token(k)` is the result of one alone. The projection is on the token
            that is written next.
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        NoEffectError: a source that no target can read.
        MMFlowError: the sum over all positions does not give the attention's output: the family's attention does
            something that this does not know.

    Source: Understanding Information Storage and Transfer in MLLMs (arXiv 2406.04236).

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> result = mmf.contributions(graph, mmf.nano.prompts(graph, 2), "image", "last", progress=False)
        >>> result.header["largest_error"] < 1e-3
        True
    """
    graph = graph.at(remote)
    whole_here(graph, "contributions")
    prompt_list = listed(prompts, "contributions")
    check_generated(prompt_list, generated)
    for number, prompt in enumerate(prompt_list):
        spans = planned(graph, prompt, generated).spans
        check_readable(
            f"{source}->{target} of prompt {number}", spans[source], spans[target], graph.adapter.bidirectional(spans)
        )

    def collect(entries: list[dict]) -> ContributionsResult:
        import pandas as pd

        tables = [pd.DataFrame(entry["columns"]) for entry in entries]
        for number, (prompt, table) in enumerate(zip(prompt_list, tables, strict=True)):
            table.insert(0, "prompt", prompt.key or str(number))
            table.insert(1, "kind", prompt.kind)
        table = pd.concat(tables, ignore_index=True)
        if not float(table["norm"].max()):
            raise NoEffectError(f"{source}->{target}: every contribution is zero.")
        header = {
            "model": graph.name,
            "source": source,
            "target": target,
            "n_layers": graph.n_layers,
            **counted([""] * len(entries)),
            **({"generated": generated, "written": written_of(graph, prompt_list, entries)} if generated else {}),
            "largest_error": max(entry["error"] for entry in entries),
            "metric": "norm of attention weight times value through the output projection, summed over heads",
            "versions": versions(),
        }
        return ContributionsResult(table, header)

    def cells(task: Task, entry: dict) -> tuple[Cells, Cells]:
        columns, prompt = entry["columns"], again(graph, task.given[0], entry.get("generated", []))
        readers = columns.get("generated", [-1] * len(columns["layer"]))
        found = zip(columns["layer"], columns["index"], columns["head"], readers, strict=True)
        return found, _planned(graph, len(prompt.spans[source]), heads, len(entry.get("generated", [])))

    study = Study(
        name="contributions",
        settings={"source": source, "target": target, "heads": heads, "generated": generated or None},
        tasks=[
            prompt_task(prompt, prompt_identity(prompt), source, target, heads, generated) for prompt in prompt_list
        ],
        measure=measure,
        collect=collect,
        cost=lambda left: "a forward and an answer each.",
        cells=cells,
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def measure(graph: Graph, prompt: Prompt, source: str, target: str, heads: bool, generated: int = 0) -> dict:
    """What the journal keeps of one prompt."""
    whole = with_generated(graph, prompt, generated)
    sources, targets, each = list(whole.spans[source]), list(whole.spans[target]), list(generated_positions(whole))
    queries = list(dict.fromkeys([*targets, *each]))
    answer, read = read_prompt(graph, whole, sources, queries)
    errors = [layer.error / max(layer.scale, 1e-6) for layer in read]
    readers = {-1: list(range(len(targets)))}
    readers |= {number: [queries.index(position)] for number, position in enumerate(each)}
    columns = columns_of(whole, sources, answer, read, heads, readers)
    kept = {"error": float(max(errors)), "columns": columns}
    return {**kept, "generated": generated_ids(whole)} if generated else kept


def _planned(graph: Graph, sources: int, heads: bool, generated: int) -> list[tuple[int, int, int, int]]:
    """(layer, index, head, reader) of each row."""
    shown = [-1, *range(graph.n_heads)] if heads else [-1]
    return [
        (layer, i, head, reader)
        for reader in range(-1, generated)
        for layer in range(graph.n_layers)
        for i in range(sources)
        for head in shown
    ]


def columns_of(
    prompt: Prompt,
    sources: list[int],
    answer: Answer,
    found: list[Contributions],
    heads: bool,
    readers: dict[int, list[int]],
) -> dict:
    """The table's columns: the rows of the target (reader -1), and of each generated token if there are any."""
    import pandas as pd

    parts = []
    for reader, queries in readers.items():
        part = _table(prompt, sources, answer, [_of_queries(one, queries) for one in found], heads)
        if len(readers) > 1:
            part.insert(0, "generated", reader)
        parts.append(part)
    return pd.concat(parts, ignore_index=True).to_dict("list")


def _of_queries(one: Contributions, queries: list[int]) -> Contributions:
    """A layer's contributions to some of its queries."""
    return replace(
        one,
        norm=one.norm[queries],
        head_norm=one.head_norm[:, queries],
        weight=one.weight[:, queries],
        projection=one.projection[queries],
        whole=one.whole[queries],
    )


def _table(prompt: Prompt, sources: list[int], answer: Answer, by_layer: list[Contributions], heads: bool):  # type: ignore[no-untyped-def]
    import pandas as pd

    image, places = prompt.spans["image"], {}
    if set(sources) <= set(image):
        span = image.part(sources, "source")
        places = dict(zip(span, span.places(), strict=True))
    rows = []
    for layer, read in enumerate(by_layer):
        whole = float(read.whole.mean())
        for i, position in enumerate(sources):
            place = places.get(position)
            common = {
                "answer": answer.text,
                "answer_probability": answer.probability,
                "correct": answer.correct,
                "layer": layer,
                "index": i,
                "position": position,
                "token": prompt.spans.tokens[position],
                "row": None if place is None else place.row,
                "column": None if place is None else place.column,
            }
            rows.append(
                {
                    **common,
                    "head": -1,
                    "norm": float(read.norm[:, i].mean()),
                    "sum_of_head_norms": float(read.head_norm[:, :, i].sum(0).mean()),
                    "projection": float(read.projection[:, i].mean()),
                    "weight": float(read.weight[:, :, i].mean()),
                    "share": float(read.norm[:, i].mean()) / whole,
                }
            )
            if heads:
                rows += [
                    {
                        **common,
                        "head": head,
                        "norm": float(read.head_norm[head, :, i].mean()),
                        "sum_of_head_norms": float(read.head_norm[head, :, i].mean()),
                        "projection": float("nan"),
                        "weight": float(read.weight[head, :, i].mean()),
                        "share": float(read.head_norm[head, :, i].mean()) / whole,
                    }
                    for head in range(len(read.head_norm))
                ]
    return pd.DataFrame(rows)
