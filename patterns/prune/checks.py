"""What pruning cannot do, refused before any forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError, ModelError, NoEffectError
from nnsight_mmflow.inside.pruning import Stage, check_stage

if TYPE_CHECKING:
    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.model.graph import Graph


def check_form(pattern: str, moves: bool, form: Form) -> None:
    """Refuses generations whose cache cannot lose tokens, to a pattern by which tokens leave or move."""
    why = "a static cache has room for every position in every layer" if form.static else ""
    if form.several:
        why = f"{form.several} takes back tokens from every layer of the cache alike"
    if why and moves:
        raise MMFlowError(
            f"{pattern} leaves each layer another number of positions, but {why}. Take mode='mask',"
            " positions='original' (kept tokens get the same results), or leave that setting out."
        )


def rope_of(graph: Graph) -> dict | None:
    """How the model turns queries and keys, from its configuration."""
    return getattr(graph.text_config, "rope_parameters", None) or getattr(graph.text_config, "rope_scaling", None)


def check_stages(pattern: str, graph: Graph, stages: list[Stage], image_tokens: int) -> None:
    """Refuses stages before layers that do not exist or that cannot lose tokens, and those that keep all."""
    for stage in stages:
        check_stage(stage)
    layers = [stage.layer for stage in stages]
    wrong = [stage.layer for stage in stages if not (0 if stage.reads == "" else 1) <= stage.layer < graph.n_layers]
    if wrong:
        raise MMFlowError(
            f"{pattern}: tokens can leave before layers 1 to {graph.n_layers - 1}, not before {wrong}: before layer 0"
            " there is no attention to rank by (what reads none may go there); behind the last nothing is saved."
        )
    if layers != sorted(set(layers)):
        raise MMFlowError(f"{pattern}: its stages lie before layers {layers}; they must rise.")
    early = [layer for layer in layers if layer < graph.enters_after]
    if early:
        raise ModelError(
            f"{pattern}: {graph.family} adds image features again in its first {graph.enters_after} layers, so tokens"
            f" can leave before layer {graph.enters_after} or later, not before {early}."
        )
    for stage in stages:
        if isinstance(stage.keep, float) and not 0 <= stage.keep <= 1:
            raise MMFlowError(f"{pattern}: a share of tokens lies in 0 to 1, not {stage.keep}.")
        if stage.keep < 0:
            raise MMFlowError(f"{pattern}: {stage.keep} tokens cannot stay.")
    if all(stage.count(image_tokens) == image_tokens and not stage.exact for stage in stages):
        raise NoEffectError(f"{pattern} would change nothing: it keeps all {image_tokens} image tokens.")
