"""Attention maps: exact weights of chosen layers, rows and columns, whatever the attention implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from os import PathLike
from typing import TYPE_CHECKING

import nnsight
import torch

from nnsight_mmflow._errors import MMFlowError, SpanError
from nnsight_mmflow._progress import say
from nnsight_mmflow.inside.generated import lag_of
from nnsight_mmflow.inside.heads import QueryKeyReader, differs
from nnsight_mmflow.inside.maps import read_maps
from nnsight_mmflow.model.pattern import layer_list
from nnsight_mmflow.patterns.attention.result import AttentionResult
from nnsight_mmflow.prompts.continued import in_row
from nnsight_mmflow.prompts.prompt import Prompt
from nnsight_mmflow.runs.arrays import packed, unpacked
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.fingerprint import fingerprint
from nnsight_mmflow.runs.generated import (
    again,
    check_forward,
    check_generated,
    generated_ids,
    planned,
    there_of,
    with_generated,
)
from nnsight_mmflow.runs.identity import prompt_identity
from nnsight_mmflow.runs.runner import Study, prompt_task, run_study
from nnsight_mmflow.spans.edges import resolve

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.runs.workers import Workers
    from nnsight_mmflow.spans.span import Span

MOST_BYTES = 1_000_000_000
HEADS_AT_ONCE = 4


@experiment
def attention(
    graph: Graph,
    prompt: Prompt,
    *patterns: Pattern,
    layers: int | Iterable[int] | None = None,
    source: str | Span = "all",
    target: str | Span = "all",
    heads: Iterable[int] | None = None,
    generated: int = 0,
    most_bytes: int = MOST_BYTES,
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> AttentionResult:
    """The exact attention weights of a prompt, as AttentionResult, under any attention implementation.

    The model stays as it is: weights are computed again from each layer's own queries, keys and mask, four heads at a
    time, and only what was asked for leaves the forward. In every layer weights times values are compared with the
    heads' real results.

    Args:
        graph: the model.
        prompt: one prompt.
        patterns: at work during the run, as in `graph.trace`.
        layers: which; all unless given.
        source: the positions that are read: the columns of the maps.
        target: the positions that read: the rows.
        heads: which; all unless given.
        generated: how many tokens the model writes first, greedily (fewer where its answer ends, the end token counts);
            then the maps are of the prompt and these tokens, and `generated` and `generated[k]` are spans for source
            and target. A row of `generated[k]` is what that token reads once it is written; what was read to write it
            is the row before: of `last` for k = 0.
        most_bytes: how large the maps may be.
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        MMFlowError: maps larger than `most_bytes`, a batch, a layer or head that does not exist, a pattern that drops
            positions, or a family whose attention does something that this does not know; patterns with `generated`.
        SpanError: `generated[k]` of an answer that ended before.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> maps = mmf.attention(graph, mmf.nano.prompts(graph, 1)[0], layers=range(2, 4), target="question")
        >>> maps.weights.shape
        torch.Size([2, 4, 6, 76])
        >>> maps = mmf.attention(graph, mmf.nano.prompts(graph, 1)[0], target="generated", generated=4)
        >>> [maps.header["tokens"][position] for position in maps.targets]
        ['pink', '</s>']
    """
    graph = graph.at(remote)
    if not isinstance(prompt, Prompt):
        raise MMFlowError(
            f"attention takes one prompt, but a {type(prompt).__name__} came: [mmf.attention(graph, prompt, ...) for"
            " prompt in batch.prompts]."
        )
    check_generated([prompt], generated)
    if generated and patterns:
        raise MMFlowError(
            "generated= takes no patterns yet: whether they act on the tokens that are written would have to be said."
            " Write the answer with graph.generate(prompt, pattern), or leave generated out."
        )
    longest = planned(graph, prompt, generated)
    rows = longest.rows()
    chosen = layer_list(range(graph.n_layers) if layers is None else layers, graph.n_layers)
    kept = _heads(heads, graph.n_heads)
    asked_for = ((target, "target"), (source, "source"))
    down, across = (list(resolve(in_row(what, prompt, longest), rows, role)[0]) for what, role in asked_for)
    for held, what, role in ((down, target, "target"), (across, source, "source")):
        if not held:
            raise SpanError(f"{role}={getattr(what, 'name', what)!r} holds no position of this prompt.")
    size = check_size(chosen, kept, down, across, most_bytes)

    def collect(entries: list[dict]) -> AttentionResult:
        whole = again(graph, prompt, entries[0].get("generated", []))
        return AttentionResult.of(
            **unpacked(entries[0]["maps"]),
            layers=tuple(chosen),
            heads=tuple(kept),
            targets=tuple(position for position in down if position < len(whole)),
            sources=tuple(position for position in across if position < len(whole)),
            prompt=whole,
            model=graph.name,
            patterns=tuple(map(repr, patterns)),
            target=target if isinstance(target, str) else target.name,
            source=source if isinstance(source, str) else source.name,
        )

    asked = {"layers": chosen, "heads": kept, "targets": down, "sources": across}
    study = Study(
        name="attention",
        settings={**asked, "patterns": [fingerprint(pattern) for pattern in patterns], "generated": generated or None},
        tasks=[prompt_task(prompt, prompt_identity(prompt), patterns, *asked.values(), generated)],
        measure=measure,
        collect=collect,
        cost=lambda left: (
            f"{f'{generated} tokens at most, then ' if generated else ''}one forward,"
            f" {size / 1e6:.1f} MB of weights{' at most' if generated else ''}."
        ),
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def measure(
    graph: Graph,
    prompt: Prompt,
    patterns: tuple[Pattern, ...],
    layers: list[int],
    heads: list[int],
    targets: list[int],
    sources: list[int],
    generated: int = 0,
) -> dict:
    """What the journal keeps of the prompt: its maps, as text; and what the model wrote, if it was to."""
    if not generated:
        return {"maps": packed(read_weights(graph, prompt, patterns, layers, heads, targets, sources))}
    whole = with_generated(graph, prompt, generated)
    down, across = there_of(targets, whole, "target"), there_of(sources, whole, "source")
    found = read_weights(graph, whole, patterns, layers, heads, down, across)
    return {"maps": packed(found), "generated": generated_ids(whole)}


def read_weights(
    graph: Graph,
    prompt: Prompt,
    patterns: tuple[Pattern, ...],
    chosen: list[int],
    heads: list[int],
    targets: list[int],
    sources: list[int],
) -> dict[str, torch.Tensor]:
    """Each layer's map ("weights") and what each position receives ("received"), checked against the real results.

    Raises:
        MMFlowError: weights that do not explain what the heads gave.
    """
    layers, reader, causal, positions = graph.layers, QueryKeyReader(graph), graph.causal, len(prompt)
    cap = getattr(graph.text_config, "attn_logit_softcapping", None)
    chunk, model = HEADS_AT_ONCE, graph.model
    ids = torch.tensor(generated_ids(prompt), dtype=torch.long)
    steps, lag = len(ids), (0.0, 1.0)
    with torch.no_grad(), graph.trace(prompt, *patterns, use_cache=False, logits_to_keep=steps + 1):
        read = read_maps(layers, reader, chosen, targets, sources, heads, positions, cap, causal, chunk)
        found = nnsight.save(read)
        if steps:
            lag = nnsight.save(lag_of(model.output.logits[0, -steps - 1 : -1], ids))
    check_forward(*lag, found[0]["dtype"])
    for layer, one in zip(chosen, found, strict=True):
        if differs(one["error"], one["scale"], one["dtype"]):
            raise MMFlowError(
                f"layer {layer}: weights times values differ from what the heads gave by {one['error']:.1e} (their"
                f" largest number is {one['scale']:.1e}): this family's attention does something that is not known"
                " here, or a pattern changes values."
            )
    return {name: torch.stack([one[name] for one in found]) for name in ("weights", "received")}


def _heads(heads: Iterable[int] | None, n_heads: int) -> list[int]:
    asked = list(range(n_heads)) if heads is None else sorted(set(heads))
    wrong = [head for head in asked if not 0 <= head < n_heads]
    if wrong or not asked:
        raise MMFlowError(f"heads {wrong or 'none'} were asked for; there are {n_heads}, counted from 0.")
    return asked


def check_size(
    layers: list[int], heads: list[int], targets: list[int], sources: list[int], most: int = MOST_BYTES
) -> int:
    """How many bytes the maps have.

    Raises:
        MMFlowError: more than `most`.
    """
    shape = len(layers), len(heads), len(targets), len(sources)
    size = 4 * shape[0] * shape[1] * shape[2] * shape[3]
    if size > most:
        raise MMFlowError(
            f"{shape[0]} layers x {shape[1]} heads x {shape[2]} targets x {shape[3]} sources in float32 are"
            f" {size / 1e9:.1f} GB, more than {most / 1e9:.1f} GB. Ask for less: layers=[{layers[len(layers) // 2]}],"
            ' target="last" or target="question", source="image", heads=[0]; or raise most_bytes.'
        )
    return size
