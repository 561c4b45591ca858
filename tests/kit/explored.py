"""Attention maps as large as real ones, made up: for tests and the benchmark of pages."""

from __future__ import annotations

import torch
from kit.families import real_llava
from kit.tiny import picture

import nnsight_mmflow as mmf
from nnsight_mmflow.inside.maps import received_by


def made_up_maps(
    heads: int, positions: int, prompt: mmf.Prompt | None = None, seed: int = 0
) -> mmf.results.AttentionResult:
    """Softmax weights of one layer: noise of another strength in each head, a decay with distance, and a sink.

    Two heads of three give the first position about half of all they read, as trained models do; one head of four
    looks near. The prompt has 576 image tokens unless another is given.
    """
    random, weights = torch.Generator().manual_seed(seed), torch.zeros(heads, positions, positions)
    ahead = torch.ones(positions, positions).triu(1).bool()
    places = torch.arange(positions)
    distance = (places[:, None] - places).float()
    for head in range(heads):
        queries, keys = (torch.randn(positions, 64, generator=random) for _ in range(2))
        scores = queries @ keys.T / 8 * (0.8 + 1.6 * head / heads) - 0.05 * (head % 4 == 0) * distance
        noise = scores.masked_fill(ahead, -torch.inf)[:, 1:].logsumexp(1)[1:]
        if head % 3:
            scores[1:, 0] = noise + torch.randn(positions - 1, generator=random)
        weights[head] = scores.masked_fill(ahead, -torch.inf).softmax(-1)
    prompt = prompt or long_prompt(positions)
    every = tuple(range(positions))
    received = received_by(weights.mean(0), (~ahead).sum(1))
    return mmf.results.AttentionResult.of(
        weights[None], (16,), tuple(range(heads)), every, every, received[None], prompt
    )


def long_prompt(positions: int) -> mmf.Prompt:
    """A prompt of exactly so many positions, 576 of them image tokens."""
    graph = real_llava()
    question = "what color is the circle ?"
    short = len(graph.prompt(picture(0, 640, 480), question))
    return graph.prompt(picture(0, 640, 480), question + " the" * (positions - short))
