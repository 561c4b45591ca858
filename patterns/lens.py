"""What each layer would answer: the residual stream, attention and MLP outputs read through the unembedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, ClassVar

import nnsight
import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._progress import say
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.inside.generated import lag_of
from nnsight_mmflow.inside.readout import read_layers
from nnsight_mmflow.prompts.continued import generated_positions
from nnsight_mmflow.prompts.prompt import Prompt
from nnsight_mmflow.runs.experiment import experiment
from nnsight_mmflow.runs.generated import (
    again,
    check_forward,
    check_generated,
    generated_ids,
    planned,
    with_generated,
    written_of,
)
from nnsight_mmflow.runs.identity import prompt_identity
from nnsight_mmflow.runs.results import Result, versions
from nnsight_mmflow.runs.right_answers import check_answers
from nnsight_mmflow.runs.runner import Study, Task, counted, listed, prompt_task, rows_of, run_study
from nnsight_mmflow.runs.sweep import answer_of

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.runs.workers import Workers

FOLLOWED = ("answer_lower", "answer_capitalized", "false_lower", "false_capitalized")
WRITTEN = "written_probability"


class LensResult(Result):
    """Probabilities by layer. One table row per prompt, site, layer and position.

    Columns: prompt, kind, site ("resid", "attn", "mlp"), layer (-1: the embeddings), point (layer + 1, the paper's
    count of the residual stream), position, token, the probabilities answer_lower, answer_capitalized, false_lower and
    false_capitalized (NaN where the tokenizer has no such token or the prompt no false option), top_tokens. With
    `generated=` also generated (which generated token is read at; -1: a position of `at`), written (the token that
    the model writes behind the position; missing where none follows) and written_probability.
    """

    kind: ClassVar[str] = "lens"
    drawn_by: ClassVar[str] = "lens_figure"  # the followed probabilities by layer, a panel per site

    @property
    def n_generated(self) -> int:
        """How many generated tokens have rows, at most, over the prompts; 0 where none were asked for."""
        return int(self.table["generated"].max()) + 1 if "generated" in self.table else 0

    @checked
    def token(self, index: int) -> LensResult:
        """The lens at the generated token at `index`, as a result of its own: of the prompts that have one.

        Raises:
            MMFlowError: no prompt has one.
        """
        if not 0 <= index < self.n_generated:
            raise MMFlowError(
                f"token({index}): the generated tokens are {self.n_generated}, counted from 0; mmf.lens(...,"
                " generated=n) asks for them."
            )
        table = self.table[self.table["generated"] == index].drop(columns="generated").reset_index(drop=True)
        count = int(table["prompt"].nunique())
        return LensResult(table, {**self.header, "at": f"generated[{index}]", "n_counted": count})

    def of_at(self) -> pd.DataFrame:
        """The rows of the positions of `at`: the table, without those of generated tokens beside them."""
        return self.table[self.table["generated"] == -1] if "generated" in self.table else self.table

    def summary(self) -> str:
        """Where the answer appears."""
        table = self.of_at()
        followed = [name for name in (*FOLLOWED, WRITTEN) if name in table]
        stream = table[table["site"] == "resid"].groupby("layer")[followed].mean()
        lines = [f"{self.header['model']}: {self.header['n_counted']} of {self.header['n_prompts']} prompts counted"]
        for name in followed:
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
    generated: int = 0,
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
        generated: how many tokens the model writes first, greedily (fewer where its answer ends); the lens then
            reads at each of them too, and follows what is written next (columns generated, written,
            written_probability). `generated` and `generated[k]` are spans too; `result.token(k)` is the result of one.
            Prompts then need no answer under only_correct=False.
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
    check_generated(prompt_list, generated)
    if only_correct or not generated:
        check_answers(prompt_list, "lens", why="and it is the answer that a lens follows, whatever only_correct says")
    for prompt in prompt_list:
        planned(graph, prompt, generated).spans[at]  # refused before any forward
    asked = {"at": at, "norm": norm, "top": top, "only_correct": only_correct, "max_new_tokens": max_new_tokens}
    asked |= {"generated": generated} if generated else {}
    layers = range(-1, graph.n_layers)

    def collect(entries: list[dict]) -> LensResult:
        rows = rows_of(prompt_list, entries)
        if not rows:
            raise MMFlowError(
                f"none of {len(prompt_list)} prompts was answered correctly; pass only_correct=False to read all."
            )
        told = {"generated": generated, "written": written_of(graph, prompt_list, entries)} if generated else {}
        return _result(graph, asked, rows, entries, told)

    study = Study(
        name="lens",
        settings=asked,
        tasks=[prompt_task(prompt, prompt_identity(prompt), *asked.values()) for prompt in prompt_list],
        measure=measure,
        collect=collect,
        cost=lambda left: "a forward and an answer each.",
        cells=lambda task, entry: (
            [(row["layer"], row["position"]) for row in entry["rows"] if row["site"] == "resid"],
            [(layer, p) for layer in layers for p in _places_of(graph, task, at, entry)],
        ),
    )
    return run_study(graph, study, folder=folder, workers=workers, blocking=blocking, progress=progress, report=report)


def measure(
    graph: Graph,
    prompt: Prompt,
    at: str,
    norm: bool,
    top: int,
    only_correct: bool,
    max_new_tokens: int,
    generated: int = 0,
) -> dict:
    """What the journal keeps of one prompt."""
    if only_correct and not prompt.accepts(answer_of(graph, prompt, max_new_tokens).text):
        return {"counted": False, "rows": []}
    whole = with_generated(graph, prompt, generated)
    rows = _read(graph, whole, _places(whole, at), norm, top)
    return {"counted": True, "rows": rows, **({"generated": generated_ids(whole)} if generated else {})}


def _places(prompt: Prompt, at: str) -> list[int]:
    """The positions that are read: of `at`, and every generated token."""
    return list(dict.fromkeys([*prompt.spans[at], *generated_positions(prompt)]))


def _places_of(graph: Graph, task: Task, at: str, entry: dict) -> list[int]:
    """The same of what was kept."""
    return _places(again(graph, task.given[0], entry.get("generated", [])), at) * entry["counted"]


def _result(graph: Graph, asked: dict[str, object], rows: list[dict], entries: list[dict], told: dict) -> LensResult:
    import pandas as pd

    header = {
        "model": graph.name,
        "at": asked["at"],
        "norm": asked["norm"],
        "top": asked["top"],
        "n_layers": graph.n_layers,
        **told,
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
    written = generated_ids(prompt)
    steps, lag = len(written), (0.0, 1.0)
    followed = [token for token in ids.values() if token is not None]
    columns = [name for name, token in ids.items() if token is not None]
    follows = list(dict.fromkeys(written))
    attentions = [graph.joining("attn", layer) for layer in range(graph.n_layers)]
    mlps = [graph.joining("mlp", layer) for layer in range(graph.n_layers)]
    cap, model = graph.logit_cap, graph.model
    layers, final, unembed = graph.layers, graph.norm, graph.unembed
    top, tokens, steps_of = min(top, graph.vocabulary), [*followed, *follows], torch.tensor(written, dtype=torch.long)
    with torch.no_grad(), graph.trace(prompt, use_cache=False, logits_to_keep=steps + 1):
        read = nnsight.save(read_layers(layers, attentions, mlps, final, unembed, cap, positions, tokens, top, norm))
        if steps:
            lag = nnsight.save(lag_of(model.output.logits[0, -steps - 1 : -1], steps_of))
    check_forward(*lag, str(read[0][2].dtype).removeprefix("torch."))
    decode, place = graph.processor.tokenizer.decode, len(prompt) - steps
    held = list(generated_positions(prompt))
    rows = []
    for site, layer, probabilities, best, _ in read:
        for i, position in enumerate(positions):
            values = dict.fromkeys(FOLLOWED, float("nan"))
            values.update(zip(columns, probabilities[i].tolist(), strict=False))
            behind: dict[str, object] = {}
            if steps:
                number = position - place + 1  # of the token that is written behind this position
                there = 0 <= number < steps
                column = len(followed) + follows.index(written[number]) if there else 0
                behind = {
                    "generated": held.index(position) if position in held else -1,
                    "written": decode([written[number]]) if there else None,
                    WRITTEN: float(probabilities[i, column]) if there else float("nan"),
                }
            rows.append(
                {
                    "site": site,
                    "layer": layer,
                    "point": layer + 1,
                    "position": position,
                    "token": prompt.spans.tokens[position],
                    **values,
                    **behind,
                    "top_tokens": [decode([token]) for token in best[i].tolist()],
                }
            )
    return rows
