"""Patterns on a TransformerLens bridge: as hooks for its own functions, or for as long as a context is open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import ModelError, NoEffectError
from nnsight_mmflow.bridge.bound import bound_to
from nnsight_mmflow.bridge.checks import computes_attention, why_inert
from nnsight_mmflow.bridge.known import graph_of
from nnsight_mmflow.inside.masks import kept_keys, layer_mask
from nnsight_mmflow.inside.names import cache_in
from nnsight_mmflow.model.edits import HookEdit, MaskEdit
from nnsight_mmflow.model.forms import PLAIN

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from nnsight_mmflow.bridge.bound import BoundBridge
    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.model.pattern import Pattern
    from nnsight_mmflow.prompts.prompt import Batch, Prompt
    from nnsight_mmflow.spans.row_spans import Spans

Hook = tuple[str, Callable[..., "torch.Tensor | None"]]


@dataclass
class Counted:
    """How often a pattern's edits ran, and how much they changed."""

    pattern: Pattern
    ran: int = 0
    changed: int = 0

    def add(self, changed: int) -> None:
        """One more edit ran."""
        self.ran += 1
        self.changed += changed

    def check(self) -> None:
        """Refuses a pattern that changed nothing.

        Raises:
            NoEffectError: it changed nothing, or the bridge was not run.
        """
        if not self.ran:
            raise NoEffectError(
                f"{self.pattern} changed nothing: no forward reached its layers. Run the bridge inside the context,"
                " and not with stop_at_layer before them."
            )
        if not self.changed:
            raise NoEffectError(f"{self.pattern} changed nothing: what it writes or closes was so already.")


def hooks_of(pattern: Pattern, bridge: TransformerBridge, spans: Spans | tuple[Spans, ...]) -> list[Hook]:
    """The pattern as `fwd_hooks` for run_with_hooks.

    Raises:
        ModelError: TransformerLens does not compute this model's attention itself, so that scores cannot be edited.
        NoEffectError: the pattern would change nothing.
        MMFlowError: the pattern cannot do what it asks for on this model or prompt.
    """
    graph, rows = graph_of(bridge), spans if isinstance(spans, tuple) else (spans,)
    pattern.check(graph, rows, _form(pattern))
    counted, hooks = Counted(pattern), []
    edits = pattern.prepared(graph, rows).edits(graph, rows, None)
    for edit in edits:
        if isinstance(edit, HookEdit):
            hooks.append((edit.name, _hook(bridge, edit, counted, edit is edits[-1])))
            continue
        if not computes_attention(bridge.blocks[edit.layer].attn):
            raise ModelError(
                f"TransformerLens leaves the attention of {graph.family} to Hugging Face, so editing its scores would"
                f" do nothing. Use `with graph.hooks(bridge, prompt, {type(pattern).__name__}(...)):`, which closes"
                " edges in the mask."
            )
        hooks.append((f"blocks.{edit.layer}.attn.hook_attn_scores", _counting(edit, counted, edit is edits[-1])))
    return hooks


@contextmanager
def hooked(
    graph: Graph, bridge: TransformerBridge, prompt: Prompt | Batch, patterns: tuple[Pattern, ...]
) -> Iterator[BoundBridge]:
    """The bridge, bound to the prompt, with the patterns at work; nothing stays when the context ends.

    Raises:
        NoEffectError: when it ends, for a pattern that changed nothing.
    """
    from nnsight_mmflow.model.together import check_together

    bound, rows = bound_to(graph, bridge, prompt), prompt.rows()
    if len(patterns) > 1:
        check_together(graph, patterns, rows)
    counts = []
    with ExitStack() as stack:
        fwd: list[Hook] = []
        for pattern in patterns:
            pattern.check(graph, rows, _form(pattern))
            counted = Counted(pattern)
            counts.append(counted)
            for edit in pattern.prepared(graph, rows).edits(graph, rows, prompt):
                if isinstance(edit, HookEdit):
                    fwd.append((edit.name, _hook(bridge, edit, counted)))
                else:
                    block = bridge.blocks[edit.layer].attn
                    handle = block.register_forward_pre_hook(_mask(edit, counted, graph.causal), with_kwargs=True)
                    stack.callback(handle.remove)
        stack.enter_context(bridge.hooks(fwd_hooks=fwd))
        yield bound
        for counted in counts:
            counted.check()


def _form(pattern: Pattern) -> Form | None:
    """Of the generation in whose steps it acts too; on a bridge they are told by the number of queries."""
    return PLAIN if pattern.when != "prefill" else None


def _hook(
    bridge: TransformerBridge, edit: HookEdit, counted: Counted, last: bool = False
) -> Callable[..., torch.Tensor | None]:
    why, _ = why_inert(bridge, edit.name)
    if why:
        raise ModelError(f"{counted.pattern} would change nothing on this bridge. {why}")

    return _counting(edit, counted, last)


def _counting(edit: HookEdit | MaskEdit, counted: Counted, last: bool) -> Callable[..., torch.Tensor | None]:
    """The edit as a hook function; the last of a list says whether all of it changed anything."""

    def run(tensor: torch.Tensor, hook: object) -> torch.Tensor | None:
        new, changed = edit.change(tensor)
        counted.add(changed)
        if last:  # layers are met in order, so what has changed nothing by now does nothing
            counted.check()
        return new

    return run


def _mask(edit: MaskEdit, counted: Counted, causal: bool) -> Callable[..., tuple]:
    def run(module: torch.nn.Module, given: tuple, named: dict) -> tuple:
        hidden, mask = named["hidden_states"] if "hidden_states" in named else given[0], named.get("attention_mask")
        past = kept_keys(cache_in(named), edit.layer)[0] if mask is None else mask.shape[-1] - hidden.shape[1]
        new, changed = edit.change(layer_mask(mask, hidden, past, causal))
        counted.add(changed)
        return given, {**named, "attention_mask": new}

    return run
