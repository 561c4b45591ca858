"""TransformerLens over the same weights: a bridge on a twin module tree, and a graph for a bridge that is there.

TransformerLens replaces submodules in place and runs eager attention, so the two sides share parameters, not modules.
It is built from the loaded model, so nothing is fetched and nothing is installed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import ModelError
from nnsight_mmflow.bridge.known import _GRAPHS
from nnsight_mmflow.inside.names import CACHE, cache_in

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    from nnsight_mmflow.model.graph import Graph

WRAPPED = "._original_component"  # in the names of parameters behind a bridge


def to_bridge(graph: Graph) -> TransformerBridge:
    """A TransformerBridge on a twin of the graph's model: other modules, the same parameters.

    Raises:
        ModelError: TransformerLens is missing, or does not know this architecture, or the weights are not loaded.
    """
    try:
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    except ImportError as error:
        raise ModelError("TransformerLens 4 is missing: pip install 'transformer-lens>=4.3,<5'.") from error
    model = graph.adapter.model
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ModelError("the weights are not loaded (dispatch=False), so there is nothing to share: load them first.")
    architecture, tokenizer = type(model).__name__, _with_bos(graph.processor.tokenizer)
    mirror = twin(model)
    try:
        with _without_needless_libraries():
            bridge = build_bridge_from_module(mirror, architecture, hf_config=mirror.config, tokenizer=tokenizer)
    except (AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"TransformerLens cannot take {architecture} with a {graph.text_config.model_type} text model and a"
            f" {graph.adapter.config.vision_config.model_type} tower: {error}. The nnsight side has every pattern."
        ) from error
    tokenizer.init_kwargs = graph.processor.tokenizer.init_kwargs
    bridge.processor = graph.processor
    _hand_on_cache(bridge)
    _GRAPHS[bridge] = graph
    return bridge


def graph_for(bridge: TransformerBridge, processor: ProcessorMixin) -> Graph:
    """A graph of a bridge that is there already, on plain modules that share its parameters.

    Raises:
        ModelError: the bridge's weights were processed, so that the plain modules would compute something else.
    """
    from nnsight_mmflow.model.load import adapt

    if bridge.compatibility_mode:
        raise ModelError(
            "this bridge is in compatibility mode: its weights are no longer the model's. Call mmf.adapt(bridge) before"
            " bridge.enable_compatibility_mode()."
        )
    graph = adapt(plain(bridge.original_model), processor)
    _hand_on_cache(bridge)
    _GRAPHS[bridge] = graph
    return graph


def twin(model: torch.nn.Module) -> PreTrainedModel:
    """Another tree of modules on the same parameters and buffers."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]})


def plain(bridged: PreTrainedModel) -> PreTrainedModel:
    """The Hugging Face model whose modules a bridge has replaced, built anew on the same parameters and buffers."""
    config = copy.deepcopy(bridged.config)
    with torch.device("meta"):
        model = type(bridged)(config)
    modules = dict(model.named_modules())
    for kind in ("parameters", "buffers"):
        for name, tensor in getattr(bridged, f"named_{kind}")(remove_duplicate=False):
            owner, _, leaf = name.replace(WRAPPED, "").rpartition(".")
            if owner in modules and leaf in getattr(modules[owner], f"_{kind}"):  # a bridge has more names than modules
                getattr(modules[owner], f"_{kind}")[leaf] = tensor
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise ModelError(f"the bridge's model lacks {', '.join(left[:5])}: it cannot be rebuilt.")
    return model.eval()


def _hand_on_cache(bridge: TransformerBridge) -> None:
    """Has each attention handed the cache under the name that TransformerLens looks for, whatever transformers' is.

    Without one it attends to the new token alone, and generates as if there were no prompt. A plain AttentionBridge
    runs transformers' own attention, which is handed what came.
    """
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    for part in bridge.modules():
        if isinstance(part, AttentionBridge) and type(part).forward is not AttentionBridge.forward:
            part.register_forward_pre_hook(_under_older_name, with_kwargs=True)


def _under_older_name(_: torch.nn.Module, given: tuple, named: dict) -> tuple[tuple, dict] | None:
    cache = cache_in(named)
    return None if cache is None else (given, {**named, CACHE[-1]: cache})


def _with_bos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy that TransformerLens takes as it is: it would fetch one anew that always puts a first token."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.init_kwargs = {**tokenizer.init_kwargs, "name_or_path": "", "add_bos_token": True}
    return tokenizer


@contextmanager
def _without_needless_libraries() -> Iterator[None]:
    """Some adapters ask for torchvision, which only a processor would need that the graph has already."""
    from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter

    check = ArchitectureAdapter._check_required_libraries
    ArchitectureAdapter._check_required_libraries = lambda self: None
    try:
        yield
    finally:
        ArchitectureAdapter._check_required_libraries = check
