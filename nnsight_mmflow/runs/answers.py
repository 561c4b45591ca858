"""Answers of more than one token: a prompt with its answer behind it, and how probable the model finds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import ModelError, PromptError
from nnsight_mmflow.spans.span import Span

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt

ANSWER = "answer"  # the span of the tokens that stand behind a prompt


def with_target(graph: Graph, prompt: Prompt, target: str, first_token: bool = False) -> tuple[Prompt, list[int]]:
    """The prompt with all but the last token of the answer behind it, and the answer's token ids.

    Args:
        graph: the model.
        prompt: the prompt.
        target: the answer; it is put behind the prompt as the model would write it, after a space unless one is there.
        first_token: take the answer's first token alone.

    Raises:
        PromptError: the tokenizer does not know the answer, or joins it with the end of the prompt.
        ModelError: the answer has several tokens, and the family reads the prompt's end backwards and forwards.
    """
    tokenizer = graph.processor.tokenizer
    space = "" if not prompt.text or prompt.text[-1].isspace() else " "
    before = tokenizer(prompt.text)["input_ids"]
    joined = tokenizer(prompt.text + space + target)["input_ids"]
    if joined[-1:] == [tokenizer.eos_token_id] and before[-1:] != joined[-1:]:
        joined = joined[:-1]
    ids = joined[len(before) :]
    if joined[: len(before)] != before or not ids:
        raise PromptError(
            f"the tokenizer joins the answer {target!r} with the end of the prompt {prompt.text[-20:]!r}."
        )
    if tokenizer.unk_token_id in ids:
        raise PromptError(f"the tokenizer does not know the answer {target!r}.")
    if first_token or len(ids) == 1:
        return prompt, ids[:1]
    check_behind(graph, prompt, len(ids), f"the answer {target!r}")
    return extended(prompt, ids[:-1], tokenizer), ids


def check_behind(graph: Graph, prompt: Prompt, count: int, what: str) -> None:
    """Refuses tokens behind a prompt whose end is read backwards and forwards.

    Raises:
        ModelError: there are some, and the family reads so.
    """
    if count > 1 and any(end == len(prompt) for _, end in graph.adapter.bidirectional(prompt.spans)):
        raise ModelError(
            f"{what} has {count} tokens, and {graph.family} reads the prompt's end backwards and forwards: what stands"
            " behind it would be read as part of the question. Take the first token alone."
        )


def extended(prompt: Prompt, ids: list[int], tokenizer) -> Prompt:  # type: ignore[no-untyped-def]
    """The prompt with tokens behind it: the span `answer`. All others are as they were, as where tokens are generated.

    The row, and with it `all`, `last` and `~image`, stays the prompt's own.
    """
    from dataclasses import replace

    import torch

    inputs = dict(prompt.inputs)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids], dtype=torch.long)], 1)
    for name, value in (("attention_mask", 1), ("token_type_ids", 0), ("mm_token_type_ids", 0)):
        if name in inputs:
            more = inputs[name].new_full((1, len(ids)), value)
            inputs[name] = torch.cat([inputs[name], more], 1)
    row = prompt.spans["all"].row
    answer = Span(ANSWER, tuple(range(row[1], row[1] + len(ids))), row)
    spans = replace(
        prompt.spans.having(**{ANSWER: answer}),
        tokens=(*prompt.spans.tokens, *tokenizer.convert_ids_to_tokens(ids)),
        offsets=(*prompt.spans.offsets, *[(0, 0)] * len(ids)),
    )
    return replace(prompt, inputs=inputs, spans=spans)


def answer_scores(
    graph: Graph, prompts: Sequence[Prompt], answers: Sequence[str], first_token: bool = False, batch_size: int = 16
) -> list[tuple[float, bool]]:
    """For each prompt the probability of its answer (all tokens), and whether the model would write it, greedily."""
    import torch

    asked = [with_target(graph, prompt, answer, first_token) for prompt, answer in zip(prompts, answers, strict=True)]
    scores: list[tuple[float, bool]] = []
    for start in range(0, len(asked), batch_size):
        part = asked[start : start + batch_size]
        kept = max(len(ids) for _, ids in part)
        batch = graph.batch([prompt for prompt, _ in part])
        with torch.no_grad(), graph.trace(batch, use_cache=False, logits_to_keep=kept):
            logits = graph.model.output.logits.detach().save()  # on a server, no_grad does not hold
        for row, (_, ids) in enumerate(part):
            ends = logits[row, -len(ids) :].float().log_softmax(-1)
            chosen = torch.tensor(ids, device=ends.device)
            log = ends.gather(1, chosen[:, None]).sum()
            scores.append((float(log.exp()), bool((ends.argmax(-1) == chosen).all())))
    return scores
