"""What contributions must be compared with: shuffled image tokens, and answers that are wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import nnsight
import numpy as np
import torch

from nnsight_mmflow._errors import MMFlowError, ModelError
from nnsight_mmflow.inside.sites import embed, read_site
from nnsight_mmflow.patterns.contributions.run import read_prompt
from nnsight_mmflow.patterns.patch import Patch

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt
    from nnsight_mmflow.runs.results import Result


def summed(result: Result) -> pd.DataFrame:
    """The rows of the target, summed over heads: not those of generated tokens beside them."""
    table = result.table[result.table["head"] == -1]
    return table[table["generated"] == -1] if "generated" in table else table


def shuffled(result: Result, graph: Graph, prompts: Sequence[Prompt], seed: int) -> Iterator[list[dict]]:
    """For each prompt the rows of `ContributionsResult.position_control`."""
    source, target = result.header["source"], result.header["target"]
    if graph.enters_after:
        raise ModelError(
            f"{graph.family} adds image features again in its first {graph.enters_after} layers: shuffling what enters"
            " the first would mix two orders."
        )
    before = summed(result).groupby(["prompt", "layer"], sort=False)
    for number, prompt in enumerate(prompts):
        span = prompt.spans[source]
        outside = sorted(set(span) - set(prompt.spans["image"]))
        if outside or len(span) < 3:
            raise MMFlowError(f"the control shuffles image tokens, but {source!r} holds positions {outside[:5]} too.")
        order = np.random.default_rng([seed, number]).permutation(len(span))
        entering, positions = embed(graph, 0), list(span)
        with torch.no_grad(), graph.trace(prompt, use_cache=False, logits_to_keep=1):
            merged = nnsight.save(read_site(entering)[0, positions].clone())
        patch = Patch(at=span, site="embed", value=merged[order.tolist()][None, None])
        _, by_layer = read_prompt(graph, prompt, positions, list(prompt.spans[target]), (patch,))
        name, rows = prompt.key or str(number), []
        for layer, read in enumerate(by_layer):
            old = before.get_group((name, layer)).sort_values("index")["norm"].to_numpy()
            new = read.norm.mean(0).numpy()
            rows.append(
                {
                    "prompt": name,
                    "layer": layer,
                    "position_correlation": float(np.corrcoef(old, new)[0, 1]),
                    "content_correlation": float(np.corrcoef(old[order], new)[0, 1]),
                }
            )
        yield rows


def per_prompt(result: Result) -> pd.DataFrame:
    """A row per prompt and layer: the norm summed over source tokens, correct, answer_probability."""
    table = summed(result)
    if table["correct"].isna().any():
        raise MMFlowError(
            "some prompts have no answer to compare with: graph.prompt(..., answer=...) before mmf.contributions."
        )
    found = table.groupby(["prompt", "layer"], sort=False).agg(
        norm=("norm", "sum"), correct=("correct", "first"), confidence=("answer_probability", "first")
    )
    return found.reset_index()


def correctness(result: Result, layers: Sequence[int] | None, seed: int) -> pd.DataFrame:
    """The table of `ContributionsResult.correctness`."""
    import pandas as pd

    by_prompt = per_prompt(result)
    wrong = sorted(set(layers or ()) - set(by_prompt["layer"]))
    if wrong:
        raise MMFlowError(f"layers {wrong} do not exist; there are {result.header['n_layers']}, counted from 0.")
    chosen = by_prompt if layers is None else by_prompt[by_prompt["layer"].isin(list(layers))]
    each = chosen.groupby("prompt", sort=False).agg(
        contribution=("norm", "mean"), confidence=("confidence", "first"), correct=("correct", "first")
    )
    right = each["correct"].to_numpy(dtype=bool)
    if right.all() or not right.any():
        raise MMFlowError(
            f"{int(right.sum())} of {len(right)} prompts are answered rightly: both kinds are needed to compare them."
        )
    random, rows = np.random.default_rng(seed), []
    for score in ("contribution", "confidence"):
        values = each[score].to_numpy(dtype=float)
        yes, no = values[right], values[~right]
        drawn = [auroc(random.choice(yes, len(yes)), random.choice(no, len(no))) for _ in range(1000)]
        ends: list[float] = np.percentile(drawn, [2.5, 97.5]).tolist()
        rows.append(
            {
                "score": score,
                "auroc": auroc(yes, no),
                "low": ends[0],
                "high": ends[1],
                "n_correct": len(yes),
                "n_incorrect": len(no),
                "mean_correct": float(yes.mean()),
                "mean_incorrect": float(no.mean()),
            }
        )
    return pd.DataFrame(rows)


def auroc(higher: np.ndarray, lower: np.ndarray) -> float:
    """How often a number of the first kind is above one of the second; a tie counts half.

    Example:
        >>> import numpy as np
        >>> auroc(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
        0.875
    """
    differences = higher[:, None] - lower[None, :]
    return float((differences > 0).mean() + 0.5 * (differences == 0).mean())
