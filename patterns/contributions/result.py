"""What attention contributions return: which tokens carry how much, where, and what knocking them out does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow._later import later
from nnsight_mmflow._look import Look
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.runs.image_results import ImageResult

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow._look import Colors, Figure, Labels, Places, Rows, Size
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt


class ContributionsResult(ImageResult):
    """Attention contributions. One table row per prompt, layer, source token, and head if asked for.

    Columns: prompt, kind, answer (the first token that the model writes), answer_probability, correct, layer, index
    (within the source), position, token, row and column (of an image's patch),
    head (-1: the sum over heads), norm, sum_of_head_norms, projection (on the answer's direction), weight (mean over
    heads), share (of the norms of all positions). With `generated=` also generated: which generated token reads (-1:
    the target); everything below but `token` is of the target.
    """

    kind: ClassVar[str] = "contributions"
    drawn_by: ClassVar[str] = "contributions_figure"  # the source's share by layer, and the mean norm of each patch
    image_by: ClassVar[str] = "contributions_on_image"

    @property
    def n_generated(self) -> int:
        """How many generated tokens have rows, at most, over the prompts; 0 where none were asked for."""
        return int(self.table["generated"].max()) + 1 if "generated" in self.table else 0

    @checked
    def token(self, index: int) -> ContributionsResult:
        """What the generated token at `index` takes, as a result of its own: of the prompts that have one.

        Raises:
            MMFlowError: no prompt has one.
        """
        if not 0 <= index < self.n_generated:
            raise MMFlowError(
                f"token({index}): the generated tokens are {self.n_generated}, counted from 0; mmf.contributions(...,"
                " generated=n) asks for them."
            )
        table = self.table[self.table["generated"] == index].drop(columns="generated").reset_index(drop=True)
        count = int(table["prompt"].nunique())
        told = {"target": f"generated[{index}]", "n_prompts": count, "n_counted": count}
        return ContributionsResult(table, {**self.header, **told})

    def summed(self) -> pd.DataFrame:
        """The rows of the target, summed over heads."""
        from nnsight_mmflow.patterns.contributions.controls import summed

        return summed(self)

    @checked
    def top(self, k: int) -> pd.DataFrame:
        """For each prompt its k source tokens with the largest norm, summed over layers: prompt, index, position, norm.

        Raises:
            MMFlowError: a prompt has fewer source tokens.
        """
        summed = self.summed().groupby(["prompt", "index", "position"], sort=False)["norm"].sum()
        largest = summed.reset_index().sort_values("norm", ascending=False).groupby("prompt", sort=False).head(k)
        short = largest.groupby("prompt")["index"].count()
        if not 0 < k <= int(short.min()):
            raise MMFlowError(f"k={k}: the prompts have {int(short.min())} source tokens or more.")
        return largest.sort_values(["prompt", "norm"], ascending=[True, False]).reset_index(drop=True)

    @checked
    def concentration(self, k: int) -> pd.DataFrame:
        """By layer, the means over prompts: how the k largest source tokens compare with the others.

        Columns: layer, total (summed norm of the source), share (of all positions), top_share (of the k in the source's
        total), density (mean norm of the k over that of the others).
        """
        import pandas as pd

        rows = []
        for (_, layer), part in self.summed().groupby(["prompt", "layer"]):
            norms = part["norm"].sort_values(ascending=False).to_numpy()
            rest = norms[k:].mean() if len(norms) > k else float("nan")
            rows.append(
                {
                    "layer": layer,
                    "total": norms.sum(),
                    "share": part["share"].sum(),
                    "top_share": norms[:k].sum() / norms.sum(),
                    "density": norms[:k].mean() / rest,
                }
            )
        return pd.DataFrame(rows).groupby("layer").mean().reset_index()

    @checked
    def overlap(self, k: int) -> float:
        """Mean overlap (intersection over union) of the top-k source indices between every two prompts.

        Near k / (2n - k) of n source tokens where the sets are drawn by chance; near 1 where the same places carry
        most in every picture, whatever it shows.
        """
        import itertools

        sets = [set(part["index"]) for _, part in self.top(k).groupby("prompt")]
        pairs = [len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2)]
        if not pairs:
            raise MMFlowError("the overlap of top tokens needs at least two prompts.")
        return sum(pairs) / len(pairs)

    @checked
    def knock_out(self, graph: Graph, prompts: Sequence[Prompt], k: int, seed: int = 0) -> pd.DataFrame:
        """What happens to the answer when the target may not read the top-k tokens, and when not as many random others.

        Returns a row per prompt: prompt, base_probability, top_probability, random_probability.

        Raises:
            MMFlowError: the prompts are not those of this result.
        """
        import numpy as np
        import pandas as pd
        import torch

        from nnsight_mmflow.patterns.knockout import Knockout

        names = self._same(prompts)
        random, rows = np.random.default_rng(seed), []
        chosen = {str(name): part["position"].tolist() for name, part in self.top(k).groupby("prompt")}
        for name, prompt in zip(names, prompts, strict=True):
            with torch.no_grad(), graph.trace(prompt, use_cache=False, logits_to_keep=1):
                base = graph.model.output.logits[0, -1].float().softmax(-1).cpu().save()
            token, source = int(base.argmax()), prompt.spans[self.header["source"]]
            others = sorted(set(source) - set(chosen[name]))
            drawn = random.choice(others, min(k, len(others)), replace=False).tolist()
            row = {"prompt": name, "base_probability": float(base[token])}
            for what, positions in (("top", chosen[name]), ("random", drawn)):
                part = source.part(positions, f"{what} {k} of {source.name}")
                pattern = Knockout(source=part, target=self.header["target"], layers=range(graph.n_layers))
                with torch.no_grad(), graph.trace(prompt, pattern, use_cache=False, logits_to_keep=1):
                    after = graph.model.output.logits[0, -1].float().softmax(-1).cpu().save()
                row[f"{what}_probability"] = float(after[token])
            rows.append(row)
        return pd.DataFrame(rows)

    @checked
    def position_control(self, graph: Graph, prompts: Sequence[Prompt], seed: int = 0) -> pd.DataFrame:
        """Do large contributions follow what a patch shows, or where its token stands?

        The image's merged embeddings are shuffled before the first layer, and contributions are read again. Returns a
        row per prompt and layer: prompt, layer, position_correlation (of the norms at each position, before and after)
        and content_correlation (of the norms of each patch, wherever its token went). Where the first is near one and
        the second near zero, the position decides: a peak there says nothing about the picture.

        Raises:
            MMFlowError: the prompts are not those of this result, or the source is not the image.
            ModelError: the family adds image features in later layers as well.

        Source: the control that arXiv 2406.04236 lacks.
        """
        import pandas as pd

        from nnsight_mmflow.patterns.contributions.controls import shuffled

        self._same(prompts)
        return pd.DataFrame([row for prompt in shuffled(self, graph, prompts, seed) for row in prompt])

    @checked
    def correctness(self, layers: Sequence[int] | None = None, seed: int = 0) -> pd.DataFrame:
        """Do contributions tell right answers from wrong ones? AUROC with n and a 95% interval, beside confidence.

        Returns a row for "contribution" (a prompt's norm, summed over source tokens, mean over the layers; None: all)
        and one for "confidence" (the answer's probability): score, auroc, low, high, n_correct, n_incorrect,
        mean_correct, mean_incorrect. Layers chosen by looking at these same prompts flatter the score.

        Raises:
            MMFlowError: prompts without an answer, or all of them right, or all wrong.

        Source: arXiv 2406.04236, figures 15 to 17 (there: n about 34 and 50, no interval).
        """
        from nnsight_mmflow.patterns.contributions.controls import correctness

        return correctness(self, layers, seed)

    def plot_correctness(
        self,
        *,
        ax: Places = None,
        rows: Rows = None,
        figsize: Size = None,
        colors: Colors = None,
        labels: Labels = None,
    ) -> Figure:
        """The mean summed norm by layer, of prompts answered rightly and wrongly, with 95% intervals.

        Arguments as in `plot`; the names are "right" and "wrong".
        """
        return later("correctness_figure")(self, Look(ax, rows, figsize, colors, labels))

    def _same(self, prompts: Sequence[Prompt]) -> list[str]:
        names = [prompt.key or str(number) for number, prompt in enumerate(prompts)]
        if names != list(dict.fromkeys(self.table["prompt"])):
            raise MMFlowError("these are not the prompts that the result is of, in their order.")
        return names

    def summary(self) -> str:
        """Where the target takes most from the source."""
        table, header = self.summed(), self.header
        shares = table.groupby(["prompt", "layer"])["share"].sum().groupby("layer").mean()
        return (
            f"{header['model']}: {header['n_prompts']} prompts, {header['source']}->{header['target']}: largest share"
            f" of all contributions at layer {shares.idxmax()}, {shares.max():.0%}; the sums over all positions"
            f" equal the attention's output to {header['largest_error']:.0e} of its size"
        )
