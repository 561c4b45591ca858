"""A TransformerLens bridge bound to a prompt: its functions, and TransformerLens' own tools, run with the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from nnsight_mmflow._errors import MMFlowError, ModelError, NoEffectError, PromptError
from nnsight_mmflow._kinds import came
from nnsight_mmflow.bridge.checks import check_names, guarded
from nnsight_mmflow.bridge.known import graph_of
from nnsight_mmflow.inside.names import CACHE
from nnsight_mmflow.model.forms import form_of
from nnsight_mmflow.model.older_generation import check_pictures

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from transformer_lens import ActivationCache
    from transformer_lens.model_bridge import TransformerBridge

    from nnsight_mmflow.bridge.span_cache import SpanCache
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Batch, Prompt

# Arguments of transformers' generate that are no fields of its configuration, and those of hf_generate that it renames.
HUGGING_FACE = {"generation_config", *CACHE, "assistant_model", "custom_generate", "negative_prompt_ids"}
TRANSFORMER_LENS = ("use_past_kv_cache", "return_type", "stop_at_eos", "verbose")


class BoundBridge:
    """Stands for a bridge wherever tokens are run, and runs them with the prompt's image.

    TransformerLens' tools take it for a model: `generic_activation_patch(bound, bound.tokens, ...)`. What is not named
    here is the bridge's own.

    Attributes:
        bridge: the bridge.
        prompt: the prompt or batch.
        tokens: (batch, positions) its ids.
        image: the keyword arguments that go with them: pixels, attention mask and the like.
    """

    def __init__(self, bridge: TransformerBridge, prompt: Prompt | Batch) -> None:
        self.bridge, self.prompt = bridge, prompt
        self.graph = graph_of(bridge)
        inputs = self.graph.checked(prompt)
        self.tokens: torch.Tensor = inputs.pop("input_ids")
        self.image: Mapping[str, torch.Tensor] = inputs

    def __getattr__(self, name: str) -> object:
        return getattr(self.bridge, name)

    def __call__(self, input: object = None, return_type: str | None = "logits", **kwargs: object) -> Any:
        """What bridge(...) returns, with the image.

        With return_type "loss" or "both" the loss leaves out image tokens and padding as targets, which
        TransformerLens counts.

        Raises:
            PromptError: tokens that do not fit the prompt's image, or text.
        """
        if return_type not in ("loss", "both"):
            return self.bridge(self._tokens(input), return_type=return_type, **self._given(input, kwargs))
        per_token = bool(kwargs.pop("loss_per_token", False))
        tokens = self._tokens(input)
        logits = self.bridge(tokens, return_type="logits", **self._given(input, kwargs))
        loss = self.loss(logits, tokens, per_token)
        return (logits, loss) if return_type == "both" else loss

    forward = __call__

    def loss(
        self,
        logits: Float[torch.Tensor, "batch positions vocabulary"],
        tokens: Int[torch.Tensor, "batch positions"] | None = None,
        per_token: bool = False,
    ) -> torch.Tensor:
        """The next-token loss over targets that are text: the mean, or per token with 0 for those left out."""
        tokens = self.tokens if tokens is None else tokens
        targets = tokens[:, 1:].clone()
        targets[targets == self.graph.image_token_id] = -100
        mask = self.image.get("attention_mask")
        if mask is not None:
            targets[mask[:, 1:] == 0] = -100
            targets[mask[:, :-1] == 0] = -100
        reduction = "none" if per_token else "mean"
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2).float(), targets.to(logits.device), reduction=reduction
        )

    def run_with_hooks(
        self,
        input: object = None,
        fwd_hooks: Sequence[tuple] = (),
        bwd_hooks: Sequence[tuple] = (),
        **kwargs: object,
    ) -> object:
        """What bridge.run_with_hooks returns, with the image.

        Raises:
            NoEffectError: a hook that never fired, or whose edit TransformerLens would have thrown away.
            MMFlowError: there is no such hook point.
        """
        check_names(self.bridge, [name for name, _ in (*fwd_hooks, *bwd_hooks) if isinstance(name, str)])
        fired: dict[int, int] = {}
        watched = [(name, guarded(self.bridge, hook, fired, number)) for number, (name, hook) in enumerate(fwd_hooks)]
        result = self.bridge.run_with_hooks(
            self._tokens(input), fwd_hooks=watched, bwd_hooks=list(bwd_hooks), **self._given(input, kwargs)
        )
        silent = [str(name) for number, (name, _) in enumerate(fwd_hooks) if number not in fired]
        if silent:
            raise NoEffectError(
                f"hooks at {', '.join(silent[:5])} never fired in this run, so they changed nothing. Some hook points"
                " need a setting (attn.hook_result: bridge.set_use_attn_result(True)), others a later stop_at_layer."
            )
        return result

    def run_with_cache(self, input: object = None, **kwargs: object) -> tuple[object, ActivationCache]:
        """What bridge.run_with_cache returns, with the image.

        The cache's `hook_embed` is the merged embedding, where TransformerLens has the placeholder's: so the parts of
        the residual stream sum to the whole at image tokens too.
        """
        result, cache = self.bridge.run_with_cache(self._tokens(input), **self._given(input, kwargs))
        held = getattr(cache, "cache_dict", cache)
        if "hook_embed" in held and "blocks.0.hook_in" in held:
            held["hook_embed"] = held["blocks.0.hook_in"]
        return result, cache

    def run_with_span_cache(
        self, names_filter: Callable[[str], bool] | Sequence[str] | str | None = None, spans: Sequence[str] = ()
    ) -> tuple[torch.Tensor, SpanCache]:
        """(logits, a SpanCache): every activation reduced to spans as it comes, so that no full one is held.

        Args:
            names_filter: which hook points; a name, names, or a function of one; None: all that have positions.
            spans: names or expressions; the parts of the prompt unless given.
        """
        from nnsight_mmflow.bridge.span_cache import run_reduced

        return run_reduced(self.bridge, self.prompt.rows(), self.tokens, self._given(None, {}), names_filter, spans)

    def generate(self, input: object = None, **kwargs: object) -> object:
        """Tokens written after the prompt, with the image, by TransformerLens' own loop: one row per prompt.

        Runs Hugging Face's generation where TransformerLens' own loses positions (families with three axes).

        Raises:
            MMFlowError: use_past_kv_cache=False, with which TransformerLens hands over the image only once; settings
                that only Hugging Face's generation knows (see `hf_generate`).
        """
        tokens, given = self._tokens(input), self._given(input, kwargs)
        if "mm_token_type_ids" in given:
            return self.hf_generate(input, **kwargs)
        if kwargs.get("use_past_kv_cache") is False:
            raise MMFlowError(
                "use_past_kv_cache=False shows the image in the first step alone, without a sign: leave it out."
            )
        known = set(signature(self.bridge.generate).parameters)
        unknown = sorted((set(vars(GenerationConfig())) | HUGGING_FACE) & set(kwargs) - known)
        if unknown:
            raise MMFlowError(
                f"TransformerLens' own generation takes no {', '.join(unknown)}, and would pass it by: use"
                " hf_generate(...), which hands it to Hugging Face's, or graph.generate."
            )
        given.setdefault("verbose", False)
        return self.bridge.generate(tokens, **given)

    def hf_generate(self, input: object = None, **kwargs: object) -> object:
        """Tokens written by Hugging Face's generation, with the image: beams, several samples, with or without a cache.

        Raises:
            MMFlowError: a generation whose forwards hold parts of the prompt or several new tokens (a static cache,
                prefill in chunks, past_key_values, prompt lookup, an assistant): graph.generate follows those.
        """
        tokens, given = self._tokens(input), self._given(input, kwargs)
        if given.get("use_past_kv_cache") is False:
            given["use_cache"] = False
        settings = {
            name: value for name, value in given.items() if name not in self.image and name not in TRANSFORMER_LENS
        }
        check_pictures(self.graph, {"do_sample": True, **settings}, {"input_ids": tokens, **self.image})
        form = form_of(self.graph.at(False), {"do_sample": True, **settings}, tokens.shape)
        problem = form.several or (
            "a static cache" if form.static else "a prompt in parts" if form.parts(tokens.shape[1]) else ""
        )
        if problem:
            raise MMFlowError(
                f"{problem}: hooks of a bridge cannot tell which positions such a forward holds. Leave it out, or use"
                " graph.generate(prompt, ...), which can."
            )
        return self.bridge.hf_generate(tokens, **given)

    def generate_stream(self, *_: object, **__: object) -> object:
        """Refused: TransformerLens' streaming takes no image.

        Raises:
            MMFlowError: each time; it names `generate` instead.
        """
        raise MMFlowError(
            "TransformerLens' generate_stream takes no image, so it would answer without one: use generate."
        )

    def _tokens(self, input: object) -> torch.Tensor:
        if input is None:
            return self.tokens
        if not isinstance(input, torch.Tensor):
            raise PromptError(
                f"{type(input).__name__} came where token ids are needed: text does not hold the image's tokens."
                " Make a prompt with graph.prompt(image, question) and bind that."
            )
        if input.is_floating_point():
            return input
        there, asked = ((ids == self.graph.image_token_id).sum(-1).tolist() for ids in (self.tokens, input))
        if input.shape != self.tokens.shape or there != asked:
            raise PromptError(
                f"the tokens have shape {tuple(input.shape)} and {asked} image tokens by row; the bound prompt has"
                f" {tuple(self.tokens.shape)} and {there}. Bind the prompt that these tokens belong to."
            )
        return input

    def _given(self, input: object, kwargs: dict[str, object]) -> dict[str, object]:
        """The image's keyword arguments, and the caller's over them."""
        if "attention_mask" in kwargs and kwargs["attention_mask"] is None and len(self.tokens) > 1:
            raise PromptError(
                "attention_mask=None in a batch: padding would be read as text. Leave it out: the prompt's is used."
            )
        residual = (
            isinstance(input, torch.Tensor) and input.is_floating_point()
        )  # what has entered already has its image
        named = {name: part for name, part in self.image.items() if not residual or name == "attention_mask"}
        return {**named, **kwargs}


def bound_to(graph: Graph, bridge: TransformerBridge, prompt: Prompt | Batch) -> BoundBridge:
    """The bridge bound to a prompt.

    Raises:
        ModelError: the bridge is of another graph, whose spans and weights may differ.
    """
    from nnsight_mmflow.bridge.bound import BoundBridge

    if not hasattr(bridge, "hook_dict"):
        raise ModelError(f"a bridge is what graph.to_transformer_lens() returns, but {came(bridge)} came.")
    if graph_of(bridge) is not graph:
        raise ModelError(
            f"this bridge belongs to another graph ({graph_of(bridge)}): take the graph that made it, or that"
            " mmf.adapt(bridge) returned last."
        )
    return BoundBridge(bridge, prompt)
