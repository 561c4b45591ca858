"""What attention maps are: weights of one prompt, pooled by groups of positions, and attention sinks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from nnsight_mmflow._errors import DataError, MMFlowError
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.patterns.attention.pooled import PooledAttention, pooled
from nnsight_mmflow.prompts.continued import continued, generated_kind
from nnsight_mmflow.runs.generated import generated_ids
from nnsight_mmflow.runs.results import Result, versions
from nnsight_mmflow.spans.groups import Grouping

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

    from nnsight_mmflow.prompts.prompt import Prompt

SINK = 10.0  # times an even share
FILE = "attention.safetensors"


@dataclass(frozen=True, repr=False)
class AttentionResult(Result):
    """Attention weights of one prompt, on the CPU; `to_frame()` has a row for each of them.

    The table that is shown and drawn is the maps pooled by span. One row per layer, target and source. Columns: layer,
    target, source, mass (attention that a target of the one gives the other in all, mean over heads), n_targets,
    n_sources.

    Attributes:
        weights: (layers, heads, targets, sources): the softmax over all positions, cut to the sources that were asked.
        layers: the layers, counted from 0.
        heads: the heads, counted from 0.
        targets: positions that read.
        sources: positions that are read.
        received: (layers, positions): what each position of the whole prompt gets from later ones (see `sinks`).
        prompt: what was run, with the generated tokens behind it if there are any; None where the maps were loaded
            without it.
    """

    weights: Float[torch.Tensor, "layers heads targets sources"] = field(repr=False)
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    targets: tuple[int, ...] = field(repr=False)
    sources: tuple[int, ...] = field(repr=False)
    received: Float[torch.Tensor, "layers positions"] = field(repr=False)
    prompt: Prompt | None = field(default=None, repr=False)
    kind: ClassVar[str] = "attention"
    drawn_by: ClassVar[str] = "attention_figure"  # a heat map: which span reads which, layer by layer

    @classmethod
    def of(
        cls,
        weights: Float[torch.Tensor, "layers heads targets sources"],
        layers: tuple[int, ...],
        heads: tuple[int, ...],
        targets: tuple[int, ...],
        sources: tuple[int, ...],
        received: Float[torch.Tensor, "layers positions"],
        prompt: Prompt,
        model: str = "",
        patterns: Sequence[str] = (),
        target: str = "all",
        source: str = "all",
    ) -> AttentionResult:
        """The maps with their table and header.

        Args:
            weights: what each target gives each source, by layer and head.
            layers: the layers of the first axis of `weights`.
            heads: the heads of its second axis.
            targets: the positions of its third axis, which read.
            sources: the positions of its fourth axis, which are read.
            received: what each position of the prompt receives in each layer, over all heads.
            prompt: the prompt that was run.
            model: its name.
            patterns: what was done to it, in words.
            target: what the targets were asked for as.
            source: the same of the sources.
        """
        by_span = pooled(prompt.spans, weights.mean(1, keepdim=True), layers, (0,), targets, sources, "span", "span")
        header = {
            "model": model,
            **{"layers": list(layers), "heads": list(heads), "targets": list(targets), "sources": list(sources)},
            **{"patterns": list(patterns), "target": target, "source": source},
            "question": prompt.question,
            "prompt": (prompt.continues or prompt).digest(),
            "generated": generated_ids(prompt),
            "generated_type": generated_kind(prompt) if prompt.continues else 0,
            "tokens": list(prompt.spans.tokens),
            "metric": "attention mass: the sum over a span's sources, mean over targets and heads",
            "versions": versions(),
        }
        table = by_span.to_frame().drop(columns="head")
        return cls(table, header, weights, layers, heads, targets, sources, received, prompt)

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.header["model"])

    @property
    def patterns(self) -> tuple[str, ...]:
        """What was done to the model, in words."""
        return tuple(self.header["patterns"])

    @property
    def n_rows(self) -> int:
        """How many weights there are."""
        return self.weights.numel()

    def shown_prompt(self) -> Prompt:
        """The prompt.

        Raises:
            MMFlowError: the maps were loaded without it.
        """
        if self.prompt is None:
            raise MMFlowError(
                "these attention maps were loaded without the prompt whose spans and picture are needed:"
                " mmf.results.AttentionResult.load(folder, prompt)."
            )
        return self.prompt

    @property
    def generated(self) -> tuple[int, ...]:
        """The positions of the generated tokens; () where none were."""
        written = len(self.header.get("generated", ()))
        length = len(self.header["tokens"])
        return tuple(range(length - written, length))

    def whole(self, prompt: Prompt) -> Prompt:
        """The prompt with the generated tokens of these maps behind it, if there are any."""
        ids, tokens = self.header.get("generated", ()), self.header["tokens"]
        if not ids or prompt.continues is not None:
            return prompt
        return continued(prompt, ids, tokens[len(prompt) :], int(self.header.get("generated_type", 0)))

    def is_of(self, prompt: Prompt) -> bool:
        """Whether the maps are of this prompt: as it was asked, or with these generated tokens behind it."""
        same = (prompt.continues or prompt).digest() == self.header["prompt"]
        return same and (prompt.continues is None or generated_ids(prompt) == self.header.get("generated"))

    @property
    def tokens_read(self) -> tuple[int, ...]:
        """Which generated tokens are among the targets, counted from 0: pictures have a slider over them."""
        if "token" in self.header:
            return ()
        return tuple(number for number, position in enumerate(self.generated) if position in set(self.targets))

    @checked
    def token(self, index: int) -> AttentionResult:
        """The maps of one generated token alone, the one at `index`: its row, of all that it reads.

        Raises:
            MMFlowError: there is no such token among the targets.
        """
        if index not in self.tokens_read:
            there = ", ".join(map(str, self.tokens_read)) or "none"
            raise MMFlowError(f"token({index}): the generated tokens among the targets are {there}, counted from 0.")
        return self.rows([self.generated[index]], token=index)

    def rows(self, targets: Sequence[int], **told: object) -> AttentionResult:
        """The maps of some targets; `told` goes to the header."""
        weights = self.weights[:, :, [self.targets.index(position) for position in targets]]
        found = AttentionResult.of(
            weights,
            self.layers,
            self.heads,
            tuple(targets),
            self.sources,
            self.received,
            self.shown_prompt(),
            self.model,
            self.patterns,
        )
        return replace(found, header={**found.header, **told})

    def part(self, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None) -> AttentionResult:
        """The maps of some layers and heads.

        Raises:
            MMFlowError: some that they do not hold.
        """
        kept, used = tuple(self.layers if layers is None else layers), tuple(self.heads if heads is None else heads)
        for wanted, there, what in ((kept, self.layers, "layers"), (used, self.heads, "heads")):
            wrong = sorted(set(wanted) - set(there))
            if wrong or not wanted:
                raise MMFlowError(f"{what} {wrong or 'none'} asked for; the maps hold {', '.join(map(str, there))}.")
        down, across = [self.layers.index(layer) for layer in kept], [self.heads.index(head) for head in used]
        positions = {"targets": self.targets, "sources": self.sources, "prompt": self.shown_prompt()}
        found = {"weights": self.weights[down][:, across], "received": self.received[down], **positions}
        found |= {role: self.header.get(role, "all") for role in ("target", "source")}
        return AttentionResult.of(layers=kept, heads=used, model=self.model, patterns=self.patterns, **found)  # type: ignore[arg-type]

    @checked
    def at(self, layer: int) -> Float[torch.Tensor, "heads targets sources"]:
        """The weights of one layer."""
        return self.weights[self._index(layer)]

    def by_span(self, rows: Grouping = "span", columns: Grouping | None = None) -> PooledAttention:
        """The maps pooled by groups of positions, as a PooledAttention: attention mass, not mean weight.

        Args:
            rows: how targets are grouped: "span", "image_row", "tile", "text_token", "token", or names with spans; see
                `nnsight_mmflow.spans.groups.groups_of`.
            columns: how sources are grouped; as the rows unless given.

        Raises:
            SpanError: groups that overlap, hold nothing, or leave out a target or source.
        """
        spans, across = self.shown_prompt().spans, rows if columns is None else columns
        return pooled(spans, self.weights, self.layers, self.heads, self.targets, self.sources, rows, across)

    @checked
    def sinks(self, layer: int, times: float = SINK) -> tuple[int, ...]:
        """The positions that are attention sinks in this layer: most later positions read them, whatever is asked.

        A position is one if the median, over all later positions of the prompt, of the weight they give it (mean over
        heads) is more than `times` an even share: 1 over the number of positions that the later one may read. The
        median, because a token with something to say is read much by a few, a sink by nearly all. The last few
        positions of a prompt (those with fewer than 16 later ones) are never called sinks: neighbours read one another.
        All positions and heads count, whatever `targets`, `sources` and `heads` were asked for.

        Source: what a sink is: Xiao et al., arXiv 2309.17453, section 3.1 (the first tokens), and Kang et al., arXiv
            2503.03321 (image tokens; there found by massive activations, here by the attention itself).
            The factor is ours.
        """
        received = self.received[self._index(layer)]
        return tuple((received > times).nonzero().flatten().tolist())

    def to_frame(self) -> pd.DataFrame:
        """A row per layer, head, target and source: layer, head, target, source (positions), weight."""
        import pandas as pd

        index = pd.MultiIndex.from_product(
            [self.layers, self.heads, self.targets, self.sources], names=["layer", "head", "target", "source"]
        )
        return pd.DataFrame({"weight": self.weights.flatten().numpy()}, index).reset_index()

    def summary(self) -> str:
        """What is held, and the sinks of each layer."""
        shape = " x ".join(map(str, self.weights.shape))
        lines = [f"{self.model}: attention weights, {shape} (layers, heads, targets, sources)"]
        lines += [f"under {pattern}" for pattern in self.patterns]
        for layer in self.layers:
            found = [f"{self.header['tokens'][at]!r} ({at})" for at in self.sinks(layer)]
            lines.append(f"layer {layer}, sinks: {', '.join(found[:8]) or 'none'}{' ...' if len(found) > 8 else ''}")
        return "\n".join(lines)

    def _more_files(self) -> Mapping[str, bytes]:
        """The weights, as attention.safetensors."""
        from safetensors.torch import save

        tensors = {"weights": self.weights.contiguous(), "received": self.received.contiguous()}
        return {FILE: save(tensors, {"prompt": str(self.header["prompt"])})}

    @classmethod
    def load(cls, folder: str | PathLike[str], prompt: Prompt | None = None) -> AttentionResult:
        """The maps that were saved in the folder; with their prompt, by which they are pooled and drawn on pictures.

        Raises:
            DataError: the folder holds no maps, damaged ones, or those of another prompt.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        table, header = cls._read(folder)
        file, axes = Path(folder) / FILE, ("layers", "heads", "targets", "sources")
        try:
            tensors = load(file.read_bytes())
            weights, received = tensors["weights"], tensors["received"]
            held = {name: tuple(map(int, header[name])) for name in axes}
            if tuple(weights.shape) != tuple(map(len, held.values())):
                raise ValueError(f"weights of {tuple(weights.shape)}")
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise DataError(f"{file} does not hold the weights of these maps ({error}): save them again.") from error
        found = cls(table, header, weights, **held, received=received, prompt=prompt)
        if prompt is None:
            return found
        if not found.is_of(prompt):
            raise DataError(f"the maps in {folder} are of another prompt: its question was {header['question']!r}.")
        return replace(found, prompt=found.whole(prompt))

    def _index(self, layer: int) -> int:
        if layer not in self.layers:
            raise MMFlowError(f"layer {layer} was not read: the maps hold {', '.join(map(str, self.layers))}.")
        return self.layers.index(layer)
