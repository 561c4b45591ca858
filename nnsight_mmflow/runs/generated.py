"""What a model writes behind a prompt, greedily: first generated with its cache, then read in one forward.

One forward over the prompt and what was generated gives every generated token the keys that it had when it was
generated, so its attention is that of the generation, up to the order of float sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError, SpanError
from nnsight_mmflow.inside.heads import differs
from nnsight_mmflow.model.generation_settings import plain_settings
from nnsight_mmflow.prompts.continued import GENERATED, continued

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt


def check_generated(prompts: list[Prompt], generated: int) -> None:
    """Refuses to continue what is continued already.

    Raises:
        MMFlowError: a prompt holds generated tokens.
    """
    if generated and any(prompt.continues is not None for prompt in prompts):
        raise MMFlowError("generated= continues a prompt that was asked, but this one holds generated tokens already.")


def planned(graph: Graph, prompt: Prompt, generated: int) -> Prompt:
    """The prompt as long as it can get, before anything runs: what its spans will be."""
    if not generated:
        return prompt
    return continued(prompt, [0] * generated, ["?"] * generated, graph.adapter.generated_type)


def with_generated(graph: Graph, prompt: Prompt, generated: int) -> Prompt:
    """The prompt with up to so many greedy tokens behind it: fewer where the answer ends, its end token included.

    The ids are those of `model.generate` with one beam and no sampling; nothing is taken from the checkpoint's
    generation config but the tokens that end an answer.
    """
    import torch

    if not generated:
        return prompt
    settings = plain_settings(graph, max_new_tokens=generated)
    with torch.no_grad(), graph.generate(prompt, **settings) as tracer:
        found = tracer.result.save()
    ids: list[int] = found[0, len(prompt) :].tolist()
    if not ids:
        raise MMFlowError("the model generated nothing: its generation stopped at the prompt's end.")
    check_words(graph, ids)
    tokens = graph.processor.tokenizer.convert_ids_to_tokens(ids)
    return continued(prompt, ids, tokens, graph.adapter.generated_type)


def check_words(graph: Graph, ids: list[int]) -> None:
    """Refuses what no longer is text: in one forward a model would look for a picture behind it.

    Raises:
        MMFlowError: a generated token is the one that stands for an image or a video.
    """
    config = graph.adapter.config
    places = {graph.image_token_id, getattr(config, "video_token_id", None)}
    at = next((at for at, one in enumerate(ids) if one in places), None)
    if at is not None:
        also = f" generated={at} reads the tokens before it." if at else ""
        raise MMFlowError(
            f"the model wrote the token that stands for an image itself (generated token {at}), and there is no picture"
            f" for it: in one forward it would be read otherwise than when it was written.{also}"
        )


def generated_ids(prompt: Prompt) -> list[int]:
    """The ids of a continued prompt's generated tokens; [] of one as it was asked."""
    return [] if prompt.continues is None else prompt.inputs["input_ids"][0, len(prompt.continues) :].tolist()


def again(graph: Graph, prompt: Prompt, ids: list[int]) -> Prompt:
    """The continued prompt whose ids were kept."""
    tokens = graph.processor.tokenizer.convert_ids_to_tokens(ids)
    return continued(prompt, ids, tokens, graph.adapter.generated_type) if ids else prompt


def written_of(graph: Graph, prompts: list[Prompt], entries: list[dict]) -> dict[str, list[str]]:
    """For each prompt, by its name in results, the tokens that were generated, as text."""
    decode = graph.processor.tokenizer.decode
    return {
        prompt.key or str(number): [decode([one]) for one in entry.get("generated", [])]
        for number, (prompt, entry) in enumerate(zip(prompts, entries, strict=True))
    }


def there_of(positions: list[int], prompt: Prompt, what: str) -> list[int]:
    """Of the positions that were planned those that the answer reached.

    Raises:
        SpanError: none, because the model ended its answer before.
    """
    held = [position for position in positions if position < len(prompt)]
    if not held:
        written = len(prompt.spans.named[GENERATED])
        raise SpanError(f"{what} holds no position: the model ended its answer after {written} token(s).")
    return held


def check_forward(lag: float, largest: float, dtype: str) -> None:
    """Refuses a forward that would not write the tokens that were generated: it is not the generation read again.

    Args:
        lag: how far, at most, a generated token's logit lies below the largest one of its step.
        largest: the largest logit there is, in size.
        dtype: of the model, such as "bfloat16".

    Raises:
        MMFlowError: it lies further below than rounding explains.
    """
    if differs(lag, largest, dtype):
        raise MMFlowError(
            f"one forward over the prompt and its generated tokens puts one of them {lag:.2g} below the likeliest"
            f" (logits, of at most {largest:.2g}): it does not read what was generated, so its numbers would be"
            " others. Does the family place generated tokens otherwise, or did the model change between the runs?"
        )
