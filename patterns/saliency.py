"""Saliency of information flow: attention times gradient, between system, image and instruction, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, ClassVar

import nnsight

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow._progress import say
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.inside.heads import QueryKeyReader
from nnsight_mmflow.inside.saliency import Flows, read_flows
from nnsight_mmflow.model.split import whole_here
from nnsight_mmflow.remote.words import needs_gradients
from nnsight_mmflow.runs.answers import with_target
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.identity import prompt_identity
from nnsight_mmflow.runs.image_results import ImageResult
from nnsight_mmflow.runs.results import versions
from nnsight_mmflow.runs.right_answers import check_answers
from nnsight_mmflow.runs.runner import Study, counted, listed, prompt_task, row_cells, rows_of, run_study

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.workers import Workers

MODES = ("paper", "released")
SPANS = {"system": "prefix", "image": "image", "instruction": "question | suffix"}
GROUPS = ("S_sys", "S_img", "S_ins")
FLOWS = ("S_vv", "S_vt")


class SaliencyResult(ImageResult):
    """Saliency by layer. One table row per prompt and layer.

    Columns: prompt, kind, layer, S_sys, S_img, S_ins (per token of the group), S_vv (image to image) and S_vt (image to
    instruction), loss. `tokens` holds, for each prompt, layer and image token, what flows from it.
    """

    kind: ClassVar[str] = "saliency"
    drawn_by: ClassVar[str] = "saliency_figure"  # two panels: the three groups, the two flows
    image_by: ClassVar[str] = "saliency_on_image"

    @checked
    def curves(self, names: Sequence[str] = GROUPS, normalise: bool = True) -> pd.DataFrame:
        """Means over prompts: a row per layer, a column per name.

        `normalise` scales all of them together so that the smallest number is 0 and the largest 1, as the paper's
        figures do: levels of two figures then say nothing about each other.
        """
        unknown = [name for name in names if name not in (*GROUPS, *FLOWS)]
        if unknown:
            raise MMFlowError(f"names are of {', '.join((*GROUPS, *FLOWS))}, not {unknown}.")
        means = self.table.groupby("layer")[list(names)].mean()
        if not normalise:
            return means
        low, high = means.to_numpy().min(), means.to_numpy().max()
        return (means - low) / (high - low)

    def tokens(self) -> pd.DataFrame:
        """What flows from each image token: a row per prompt, layer and token: prompt, layer, index, saliency."""
        import pandas as pd

        rows = [
            {"prompt": row.prompt, "layer": row.layer, "index": index, "saliency": value}
            for row in self.table.itertuples()
            for index, value in enumerate(list(row.from_image_tokens))  # type: ignore[arg-type]
        ]
        return pd.DataFrame(rows)

    def summary(self) -> str:
        """Where each group matters most, and the image's share."""
        raw = self.curves((*GROUPS, *FLOWS), normalise=False)
        peaks = ", ".join(f"{name} at layer {raw[name].idxmax()}" for name in raw)
        share = raw["S_img"].sum() / raw["S_ins"].sum()
        more = [int(layer) for layer in raw.index if raw["S_vt"][layer] > raw["S_vv"][layer]]
        return (
            f"{self.header['model']}, {self.header['mode']} mode: {self.header['n_prompts']} prompts; largest {peaks};"
            f" an image token has {share:.1%} of an instruction token's saliency, summed over layers; image to"
            f" instruction above image to image in layers {more}"
        )


