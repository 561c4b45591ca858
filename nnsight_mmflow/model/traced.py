"""How a graph runs prompts with patterns: traces, generations, and the checks before them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nnsight_mmflow._later import later
from nnsight_mmflow.inside.forwards import check_given
from nnsight_mmflow.inside.names import with_its_cache
from nnsight_mmflow.model.intervention import Intervention
from nnsight_mmflow.model.loaded import Loaded
from nnsight_mmflow.prompts.encode import checked_inputs
from nnsight_mmflow.remote.pixels import travelling

if TYPE_CHECKING:
    import torch
    from nnsight import TransformersModel
    from nnsight.intervention.tracer import InterleavingTracer

    from nnsight_mmflow.model.forms import Form
    from nnsight_mmflow.prompts.prompt import Batch, Prompt


class Traced(Loaded):
    """What runs prompts. A Graph is one."""

    def trace(
        self, prompt: Prompt | Batch | Mapping[str, torch.Tensor], *patterns: Intervention, **kwargs: object
    ) -> InterleavingTracer:
        """An nnsight trace of the prompt with the patterns applied: `with graph.trace(prompt, Knockout(...)): ...`.

        Keyword arguments go to nnsight and on to the model's forward. Without patterns a mapping of tensors may stand
        for the prompt.

        Raises:
            NoEffectError: a pattern that would change nothing.
            PromptError: tensors that do not fit together.
        """
        here = self.at(kwargs.pop("remote", None))  # type: ignore[arg-type]
        here.check_weights(kwargs)
        if not here.remote:  # a server's transformers may have another name for it
            kwargs = with_its_cache(self.adapter.model, kwargs)
        inputs = here.checked(prompt)
        check_given(inputs, kwargs, patterns, steps=False)
        return here.in_turn(lambda: here.edited(prompt, patterns).trace(**inputs, **here.placed(kwargs)))

    def generate(
        self, prompt: Prompt | Batch | Mapping[str, torch.Tensor], *patterns: Intervention, **kwargs: object
    ) -> InterleavingTracer:
        """An nnsight generation of the prompt with the patterns applied; read `tracer.result` for the ids.

        Interventions act wherever the prompt's positions are computed; those with `when="decode"` or "all" on each new
        token. Keyword arguments go to the model's `generate`; what they leave open, the checkpoint's own generation
        config says, as in transformers (`graph.generation_settings(...)` tells). With patterns these forms are exact:
        greedy, sampling, beams, several returned sequences, each with a cache (dynamic or static) or without, a cache
        of the prompt's first positions given as `past_key_values`, prefill in chunks, and several new tokens a step
        (prompt lookup, an assistant model); the documentation's table says which pattern takes which.

        Raises:
            NoEffectError: a pattern that would change nothing.
            PromptError: tensors that do not fit together.
            MMFlowError: settings in which a pattern could not act, before any forward.
        """
        from nnsight_mmflow.model.forms import form_of
        from nnsight_mmflow.model.older_generation import check_pictures

        here = self.at(kwargs.pop("remote", None))  # type: ignore[arg-type]
        here.check_weights(kwargs)
        if not here.remote:  # a server's transformers may have another name for it
            kwargs = with_its_cache(self.adapter.model, kwargs)
        inputs = here.checked(prompt)
        check_given(inputs, kwargs, patterns, steps=True)
        check_pictures(here, kwargs, inputs)
        form = form_of(here, kwargs, inputs["input_ids"].shape) if patterns else None
        fixed = {} if form is None else form.fixed

        def made() -> InterleavingTracer:
            model = here.edited(prompt, patterns, form)
            return model.trace(fn=model.generate, **inputs, **here.placed({**kwargs, **fixed}))

        return here.in_turn(made)

    def generation_settings(self, **settings: object) -> dict[str, object]:
        """The settings that `graph.generate(prompt, **settings)` would use, whether from here or from the checkpoint.

        Raises:
            MMFlowError: transformers refuses them.

        Example:
            >>> import nnsight_mmflow as mmf
            >>> mmf.load("nano").generation_settings(max_new_tokens=4, num_beams=2)["num_beams"]
            2
        """
        from nnsight_mmflow.model.generation_settings import settings_used

        return settings_used(self, settings)

    def edited(
        self,
        prompt: Prompt | Batch | Mapping[str, torch.Tensor],
        patterns: tuple[Intervention, ...],
        form: Form | None = None,
    ) -> TransformersModel:
        """A copy of the nnsight model that replays the patterns; the original stays as it is.

        Each pattern is an edit of its own, so that two may touch the same layer. Without `form` the copy is for traces:
        it acts in the first forward alone. For generations use `graph.generate`, which finds the form.
        """
        return later("edited")(self, prompt, patterns, form)

    def checked(self, prompt: Prompt | Batch | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a prompt on the model's device, checked before any forward.

        Raises:
            PromptError: image tokens and pictures that do not agree, or padding without an attention mask.
        """
        inputs = checked_inputs(self.adapter, prompt)
        return travelling(inputs) if self.remote else inputs
