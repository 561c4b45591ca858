"""Activation and attribution patching on a TransformerLens bridge, with spans where its own tools have positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError, NoEffectError
from nnsight_mmflow.arguments.checked import checked
from nnsight_mmflow.bridge.span_cache import span_masks

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens import ActivationCache

    from nnsight_mmflow.bridge.bound import BoundBridge

Metric = Callable[[torch.Tensor], torch.Tensor]


@checked
def patch_by_span(
    corrupt: BoundBridge,
    clean_cache: ActivationCache | Mapping[str, torch.Tensor],
    metric: Metric,
    activation: str = "resid_pre",
    spans: Sequence[str] = (),
    layers: Sequence[int] | None = None,
) -> pd.DataFrame:
    """The metric when a span's clean activations stand in the corrupt run: layers by spans.

    TransformerLens' `generic_activation_patch` with a span axis for its position axis: one forward per cell.
    `frame.attrs["corrupt"]` is the metric without any patch.

    Args:
        corrupt: the bridge bound to the corrupt prompt.
        clean_cache: what run_with_cache returned for the clean prompt.
        metric: from logits to a number.
        activation: TransformerLens' short name: "resid_pre", "attn_out", "mlp_out", "z" and the like.
        spans: names or expressions; the prompt's parts unless given.
        layers: the layers that are patched, one after the other; all unless given.

    Raises:
        NoEffectError: the clean activations are those of the corrupt run, in every cell.
        MMFlowError: the clean run has other positions.

    Example:
        >>> import nnsight_mmflow as mmf
        >>> graph = mmf.load("nano")
        >>> bridge = graph.to_transformer_lens()
        >>> clean, corrupt = (graph.bound(bridge, one) for one in mmf.nano.prompts(graph, 2, "QueryAttr"))
        >>> _, cache = clean.run_with_cache()
        >>> mmf.bridge.patch_by_span(corrupt, cache, lambda logits: logits[0, -1, 5], layers=[0, 5]).shape
        (2, 5)
    """
    import pandas as pd
    from transformer_lens.patching import generic_activation_patch
    from transformer_lens.utilities import get_act_name

    rows = corrupt.prompt.rows()
    names, masks = span_masks(rows, spans)
    chosen = range(corrupt.graph.n_layers) if layers is None else layers
    cells = pd.DataFrame([(layer, number) for layer in chosen for number in range(len(names))], columns=["layer", "i"])
    changed = 0

    def put(there: torch.Tensor, index: Sequence[int], clean: torch.Tensor) -> torch.Tensor:
        nonlocal changed
        if clean.shape != there.shape:
            raise MMFlowError(
                f"{activation} has shape {tuple(clean.shape)} in the clean run and {tuple(there.shape)} in the corrupt"
                " one: positions would not mean the same. Take prompts of equal length."
            )
        after = there.clone()
        for row, mask in enumerate(masks[:, int(index[1])]):
            at = mask.nonzero().flatten().to(there.device)
            changed += int((after[row, at] != clean[row, at]).sum())
            after[row, at] = clean[row, at]
        return after

    with torch.no_grad():
        for layer in chosen:
            if get_act_name(activation, layer) not in clean_cache:
                raise MMFlowError(f"the clean cache lacks {get_act_name(activation, layer)}: widen its names_filter.")
        before = float(metric(corrupt()))
        after = generic_activation_patch(corrupt, corrupt.tokens, clean_cache, metric, put, activation, index_df=cells)
    if not changed:
        raise NoEffectError("the clean cache holds what the corrupt run computes: is it of the same picture and words?")
    frame = pd.DataFrame(after.reshape(len(chosen), len(names)).cpu().numpy(), list(chosen), list(names))
    frame.index.name = "layer"
    frame.attrs["corrupt"] = before
    return frame


@checked
def attribution_by_span(
    clean: BoundBridge,
    corrupt: BoundBridge,
    metric: Metric,
    activation: str = "resid_pre",
    spans: Sequence[str] = (),
) -> pd.DataFrame:
    """What `patch_by_span` would change, estimated with one gradient: layers by spans.

    The sum over a span of (clean activation - corrupt activation) times the metric's gradient in the corrupt run. They
    may have different pictures, for which TransformerLens' `attribution_patch` has no place.

    Args:
        clean: the bridge bound to the clean prompt.
        corrupt: the same bridge bound to the corrupt prompt, of as many positions.
        metric: from logits to a number.
        activation: TransformerLens' short name: "resid_pre", "attn_out", "mlp_out", "z" and the like.
        spans: names or expressions; the prompt's parts unless given.

    Raises:
        NoEffectError: clean and corrupt run are the same.
        MMFlowError: they have different positions, or the metric has no gradient.
    """
    import pandas as pd
    from transformer_lens.utilities import get_act_name

    if clean.tokens.shape != corrupt.tokens.shape:
        raise MMFlowError(
            f"the clean prompt has {tuple(clean.tokens.shape)} rows and positions, the corrupt one"
            f" {tuple(corrupt.tokens.shape)}: they must be equal."
        )
    names, masks = span_masks(corrupt.prompt.rows(), spans)
    points = [get_act_name(activation, layer) for layer in range(corrupt.graph.n_layers)]
    held: dict[str, dict[str, torch.Tensor]] = {"clean": {}, "corrupt": {}}

    def keep(side: str, name: str) -> Callable[..., torch.Tensor | None]:
        def run(tensor: torch.Tensor, hook: object) -> torch.Tensor | None:
            if side == "corrupt" and not tensor.requires_grad:
                tensor = tensor.detach().requires_grad_()  # the first one: nothing before it needs a gradient
            held[side][name] = tensor if side == "corrupt" else tensor.detach()
            return tensor if side == "corrupt" else None

        return run

    with torch.no_grad():
        clean.run_with_hooks(fwd_hooks=[(name, keep("clean", name)) for name in points])
    with torch.enable_grad():
        logits = corrupt.run_with_hooks(fwd_hooks=[(name, keep("corrupt", name)) for name in points])
        value = metric(logits)
        if not value.requires_grad:
            raise MMFlowError("the metric has no gradient: return a number computed from the logits, no rank or text.")
        gradients = torch.autograd.grad(value, [held["corrupt"][name] for name in points])
    values, moved = torch.zeros(len(points), len(names)), 0.0
    for layer, (name, gradient) in enumerate(zip(points, gradients, strict=True)):
        difference = held["clean"][name] - held["corrupt"][name].detach()
        moved += float(difference.abs().max())
        effect = (difference * gradient).flatten(2).sum(-1)
        values[layer] = torch.einsum("bp,bsp->s", effect.float().cpu(), (masks > 0).float())
    if not moved:
        raise NoEffectError("the clean and the corrupt run are the same: is it the same picture and the same words?")
    frame = pd.DataFrame(values.numpy(), range(len(points)), list(names))
    frame.index.name = "layer"
    return frame