@experiment
def saliency(
    graph: Graph,
    prompts: Prompt | Sequence[Prompt],
    mode: str = "paper",
    *,
    heads_at_once: int = 4,
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> SaliencyResult:
    """A SaliencyResult: how much the answer's loss depends on each flow, |sum over heads of A * dL/dA|, by layer.

    Everything comes from one forward and one backward per prompt. No attention map is kept: weights are computed again
    from queries and keys, `heads_at_once` at a time, so that the model's attention implementation stays as it is.

    Args:
        graph: the model.
        prompts: one prompt or several, with `answer` set: the loss is the cross entropy of its first token.
        mode: "paper" (equations 1 to 6, sums by source token; equation 6 with its indices put right), or "released"
            (the released code: A * A * dL/dA, means of absolute values over heads, sums by target token, flows not
            divided, and the answer's bare token). Both are needed: the paper's figures were made by neither alone.
        heads_at_once: heads whose weights are held at a time.
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        MMFlowError: a prompt without an answer, or an unknown mode.
        NoEffectError: a prompt without an image.

    Source: Lifting the Veil on Visual Information Flow (arXiv 2503.13108), section 3.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> result = mmf.saliency(graph, mmf.nano.prompts(graph, 2), progress=False)
        >>> len(result.to_frame()) == 2 * graph.n_layers
        True
    """
    graph = graph.at(remote)
    needs_gradients(graph, "saliency")
    whole_here(graph, "saliency")
    prompt_list = listed(prompts, "saliency")
    if mode not in MODES:
        raise MMFlowError(f"mode must be one of {', '.join(MODES)}, not {mode!r}.")
    check_answers(prompt_list, "saliency", why="and the loss needs one")
    for number, prompt in enumerate(prompt_list):
        if not len(prompt.spans["image"]):
            raise NoEffectError(f"prompt {number} has no image: nothing flows from it.")

    def collect(entries: list[dict]) -> SaliencyResult:
        import pandas as pd

        header = {
            "model": graph.name,
            "mode": mode,
            **counted([""] * len(entries)),
            "n_layers": graph.n_layers,
            "groups": SPANS,
            "versions": versions(),
        }
        return SaliencyResult(pd.DataFrame(rows_of(prompt_list, entries)), header)

    study = Study(
        name="saliency",
        settings={"mode": mode},
        tasks=[prompt_task(prompt, prompt_identity(prompt), mode, heads_at_once) for prompt in prompt_list],
        measure=measure,
        collect=collect,
        cost=lambda left: "a forward and a backward each.",
        cells=row_cells("layer", planned=lambda task, entry: [(layer,) for layer in range(graph.n_layers)]),
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def measure(graph: Graph, prompt: Prompt, mode: str, heads_at_once: int) -> dict:
    """What the journal keeps of one prompt."""
    released = mode == "released"
    loss, by_layer = flows_of(graph, prompt, _token(graph, prompt, mode), released, heads_at_once)
    sizes = [len(prompt.spans[span]) for span in SPANS.values()]
    image = list(prompt.spans["image"])
    rows = [
        {
            "layer": layer,
            **grouped(flow, sizes, released),
            "loss": loss,
            "from_image_tokens": flow.received.sum(0)[image].tolist(),
        }
        for layer, flow in enumerate(by_layer)
    ]
    return {"rows": rows}


def flows_of(graph: Graph, prompt: Prompt, token: int, released: bool, heads_at_once: int) -> tuple[float, list[Flows]]:
    """The loss, and each layer's flows between system, image and instruction."""
    spans = [list(prompt.spans[span]) for span in SPANS.values()]
    reader, layers, model, n_layers, causal = (
        QueryKeyReader(graph),
        graph.layers,
        graph.model,
        graph.n_layers,
        graph.causal,
    )
    scale = graph.attention(0)._module.scaling
    cap = getattr(graph.text_config, "attn_logit_softcapping", None)
    with graph.trace(prompt, use_cache=False, logits_to_keep=1):
        loss, read = read_flows(
            layers, n_layers, reader, model, token, spans, causal, scale, cap, released, heads_at_once
        )
        saved = nnsight.save([loss, [vars(flow) for flow in read]])  # plain values: a server cannot return our classes
    return saved[0], [Flows(**flow) for flow in saved[1]]


def grouped(flows: Flows, sizes: Sequence[int], released: bool) -> dict[str, float]:
    """The five numbers of one layer: equations 2 to 6, or the released code's."""
    blocks = flows.blocks.double()
    totals = blocks.sum(1) if released else blocks.sum(0)  # by target, or by source
    each = [float(total) / max(1, size) for total, size in zip(totals, sizes, strict=True)]
    divisor = 1 if released else sizes[1]
    return dict(zip(GROUPS, each, strict=True)) | {
        "S_vv": float(blocks[1, 1]) / divisor,
        "S_vt": float(blocks[2, 1]) / divisor,
    }


def _token(graph: Graph, prompt: Prompt, mode: str) -> int:
    """The answer's first token: as the model writes it, or in released mode the bare one where there is one."""
    assert prompt.answer is not None
    if mode == "released":
        bare = graph.processor.tokenizer.convert_tokens_to_ids(prompt.answer)
        if bare is not None and bare != graph.processor.tokenizer.unk_token_id:
            return int(bare)
    return with_target(graph, prompt, prompt.answer, first_token=True)[1][0]
