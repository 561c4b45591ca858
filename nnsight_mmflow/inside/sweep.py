"""A prompt's whole sweep as one session on a server: clean run, answer, rows; numbers come back. Ships by value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import nnsight
import torch
from transformers import DynamicCache

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.names import cache_of, cached
from nnsight_mmflow.inside.plan import ROW_BUDGET
from nnsight_mmflow.inside.row_checks import check_effect
from nnsight_mmflow.inside.row_masks import mask_of_layer
from nnsight_mmflow.inside.rows import answer_numbers, clean_inputs, crop_cache, prepared, run_rows

if TYPE_CHECKING:
    from collections.abc import Collection

    from nnsight import Envoy, TransformersModel
    from transformers import Cache

    from nnsight_mmflow.inside.plan import Plan


@dataclass(frozen=True)
class Ask:
    """What the session needs beside the model, in plain values.

    Attributes:
        inputs: the prompt's tensors.
        start: the first position that any row needs.
        n_layers, enters_after, causal: of the model.
        apart: whether blocks run in a process apart from the model's.
        ends: ids at which the answer ends.
        max_new_tokens: how long it may get.
        accepted: the rows run only if the answer is one of these ids; None: in any case.
    """

    inputs: dict[str, torch.Tensor]
    start: int
    n_layers: int
    enters_after: int
    causal: bool
    apart: bool
    ends: tuple[int, ...]
    max_new_tokens: int
    accepted: tuple[tuple[int, ...], ...] | None


def clean_and_rows(model: TransformersModel, layers: Envoy, plan: Plan | None, ask: Ask) -> dict:
    """Inside a session: {"tokens": the greedy answer, "numbers": of its first token, "cells": (cells, 2) or None}.

    Args:
        model: the model.
        layers: its decoder layers.
        plan: what is swept, if anything.
        ask: the prompt and the settings.
    """
    with torch.no_grad():  # the caller's does not travel
        # NDIF runs ordinary keys' blocks in a process of their own: a layer whose inputs are read there is handed a
        # copy of its cache. So inputs are read in a forward without one, and the cache where it comes out.
        inputs = []
        if plan is not None and ask.apart:
            with model.trace(**ask.inputs, use_cache=False, logits_to_keep=1):
                inputs = nnsight.save(clean_inputs(layers, ask.n_layers, ask.start, ask.enters_after, ask.causal))
        with model.trace(**ask.inputs, **cached(model, DynamicCache()), use_cache=True, logits_to_keep=1):
            if plan is not None and not ask.apart:
                inputs = nnsight.save(clean_inputs(layers, ask.n_layers, ask.start, ask.enters_after, ask.causal))
            logits = nnsight.save(model.output.logits[:, -1])
            cache = nnsight.save(cache_of(model.output))
        token = logits.argmax(-1)[0]
        numbers = answer_numbers(logits, token)
        tokens, cache = greedy(model, token, cache, ask.ends, ask.max_new_tokens)
        if tokens[-1] in ask.ends:
            tokens = tokens[:-1] or tokens
        swept: dict = {"tokens": tokens, "numbers": numbers.tolist(), "cells": None}
        if plan is not None and (ask.accepted is None or tuple(tokens) in ask.accepted):
            swept["cells"] = rows_of(model, layers, plan, ask.start, inputs, cache, token).tolist()
        return swept


def greedy(
    model: TransformersModel, token: torch.Tensor, cache: Cache, ends: Collection[int], max_new_tokens: int
) -> tuple[list[int], Cache]:
    """(the tokens from a first one on, with the end token where they reach one; the cache behind them).

    Args:
        model: the model.
        token: the first one.
        cache: of the prompt.
        ends: ids at which the answer ends.
        max_new_tokens: how long it may get.
    """
    tokens = [int(token)]
    while tokens[-1] not in ends and len(tokens) < max_new_tokens:
        step = torch.tensor([[tokens[-1]]], device=token.device)
        with torch.no_grad(), model.trace(input_ids=step, **cached(model, cache), use_cache=True):
            # nnsight 0.8.1 knows a cache by its older name alone, and beside the newer one makes a mask of one token.
            arguments, named = model.inputs
            model.inputs = (arguments, {**named, "attention_mask": None})
            following = nnsight.save(model.output.logits[0, -1].argmax(-1))
            # Where the model runs in another process, the cache that was handed in stays as short as it was.
            cache = nnsight.save(cache_of(model.output))
        tokens.append(int(following))
    return tokens, cache


def rows_of(
    model: TransformersModel,
    layers: Envoy,
    plan: Plan,
    start: int,
    clean: list,
    cache: Cache,
    token: torch.Tensor,
) -> torch.Tensor:
    """Inside a session: (cells, 2): for each cell the log-probability of the token, and the most likely one.

    Args:
        model: the model.
        layers: its decoder layers.
        plan: what is swept.
        start: where the clean inputs start.
        clean: what each layer was handed in the clean run.
        cache: of the clean run; it is cut up.
        token: the answer's first token.
    """
    results: list[torch.Tensor] = []
    # The cache shrinks from chunk to chunk: those with the longest prefix run first.
    order = sorted(range(len(plan.chunks)), key=lambda number: -plan.chunks[number].start)
    for number in order:
        rows = plan.chunks[number]
        crop_cache(cache, rows.start)
        inputs, places, opened = prepared(clean, rows.start - start, rows)
        check_effect(plan, number, clean, start, places)
        device = inputs[0].hidden.device
        first = inputs[0].hidden.repeat(1, rows.joined(0), 1)
        spots = torch.arange(rows.start, rows.start + rows.tail, device=device)[None].repeat(1, rows.joined(0))
        ends = torch.arange(1, len(rows.windows) + 1, device=device) * rows.tail - 1
        try:
            with model.trace(
                inputs_embeds=first,
                position_ids=spots,
                attention_mask=mask_of_layer(rows, 0, opened[0], places),
                **cached(model, cache),
                use_cache=True,
                logits_to_keep=ends,
            ):
                run_rows(layers, rows, inputs, opened, places)
                numbers = nnsight.save(answer_numbers(model.output.logits[0], token))
        except Exception as error:
            if "out of memory" not in str(error).lower():
                raise
            raise MMFlowError(
                f"chunk {number + 1} of {len(plan.chunks)} ({len(rows.windows)} rows of {rows.tail} positions behind"
                f" {rows.start} shared ones) ran out of memory beside the weights: give row_budget below"
                f" {len(rows.windows) * rows.tail}, the positions of this chunk (flow's default is {ROW_BUDGET})."
            ) from None
        results.append(numbers)
    by_chunk = dict(zip(order, results, strict=True))
    return torch.stack([by_chunk[chunk][row] for chunk, row in plan.row_of])
