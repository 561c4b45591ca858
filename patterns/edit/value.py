"""The first half of an edit: what must be added to an MLP's output at the constraint for the model to answer otherwise.

Positions before the constraint do not change, so each step of the optimisation runs only the rest of the prompt, on
the keys and values of a single clean run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import nnsight
import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.optimised import Search, optimised
from nnsight_mmflow.inside.row_masks import Rows
from nnsight_mmflow.inside.rows import tail_start
from nnsight_mmflow.runs.answers import with_target

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt


MOST_LEARNED = 1000  # a learning rate beyond this is a slip, and soon larger than a number may be


@dataclass(frozen=True, kw_only=True)
class EditSettings:
    """How an edit is made. The paper's method is the default; `RELEASED` are the settings of its released script.

    Attributes:
        learning_rate: the step size of Adam, which finds the change.
        steps: how many steps Adam takes at most.
        stop_at: stop when the new answer is this probable; None: never.
        clip: the longest change, as a multiple of the clean output's norm; None: no limit.
        norm_penalty: weight of |change| / |clean output|^2 in the loss.
        regulariser: lambda in the closed-form update: the larger, the less other keys are disturbed.
        first_token: optimise the answer's first token alone.
    """

    learning_rate: float = 0.1
    steps: int = 300
    stop_at: float | None = 0.95
    clip: float | None = None
    norm_penalty: float = 0.0
    regulariser: float = 0.01
    first_token: bool = False

    def __post_init__(self) -> None:
        """Refuses numbers with which nothing can be found."""
        from nnsight_mmflow.arguments.checked import check_fields  # here: it need not travel

        check_fields(self)
        if not 0 < self.learning_rate <= MOST_LEARNED:
            raise MMFlowError(f"learning_rate={self.learning_rate}: above 0, and at most {MOST_LEARNED}.")
        if self.steps < 1 or self.norm_penalty < 0 or self.regulariser <= 0:
            raise MMFlowError(f"{self}: steps is at least 1, norm_penalty at least 0, regulariser above 0.")
        if (self.stop_at is not None and not 0 <= self.stop_at <= 1) or (self.clip is not None and self.clip <= 0):
            raise MMFlowError(f"{self}: stop_at is a probability, clip is above 0; None for neither.")


PAPER = EditSettings()
RELEASED = EditSettings(steps=10, stop_at=None, clip=1e-4, norm_penalty=1e-3, first_token=True)
SETTINGS = {"paper": PAPER, "released": RELEASED}


def settings_of(asked: str | EditSettings) -> EditSettings:
    """The settings of that name, or those that came.

    Raises:
        MMFlowError: there are none of that name.
    """
    if isinstance(asked, str) and asked not in SETTINGS:
        raise MMFlowError(f"settings must be one of {', '.join(SETTINGS)}, or mmf.EditSettings(...), not {asked!r}.")
    return SETTINGS[asked] if isinstance(asked, str) else asked


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One fact to write.

    Attributes:
        prompt: the question with its picture.
        target: the answer that the edited model should give.
        at: the span whose last token's MLP is edited: the question's constraint, such as "text('this place')".
        same: other prompts that ask for the same fact, by what differs ("other image", "rephrased", "by name", ...):
            they should give the new answer as well. `mmf.edit_report` counts them as generalisation.
    """

    prompt: Prompt
    target: str
    at: str
    same: Mapping[str, Sequence[Prompt]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuses what is no prompt, answer or span."""
        from nnsight_mmflow.arguments.checked import check_fields  # here: it need not travel

        check_fields(self)
        if not self.target.strip():
            raise MMFlowError("target is the new answer, but an empty text came.")

    def position(self) -> int:
        """The last token of the constraint."""
        span = self.prompt.spans[self.at]
        if not len(span):
            raise MMFlowError(f"{self.at!r} holds no position of the prompt {self.prompt.question!r}.")
        return span.positions[-1]


@dataclass(frozen=True)
class Found:
    """What the optimisation of one fact found.

    Attributes:
        changes: for each layer what is added to the MLP's output.
        norms: for each layer the norm of the clean output there.
        probabilities: of the new answer before each step, and after the last.
    """

    changes: list[torch.Tensor]
    norms: list[float]
    probabilities: list[float]


def find_changes(graph: Graph, fact: Fact, layers: Sequence[int], settings: EditSettings) -> Found:
    """The changes of the MLP outputs at the constraint (one per layer, found together) that give the new answer."""
    longer, ids = with_target(graph, fact.prompt, fact.target, settings.first_token)
    position = fact.position()
    start = tail_start(position, graph.adapter.bidirectional(longer.spans))
    rows = Rows(start, len(longer) - start, ((0, graph.n_layers),))
    outs, model, all_layers = {layer: graph.mlp_out(layer) for layer in layers}, graph.model, graph.layers
    given, width, causal, enters_after = graph.checked(longer), graph.d_model, graph.causal, graph.enters_after
    remotely = graph.remotely
    search = Search(settings.learning_rate, settings.steps, settings.stop_at, settings.clip, settings.norm_penalty)
    with model.session(**remotely):
        value = nnsight.save(
            optimised(model, all_layers, outs, given, rows, ids, position, search, width, enters_after, causal)
        )
    return Found(*value)


def read_keys(graph: Graph, facts: Sequence[Fact], layer: int) -> torch.Tensor:
    """(facts, in): the inputs of a layer's MLP output projection at the constraints."""
    out, keys = graph.mlp_out(layer), []
    for fact in facts:
        position = fact.position()
        with torch.no_grad(), graph.trace(fact.prompt, use_cache=False, logits_to_keep=1):
            key = nnsight.save(out.inputs[0][0][0, position].detach().float())
        keys.append(key)
    return torch.stack(keys)
