"""What each layer would answer: the residual stream, attention and MLP outputs read through the unembedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, ClassVar

import nnsight
import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._later import later
from nnsight_mmflow._progress import say
from nnsight_mmflow.inside.readout import read_layers
from nnsight_mmflow.prompts.prompt import Prompt
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.identity import prompt_identity
from nnsight_mmflow.runs.results import Result, versions
from nnsight_mmflow.runs.right_answers import check_answers
from nnsight_mmflow.runs.runner import Study, counted, listed, prompt_task, rows_of, run_study
from nnsight_mmflow.runs.sweep import answer_of

if TYPE_CHECKING:
    from nnsight_mmflow._figure import ShownFigure
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.runs.workers import Workers

FOLLOWED = ("answer_lower", "answer_capitalized", "false_lower", "false_capitalized")


class LensResult(Result):
    """Probabilities by layer. One table row per prompt, site, layer and position.

    Columns: prompt, kind, site ("resid", "attn", "mlp"), layer (-1: the embeddings), point (layer + 1, the paper's
    count of the residual stream), position, token, the probabilities answer_lower, answer_capitalized, false_lower and
    false_capitalized (NaN where the tokenizer has no such token or the prompt no false option), top_tokens.
    """

    kind: ClassVar[str] = "lens"

    def plot(self) -> ShownFigure:
        """The followed probabilities by layer, a panel per site."""
        return later("lens_figure")(self)

    def summary(self) -> str:
        """Where the answer appears."""
        stream = self.table[self.table["site"] == "resid"].groupby("layer")[list(FOLLOWED)].mean()
        lines = [f"{self.header['model']}: {self.header['n_counted']} of {self.header['n_prompts']} prompts counted"]
        for name in FOLLOWED:
            if stream[name].notna().any():
                lines.append(f"{name}: highest after layer {stream[name].idxmax()}, {stream[name].max():.1%}")
        return "\n".join(lines)


@experiment
def lens(
    graph: Graph,
    prompts: Prompt | Sequence[Prompt],
    at: str = "last",
    *,
    norm: bool = True,
    top: int = 10,
    only_correct: bool = True,
    max_new_tokens: int = 16,
    folder: str | PathLike[str] | None = None,
    remote: bool | str | None = None,
    workers: int | Workers = 0,
    blocking: bool = True,
    progress: bool = True,
    report: Callable[[str], None] = say,
) -> LensResult:
    """A LensResult: the probability of the answer, lower case and capitalised, and the top words, in each layer.

    Args:
        graph: the model.
        prompts: one or several, with `answer` set: it is followed. Those answered otherwise are left out and counted.
        at: the span whose positions are read.
        norm: apply the final norm before the unembedding. False is the released code's way: layers 0 to L-1 raw, the
            last point normed (L + 1 points).
        top: how many of the most likely tokens to keep.
        only_correct: False counts every prompt, whatever it answers.
        max_new_tokens: how long an answer may get.
        folder: where what is finished is written as it is done, and the result; a run that was stopped goes on from
            there.
        remote: run on NDIF (True, or a host); None: where the graph runs.
        workers: how many processes measure, or `mmf.Workers(...)`; needs the extra `ray`.
        blocking: False returns a Job at once: the run goes on in the background, and `job.result()` waits for its
            result.
        progress: show a progress bar.
        report: where the cost is told before the run, and trouble with the folder.

    Raises:
        MMFlowError: no prompt counted, or one without an answer.
        SpanError: `at` is no span of a prompt.

    Source: Cross-modal Information Flow in MLLMs (arXiv 2411.18620).

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> result = mmf.lens(graph, mmf.nano.prompts(graph, 2), progress=False)
        >>> len(result.to_frame().query("site == 'resid'")) // result.header["n_counted"] == graph.n_layers + 1
        True
    """
    graph = graph.at(remote)
    prompt_list = listed(prompts, "lens")
    check_answers(prompt_list, "lens", why="and it is the answer that a lens follows, whatever only_correct says")
    for prompt in prompt_list:
        prompt.spans[at]  # refused before any forward
    asked = {"at": at, "norm": norm, "top": top, "only_correct": only_correct, "max_new_tokens": max_new_tokens}
    layers = range(-1, graph.n_layers)

    def collect(entries: list[dict]) -> LensResult:
        rows = rows_of(prompt_list, entries)
        if not rows:
            raise MMFlowError(
                f"none of {len(prompt_list)} prompts was answered correctly; pass only_correct=False to read all."
            )
        return _result(graph, asked, rows, entries)

    study = Study(
        name="lens",
        settings=asked,
        tasks=[prompt_task(prompt, prompt_identity(prompt), *asked.values()) for prompt in prompt_list],
        measure=measure,
        collect=collect,
        cost=lambda left: "a forward and an answer each.",
        cells=lambda task, entry: (
            [(row["layer"], row["position"]) for row in entry["rows"] if row["site"] == "resid"],
            [(layer, p) for layer in layers for p in list(task.given[0].spans[at]) * entry["counted"]],
        ),
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def measure(
    graph: Graph, prompt: Prompt, at: str, norm: bool, top: int, only_correct: bool, max_new_tokens: int
) -> dict:
    """What the journal keeps of one prompt."""
    counts = not only_correct or prompt.accepts(answer_of(graph, prompt, max_new_tokens).text)
    return {"counted": counts, "rows": _read(graph, prompt, list(prompt.spans[at]), norm, top) if counts else []}


def _result(graph: Graph, asked: dict[str, object], rows: list[dict], entries: list[dict]) -> LensResult:
    import pandas as pd

    header = {
        "model": graph.name,
        "at": asked["at"],
        "norm": asked["norm"],
        "top": asked["top"],
        "n_layers": graph.n_layers,
        **counted(["" if entry["counted"] else "answered otherwise" for entry in entries]),
        "metric": "probability of the first sub-token of each word, softmax over the whole vocabulary",
        "versions": versions(),
    }
    return LensResult(pd.DataFrame(rows), header)


def first_token(graph: Graph, word: str | None) -> int | None:
    """The id of the first sub-token of a word, no special tokens; None if there is no word or no such token."""
    if not word:
        return None
    tokenizer = graph.processor.tokenizer
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    return None if not ids or ids[0] == tokenizer.unk_token_id else ids[0]


def _read(graph: Graph, prompt: Prompt, positions: list[int], norm: bool, top: int) -> list[dict]:
    false = prompt.options[1] if prompt.options else None
    words = (prompt.answer, prompt.answer and prompt.answer.capitalize(), false, false and false.capitalize())
    ids = dict(zip(FOLLOWED, (first_token(graph, word) for word in words), strict=True))
    followed = [token for token in ids.values() if token is not None]
    columns = [name for name, token in ids.items() if token is not None]
    attentions = [graph.joining("attn", layer) for layer in range(graph.n_layers)]
    mlps = [graph.joining("mlp", layer) for layer in range(graph.n_layers)]
    cap = graph.logit_cap
    layers, final, unembed = graph.layers, graph.norm, graph.unembed
    top = min(top, graph.vocabulary)
    with torch.no_grad(), graph.trace(prompt, use_cache=False, logits_to_keep=1):
        read = nnsight.save(read_layers(layers, attentions, mlps, final, unembed, cap, positions, followed, top, norm))
    decode = graph.processor.tokenizer.decode
    rows = []
    for site, layer, probabilities, best, _ in read:
        for i, position in enumerate(positions):
            values = dict.fromkeys(FOLLOWED, float("nan"))
            values.update(zip(columns, probabilities[i].tolist(), strict=True))
            rows.append(
                {
                    "site": site,
                    "layer": layer,
                    "point": layer + 1,
                    "position": position,
                    "token": prompt.spans.tokens[position],
                    **values,
                    "top_tokens": [decode([token]) for token in best[i].tolist()],
                }
            )
    return rows
