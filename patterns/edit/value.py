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
from transformers import DynamicCache

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.names import cache_of, cached
from nnsight_mmflow.inside.rows import LayerInput, Rows, clean_inputs, crop_cache, enter_layer, prepared, tail_start
from nnsight_mmflow.runs.answers import with_target

if TYPE_CHECKING:
    from nnsight import Envoy, TransformersModel

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt


MOST_LEARNED = 1000  # a learning rate beyond this is a slip, and soon larger than a number may be


@dataclass(frozen=True, kw_only=True)
class EditSettings:
    """How an edit is made. The paper's method is the default; `RELEASED` are the settings of its released script.

    Attributes:
        learning_rate: of Adam.
        steps: at most so many.
        stop_at: stop when the new answer is this probable; None: never.
        clip: the longest change, as a multiple of the clean output's norm; None: no limit.
        norm_penalty: times |change| / |clean output|^2, added to the loss.
        regulariser: lambda of the update.
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


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One fact to write.

    Attributes:
        prompt: the question with its picture.
        target: the new answer.
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
    rows = Rows(start, len(longer) - start, ((0, graph.n_layers),), (0,), ((),), ((),))
    outs, model, all_layers = {layer: graph.mlp_out(layer) for layer in layers}, graph.model, graph.layers
    given, width, causal, enters_after = graph.checked(longer), graph.d_model, graph.causal, graph.enters_after
    remotely = graph.remotely
    with model.session(**remotely):
        found = nnsight.save(
            optimised(model, all_layers, outs, given, rows, ids, position, settings, width, enters_after, causal)
        )
    return Found(*found)


def optimised(
    model: TransformersModel,
    all_layers: Envoy,
    outs: dict[int, Envoy],
    given: dict[str, torch.Tensor],
    rows: Rows,
    ids: list[int],
    position: int,
    settings: EditSettings,
    width: int,
    enters_after: int,
    causal: bool,
) -> tuple[list[torch.Tensor], list[float], list[float]]:
    """Inside a session: what `Found` holds; the whole optimisation is one request on a server.

    Args:
        model: the model.
        all_layers: its decoder layers.
        outs: by layer, whose output is changed.
        given: the prompt's tensors, with the answer behind it.
        rows: its tail, as one row.
        ids: of the new answer.
        position: where the change is added.
        settings: how it is found.
        width: of the residual stream.
        enters_after: of the model.
        causal: of the model.
    """
    start, n_layers = rows.start, rows.windows[0][1]
    with torch.no_grad(), model.trace(**given, **cached(model, DynamicCache()), use_cache=True, logits_to_keep=1):
        clean = nnsight.save(clean_inputs(all_layers, n_layers, start, enters_after, causal))
        cache = nnsight.save(cache_of(model.output))
    inputs, closed, opened = prepared(clean, 0, rows)
    device = inputs[0].hidden.device
    changes = [torch.zeros(width, device=device, requires_grad=True) for _ in outs]
    adam = torch.optim.Adam(changes, lr=settings.learning_rate)
    spots = torch.arange(start, start + rows.tail, device=device)[None]
    targets, norms, probabilities = torch.tensor(ids, device=device), [0.0] * len(changes), []
    for step in range(settings.steps + 1):
        crop_cache(cache, start)
        for layer in cache.layers:  # the last step's gradients must not reach into this one
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        with model.trace(
            inputs_embeds=inputs[0].hidden,
            position_ids=spots,
            attention_mask=opened[0][None, None],
            **cached(model, cache),
            use_cache=True,
            logits_to_keep=len(ids),
        ):
            seen = nnsight.save(add_changes(all_layers, outs, rows, inputs, opened, closed, changes, position - start))
            result = nnsight.save(loss_and_gradients(model.output.logits[0], targets, changes))
        log, gradients = result
        norms = norms if step else [float(norm) for norm in seen]
        probabilities.append(float(torch.tensor(log).exp()))
        if step == settings.steps or (settings.stop_at is not None and probabilities[-1] > settings.stop_at):
            break
        for change, gradient, norm in zip(changes, gradients, norms, strict=True):
            change.grad = gradient
            length = float(change.detach().norm())
            if settings.norm_penalty and length:
                change.grad = gradient + settings.norm_penalty * change.detach() / (length * norm**2)
        adam.step()
        if settings.clip is not None:
            with torch.no_grad():
                for change, norm in zip(changes, norms, strict=True):
                    change.mul_(min(1.0, settings.clip * norm / float(change.norm())))
    return [change.detach() for change in changes], norms, probabilities


def add_changes(
    layers: Envoy,
    outs: dict[int, Envoy],
    rows: Rows,
    inputs: list[LayerInput],
    opened: list[torch.Tensor],
    closed: torch.Tensor,
    changes: list[torch.Tensor],
    position: int,
) -> list[torch.Tensor]:
    """Inside a trace: runs the tail with the changes added, and returns the norms of what they were added to."""
    present = 0
    norms: list[torch.Tensor] = []
    for layer in range(len(inputs)):
        present = enter_layer(layers, layer, rows, inputs, opened, closed, present)
        if layer in outs:
            before = outs[layer].output
            after = before.clone()
            after[0, position] = before[0, position] + changes[len(norms)].to(before)
            outs[layer].output = after
            norms.append(before[0, position].detach().float().norm())
    return norms


def loss_and_gradients(
    logits: torch.Tensor, targets: torch.Tensor, changes: list[torch.Tensor]
) -> tuple[float, list[torch.Tensor]]:
    """Inside a trace: the log-probability of the answer, and the gradient of minus it by each change."""
    log = logits.float().log_softmax(-1).gather(1, targets.to(logits.device)[:, None]).sum()
    gradients = torch.autograd.grad(-log, changes)
    return float(log.detach()), [gradient.detach() for gradient in gradients]


def read_keys(graph: Graph, facts: Sequence[Fact], layer: int) -> torch.Tensor:
    """(facts, in): the inputs of a layer's MLP output projection at the constraints."""
    out, found = graph.mlp_out(layer), []
    for fact in facts:
        position = fact.position()
        with torch.no_grad(), graph.trace(fact.prompt, use_cache=False, logits_to_keep=1):
            key = nnsight.save(out.inputs[0][0][0, position].detach().float())
        found.append(key)
    return torch.stack(found)
