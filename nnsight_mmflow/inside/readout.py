"""Reading words from hidden states through the unembedding. Runs inside traces, so it ships to servers by value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # the tests check the shapes; a server need not have jaxtyping
    from jaxtyping import Float, Int
    from nnsight import Envoy


def read_words(
    hidden: Float[torch.Tensor, "positions width"],
    norm: Envoy | None,
    unembed: Envoy,
    cap: float | None,
    tokens: list[int],
    top: int,
) -> tuple[
    Float[torch.Tensor, "positions tokens"], Int[torch.Tensor, "positions top"], Float[torch.Tensor, "positions top"]
]:
    """Probabilities of the tokens (positions, tokens), and the ids and probabilities of the top ones (positions, top).

    Args:
        hidden: (positions, width).
        norm: the final norm, or None to read without it.
        unembed: the unembedding.
        cap: where the family squeezes its logits into -cap to cap, the cap.
        tokens: ids to follow.
        top: how many of the most likely tokens to return.
    """
    logits = unembed(hidden if norm is None else norm(hidden))
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    probabilities = logits.float().softmax(-1)
    best = probabilities.topk(top, -1)
    return probabilities[:, tokens].cpu(), best.indices.cpu(), best.values.cpu()


def read_top(
    layers: Envoy,
    chosen: list[int],
    norm: Envoy,
    unembed: Envoy,
    cap: float | None,
    positions: list[int],
    top: int,
    at_once: int,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inside a trace: the words that each position's residual stream would say after each chosen layer.

    Logits are made for `at_once` positions at a time and cut to the top words before the next ones are made.

    Args:
        layers: the decoder layers.
        chosen: which to read, in ascending order.
        norm: the final norm.
        unembed: the unembedding.
        cap: where the family squeezes its logits, the cap.
        positions: where to read.
        top: how many of the most likely tokens to return.
        at_once: positions whose logits are held at a time.

    Returns:
        For each layer (ids, probabilities), (positions, top) each.
    """
    read = []
    with torch.no_grad():  # the caller's does not travel
        for layer in chosen:
            stream = layers[layer].output[0, positions].detach()
            ids, probabilities = [], []
            for first in range(0, len(positions), at_once):
                _, best, sure = read_words(stream[first : first + at_once], norm, unembed, cap, [], top)
                ids.append(best.detach())
                probabilities.append(sure.detach())
            read.append((torch.cat(ids), torch.cat(probabilities)))
    return read


def read_layers(
    layers: Envoy,
    attentions: list[tuple[Envoy, bool]],
    mlps: list[tuple[Envoy, bool]],
    norm: Envoy,
    unembed: Envoy,
    cap: float | None,
    positions: list[int],
    tokens: list[int],
    top: int,
    normed: bool,
) -> list[tuple[str, int, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Inside a trace: what each layer's residual stream, attention output and MLP output would say.

    Args:
        layers: the decoder layers.
        attentions: for each layer the module whose output joins the residual stream, and whether it is a tuple.
        mlps: the same for the MLPs.
        norm: the final norm.
        unembed: the unembedding.
        cap: where the family squeezes its logits, the cap.
        positions: where to read.
        tokens: ids to follow.
        top: how many of the most likely tokens to return.
        normed: whether the final norm is applied in every layer.

    Returns:
        (site, layer, probabilities, top ids, top probabilities) each; layer -1 is the embeddings. The residual stream
        after the last layer is read with the norm in any case, as the model reads it.
    """
    read = []
    last = len(attentions) - 1
    used = norm if normed else None
    embedded = layers[0].inputs[0][0][0, positions]
    read.append(("resid", -1, *read_words(embedded, used, unembed, cap, tokens, top)))
    for layer in range(last + 1):
        module, is_tuple = attentions[layer]
        attended = (module.output[0] if is_tuple else module.output)[0, positions]
        read.append(("attn", layer, *read_words(attended, used, unembed, cap, tokens, top)))
        added = mlps[layer][0].output[0, positions]
        read.append(("mlp", layer, *read_words(added, used, unembed, cap, tokens, top)))
        stream = layers[layer].output[0, positions]
        read.append(("resid", layer, *read_words(stream, norm if layer == last else used, unembed, cap, tokens, top)))
    return read
