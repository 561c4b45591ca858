"""Prune: image tokens leave the sequence between layers, by a ranking that is one function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from nnsight_mmflow._errors import MMFlowError, ModelError, NoEffectError
from nnsight_mmflow._later import later
from nnsight_mmflow.inside.forwards import Held, factor_of
from nnsight_mmflow.inside.layer_inputs import LayerInputs
from nnsight_mmflow.inside.prune_choice import Pruned, of_prompt
from nnsight_mmflow.inside.prune_layers import prune_prefill, prune_step, steps_need_care
from nnsight_mmflow.inside.pruning import Row, Stage, Way
from nnsight_mmflow.inside.tower import TowerSeen, read_tower
from nnsight_mmflow.model.edits import MaskEdit, row_length
from nnsight_mmflow.model.pattern import RANKS, Pattern, check_whole
from nnsight_mmflow.patterns.prune.checks import check_form, check_stages, rope_of

if TYPE_CHECKING:
    from nnsight_mmflow.inside.passage import Passage
    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Batch, Prompt
    from nnsight_mmflow.spans.row_spans import Spans

MODES = ("drop", "mask")
POSITIONS = ("original", "renumbered")


@dataclass(frozen=True, kw_only=True)
class Prune(Pattern):
    """Drops image tokens between layers: after each stage those with the highest ranks stay.

    A method of your own is one function: `Prune(own=[mmf.prune.Stage(layer=2, keep=0.5, rank=my_rank)])`, where
    `my_rank` takes an `mmf.prune.Seen` and returns a number per image token that is present.

    Attributes:
        mode: "drop" (the tokens leave the sequence and the cache: the speed question), or "mask" (their keys close from
            that layer on: the causal question). Both give the kept tokens the same results.
        positions: "original" (what is left keeps its positions) or "renumbered" (counted anew from there on, as some
            released methods do; wrong positions cost grounding dearly, so compare both).
        own: the stages, for a method that has no class.

    Raises:
        NoEffectError: when run, if every image token stays.
        MMFlowError: when run, if a stage's layer or number does not exist, or there is no image.

    In a generation the prompt's first forward chooses; the kept set is frozen, and all after it read what is left.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> prompt = mmf.nano.prompts(graph, 1)[0]
        >>> with graph.trace(prompt, mmf.FastV(k=4, r=0.5)):
        ...     logits = graph.unembed.output.save()
        >>> logits.shape[1] == len(prompt) - 32
        True
    """

    order: ClassVar[int] = RANKS
    attends: ClassVar[bool] = True

    mode: str = "drop"
    positions: str = "original"
    own: Sequence[Stage] = field(default=(), repr=False)

    reads_tower: ClassVar[bool] = False  # whether its ranking looks at what the vision tower made
    measured: ClassVar[bool] = False  # whether how many tokens stay depends on what is seen

    @property
    def merges(self) -> bool:
        """Whether tokens that stay hold something new. A method that merges overwrites this."""
        return False

    def stages(self, graph: Graph, image_tokens: int) -> list[Stage]:
        """The stages for a prompt with so many image tokens. A method overwrites this."""
        return list(self.own)

    def plan(self, graph: Graph, spans: Spans) -> list[Stage]:
        """The stages for a prompt; a method that looks at spans overwrites this instead of `stages`."""
        return self.stages(graph, len(spans["image"]))

    def budget(self, graph: Graph, image_tokens: int) -> float:
        """Mean image tokens per layer: the unit in which methods are compared.

        Raises:
            MMFlowError: it depends on the prompt (`mmf.kept_tokens` counts it).
        """
        from nnsight_mmflow._kinds import whole
        from nnsight_mmflow.runs.costs import tokens_per_layer

        whole("image_tokens", image_tokens, 1)
        if self.measured:
            raise MMFlowError(
                f"how many tokens {type(self).__name__} keeps depends on the prompt:"
                " mmf.kept_tokens(graph, prompt, method).counts."
            )

        return sum(tokens_per_layer(self.stages(graph, image_tokens), image_tokens, graph.n_layers)) / graph.n_layers

    def check(self, graph: Graph, rows: tuple[Spans, ...], form: Form | None) -> None:
        """Refuses, before any forward, what cannot be done or would change nothing."""
        if self.mode not in MODES:
            raise MMFlowError(f"mode must be one of {', '.join(MODES)}, not {self.mode!r}.")
        if self.positions not in POSITIONS:
            raise MMFlowError(f"positions must be one of {', '.join(POSITIONS)}, not {self.positions!r}.")
        if self.positions == "renumbered" and "mrope_section" in (rope_of(graph) or {}):
            raise ModelError(
                f"{graph.family} counts positions along three axes, so they cannot be counted anew:"
                " take positions='original'."
            )
        if self.reads_tower and graph.tower_layer is None:
            raise ModelError(
                f"{type(self).__name__} reads the class token of the vision tower and needs a patch per image token:"
                f" the LLaVA family with a CLIP tower has both, this {graph.family} has not."
            )
        for row, spans in enumerate(rows):
            if not len(spans["image"]):
                raise NoEffectError(f"{self} would change nothing: row {row} has no image.")
            stages = self.plan(graph, spans)
            if not stages:
                raise MMFlowError(
                    f"{type(self).__name__} has no stage: Prune(own=[mmf.prune.Stage(layer=2, keep=0.5, rank=...)])."
                )
            check_stages(str(self), graph, stages, len(spans["image"]))
        if form is not None:
            check_whole(str(self), rows, form)
            check_form(str(self), self.mode == "drop" or self.positions == "renumbered", form)
        forgets = form is not None and form.cached
        if (self.mode == "drop" and forgets) or (self.positions == "renumbered" and (form is None or forgets)):
            window = getattr(graph.text_config, "sliding_window", None)
            longest = max(spans["all"].row[1] for spans in rows)
            uses = getattr(graph.text_config, "use_sliding_window", True)
            if window and uses and longest >= window:
                raise ModelError(
                    f"the prompt has {longest} positions and the model's sliding window {window}: its cache would"
                    " forget by what is left, not by where it stood. Take mode='mask', positions='original'."
                )

    def edits(self, graph: Graph, rows: tuple[Spans, ...], prompt: Prompt | Batch | None) -> list[MaskEdit]:
        """The keys that it closes in each layer of a TransformerLens bridge, as it chooses them on the nnsight side."""
        return later("closed_keys")(self, graph, rows, prompt)

    def inside(self, graph: Graph, rows: tuple[Spans, ...], part: str) -> list[int]:
        """The layers whose attention it reads."""
        return self.reads(graph, rows) if part in ("layer", "attn") else []

    def reads(self, graph: Graph, rows: tuple[Spans, ...]) -> list[int]:
        """The layers by whose attention it ranks."""
        stages = [stage for spans in rows for stage in self.plan(graph, spans)]
        return sorted({stage.layer - (stage.reads == "previous") for stage in stages if stage.reads})

    def leaves_from(self, graph: Graph, rows: tuple[Spans, ...]) -> int | None:
        """The layer of its first stage."""
        return min((stage.layer for spans in rows for stage in self.plan(graph, spans)), default=None)

    def drops_from(self, graph: Graph, rows: tuple[Spans, ...]) -> int | None:
        """The same, where tokens leave the sequence."""
        return self.leaves_from(graph, rows) if self.mode == "drop" else None

    def run(self, graph: Graph, rows: tuple[Spans, ...]) -> int:
        """Does it inside the edit that `graph.trace` makes; returns how many image tokens were dropped."""
        return dropped_tokens(self, self.prefill(graph, rows), rows)

    def run_each(self, graph: Graph, rows: tuple[Spans, ...], passage: Passage) -> None:
        """Does it inside the edit that `graph.generate` makes: chosen once, left out in each forward after it."""
        way, told = self._way(graph), Told()

        def read() -> None:
            told.towers = self._read_towers(graph, rows)

        def act(held: Held) -> bool:
            if told.found is not None and held.cached:
                prune_step(passage, held, told.found, way)
                return False
            found = self._prefill(graph, rows, passage, held, told.towers, told.found)
            if told.found is None:
                told.found = of_prompt(found, passage.length)
                dropped_tokens(self, told.found, rows)
            return held.cached and not steps_need_care(told.found, way, passage)

        passage.each(act, read)

    def prefill(self, graph: Graph, rows: tuple[Spans, ...]) -> Pruned:
        """Does it inside a trace of the prompt, and returns what each layer keeps."""
        towers, passage = self._read_towers(graph, rows), LayerInputs(graph, len(rows), row_length(rows))
        return self._prefill(graph, rows, passage, passage.held_at(0), towers)

    def _prefill(
        self,
        graph: Graph,
        rows: tuple[Spans, ...],
        passage: Passage,
        held: Held,
        towers: list[TowerSeen | None],
        before: Pruned | None = None,
    ) -> Pruned:
        return prune_prefill(
            passage,
            held,
            graph,
            [self.plan(graph, spans) for spans in rows],
            [row_of(spans) for spans in rows],
            self._way(graph),
            towers,
            before,
        )

    def _read_towers(self, graph: Graph, rows: tuple[Spans, ...]) -> list[TowerSeen | None]:
        return _towers(graph, rows) if self.reads_tower else [None] * len(rows)

    def _way(self, graph: Graph) -> Way:
        cap = getattr(graph.text_config, "attn_logit_softcapping", None)
        scale = graph.attention(0)._module.scaling
        return Way(self.mode == "drop", self.positions == "renumbered", graph.causal, scale, cap)


@dataclass
class Told:
    """What a generation's first forward has told: the towers' output, and what each layer keeps."""

    towers: list[TowerSeen | None] = field(default_factory=list)
    found: Pruned | None = None


def row_of(spans: Spans) -> Row:
    """The plain positions of one prompt."""
    image = spans["image"]
    last = image.positions[-1]
    after = tuple(position for position in spans["all"] if position > last)
    return Row(spans["all"].row, image.positions, after, image.places())


def _towers(graph: Graph, rows: tuple[Spans, ...]) -> list[TowerSeen | None]:
    """What the tower made of each row's pictures, which lie one row after another."""
    assert graph.tower_layer is not None
    seen, first, found = read_tower(graph, graph.tower_layer), 0, []
    counts = [1 + max(place.image for place in spans["image"].places()) for spans in rows]
    factor = factor_of(len(seen.features), sum(counts))  # pictures may come once for each row that stands for a prompt
    for count in counts:
        found.append(seen.of(first, count, factor))
        first += count * factor
    return list(found)


def dropped_tokens(pattern: Prune, found: Pruned, rows: tuple[Spans, ...]) -> int:
    """How many tokens have left by the last layer.

    Raises:
        NoEffectError: none.
    """
    last = found.kept[-1]
    assert last is not None
    real = sum(spans["all"].row[1] - spans["all"].row[0] for spans in rows)
    gone = real - int(last.alive.sum()) // factor_of(len(last.alive), len(rows))
    if not gone:
        raise NoEffectError(f"{pattern} would change nothing: its ranking keeps every image token.")
    return gone
