"""Activations of a data set at one span, layer by layer: in memory, or in a folder that a stopped run goes on with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING

import nnsight
import torch

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow._progress import say
from nnsight_mmflow.inside.features import read_features
from nnsight_mmflow.inside.sites import SITES
from nnsight_mmflow.model.pattern import layer_list
from nnsight_mmflow.model.site_names import site_named
from nnsight_mmflow.patterns.features.result import FeaturesResult, index_of
from nnsight_mmflow.patterns.features.shelf import Shelf, layers_text
from nnsight_mmflow.runs.arrays import packed
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.identity import prompt_identity
from nnsight_mmflow.runs.results import versions
from nnsight_mmflow.runs.runner import Study, listed, prompt_task, run_study

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Batch, Prompt
    from nnsight_mmflow.runs.runner import Task
    from nnsight_mmflow.runs.workers import Workers

AT = ("resid", "attn", "mlp", "embed")
POOLS = ("mean", "last", None)


@experiment
def features(
    graph: Graph,
    prompts: Prompt | Sequence[Prompt],
    at: str = "last",
    layers: int | Iterable[int] | None = None,
    *,
    site: str = "resid",
    pool: str | None = "mean",
    batch_size: int = 1,
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> FeaturesResult:
    """A FeaturesResult: the activations of every prompt at a span, for probes, directions and models of one's own.

    With a folder they lie there in shards (safetensors) beside an index (parquet), written prompt by prompt and mapped
    when they are read; without one they stay in memory. How many bytes they take is told before the run. On a server
    they are pooled where they are, and only that comes back.

    Args:
        graph: the model.
        prompts: one or several; whatever the model answers counts.
        at: the span whose positions are read.
        layers: which; all unless given. Site "embed" has none.
        site: as in Patch: "resid" (the residual stream after a layer), "attn" or "mlp" (what they add to it), or
            "embed" (the merged embedding). TransformerLens' names are taken too.
        pool: "mean" over the span's positions, taken and kept in float32 (in double where the model is); "last", the
            last of them; None, all of them. These are kept in the model's own type, bit for bit.
        batch_size: how many prompts go through the model together, padded on the left. More is quicker on a GPU; the
            numbers differ from those of single prompts by rounding.
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        MMFlowError: an unknown site or pool, layers that do not exist, or activations that are NaN or infinite.
        SpanError: `at` is no span of a prompt.
        NoEffectError: it holds no position there.
        OutputError: the folder has too little room.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> found = mmf.features(graph, mmf.nano.prompts(graph, 4), at="last", layers=[3, 4], progress=False)
        >>> found.values(4).shape
        (4, 128)
    """
    graph = graph.at(remote)
    prompt_list = listed(prompts, "features")
    place, chosen = _place(site, layers, graph.n_layers)
    if pool not in POOLS:
        raise MMFlowError(f'pool is "mean", "last" or None (every position of the span), not {pool!r}.')
    counts = []
    for number, prompt in enumerate(prompt_list):
        held = len(prompt.spans[at])
        if not held:
            raise NoEffectError(
                f"features: {at!r} holds no position of prompt {number} ({prompt.key or prompt.question!r}), so nothing"
                " is there to read. Leave the prompt out, or name another span."
            )
        counts.append(1 if pool else held)
    tasks = [
        prompt_task(prompt, prompt_identity(prompt), list(prompt.spans[at]), place, chosen, pool)
        for prompt in prompt_list
    ]
    asked = {"at": at, "layers": chosen, "site": place, "pool": pool or "none"}
    shelf = Shelf(
        chosen, graph.d_model, dict(zip([task.identity for task in tasks], counts, strict=True)), _bytes(graph, pool)
    )

    def collect(entries: list[dict]) -> FeaturesResult:
        header = {
            "model": graph.name,
            **asked,
            "pool": pool,
            "n_prompts": len(prompt_list),
            "n_layers": graph.n_layers,
            "width": graph.d_model,
            "dtype": shelf.shards[entries[0]["shard"]].layout.kind,
            "metric": f"activations at {at}, {'all positions' if pool is None else pool}",
            "versions": versions(),
        }
        if shelf.folder is not None:
            header["shards"] = {str(entry["shard"]): shelf.file_name(entry["shard"]) for entry in entries}
        return FeaturesResult(index_of(prompt_list, at, entries), header, dict(shelf.shards), tuple(prompt_list))

    study = Study(
        name="features",
        settings=asked,
        tasks=[_batched(task) for task in tasks],
        measure=measure,
        measure_batch=measure_batch,
        batch_size=batch_size,
        collect=collect,
        cost=lambda left: _cost(shelf, chosen, left, batch_size, pool, folder),
        keep=shelf.keeping,
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def measure(graph: Graph, prompt: Prompt, positions: list[int], site: str, layers: list[int], pool: str | None) -> dict:
    """What is kept of one prompt: its activations, as text until they are on the shelf."""
    return measure_batch(graph, [(prompt, positions, site, layers, pool)])[0]


def measure_batch(graph: Graph, given: list[tuple]) -> list[dict]:
    """The same for several prompts in one forward."""
    prompts, (_, _, site, layers, pool) = [one[0] for one in given], given[0]
    whole = prompts[0] if len(prompts) == 1 else graph.batch(prompts)
    moved = [rows["all"].row[0] - one.spans["all"].row[0] for rows, one in zip(whole.rows(), prompts, strict=True)]
    positions = [[at + by for at in one[1]] for one, by in zip(given, moved, strict=True)]
    found = read(graph, whole, positions, site, layers, pool)
    for prompt, values in zip(prompts, found, strict=True):
        for layer, one in zip(layers, values, strict=True):
            if not bool(one.isfinite().all()):
                raise MMFlowError(
                    f"prompt {prompt.key or prompt.question!r}: {int((~one.isfinite()).sum())} of {one.numel()} numbers"
                    f" at {site} of layer {layer} are NaN or infinite. Did the run overflow in {one.dtype}? Load the"
                    " model in bfloat16 or float32."
                )
    return [{"values": packed({"values": values})} for values in found]


def read(
    graph: Graph, prompt: Prompt | Batch, positions: list[list[int]], site: str, layers: list[int], pool: str | None
) -> list[torch.Tensor]:
    """For each row (layers, kept, width), from one forward, wherever the graph runs."""
    sites = [SITES[site](graph, max(layer, 0)) for layer in layers]
    with torch.no_grad(), graph.trace(prompt, use_cache=False, logits_to_keep=1):
        found = nnsight.save(read_features(sites, positions, pool))
    return found


def _place(site: str, layers: int | Iterable[int] | None, n_layers: int) -> tuple[str, list[int]]:
    """The site by our name, and the layers; -1 stands for the embedding."""
    named = None if layers is None else [layers] if isinstance(layers, int) else list(layers)
    place, found = site_named(site, named, AT)
    if place == "embed":
        if found is not None:
            raise MMFlowError("site='embed' is before the first layer: leave layers out.")
        return place, [-1]
    return place, layer_list(range(n_layers) if found is None else found, n_layers)


def _batched(task: Task) -> Task:
    """The task, measured together with those beside it."""
    return replace(task, batch="together")


def _bytes(graph: Graph, pool: str | None) -> int:
    """Bytes of a number as it will be kept, as far as is known here."""
    own = int(graph.adapter.roles()["embed"].weight.element_size())
    return max(4, own) if pool == "mean" else own


def _cost(shelf: Shelf, layers: list[int], left: list[Task], batch_size: int, pool: str | None, folder: object) -> str:
    rows = sum(shelf.counts[identity] for identity in {task.identity for task in left})
    each = shelf.row_bytes // (len(layers) * shelf.width)
    forwards = "a forward each" if batch_size == 1 else f"a forward for {batch_size} prompts"
    what = f"{rows} {'positions' if pool is None else 'prompts'}"
    where = "in memory" if folder is None else f"in {folder}"
    return (
        f"{forwards}; {what} x {layers_text(layers)} x {shelf.width} numbers x {each} bytes ="
        f" {size_text(rows * shelf.row_bytes)}, {where}."
    )


def size_text(size: int) -> str:
    """Bytes in a unit that fits."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= one:
            return f"{size / one:.1f} {unit}"
    return f"{size} bytes"
