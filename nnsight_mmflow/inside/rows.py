"""The row engine's inner parts: many changed copies of a prompt's tail in one forward. Ships to servers by value.

Positions before the first target do not change, so their keys and values are computed once and shared. The rest of the
prompt, the tail, is laid out once per row in one sequence: a row sees the prefix and itself, less the edges that it
closes in this layer, and with what it adds to the scores of others. A row that changes nothing below layer s equals the
clean run there, so it joins at s, from the clean hidden state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.inside.masks import layer_mask
from nnsight_mmflow.inside.row_masks import Rows, edge_places, mask_of_layer, open_mask

if TYPE_CHECKING:  # the tests check the shapes; a server need not have jaxtyping
    from jaxtyping import Bool, Float, Int
    from nnsight import Envoy
    from transformers import Cache


@dataclass(frozen=True)
class LayerInput:
    """What one layer was handed in the clean run, from one position on: the tail of every row starts as this.

    Attributes:
        hidden: (1, tail, width).
        mask: (tail, keys), additive: what each position really reads in this layer. Layers that share one share this.
        position_embeddings: (cosine, sine), positions in the last dimension but one.
        position_ids: (..., tail), or None where the family hands none to its layers.
        entered: (1, tail, width), what was added to the previous layer's output on the way here; mostly None.
        sealed: whether no position before the tail reads the tail; else rows must not share what lies before it.
    """

    hidden: Float[torch.Tensor, "1 tail width"]
    mask: Float[torch.Tensor, "tail keys"]
    position_embeddings: tuple[torch.Tensor, torch.Tensor]
    position_ids: Int[torch.Tensor, "... tail"] | None
    entered: Float[torch.Tensor, "1 tail width"] | None
    sealed: bool = True

    def cut(self, first: int) -> LayerInput:
        """The same from a later position on, `first` counted from where it starts now."""
        cosine, sine = self.position_embeddings
        return LayerInput(
            self.hidden[:, first:],
            self.mask[first:],
            (cosine[..., first:, :], sine[..., first:, :]),
            None if self.position_ids is None else self.position_ids[..., first:],
            None if self.entered is None else self.entered[:, first:],
            self.sealed,
        )


def run_rows(
    layers: Envoy,
    rows: Rows,
    clean: list[LayerInput],
    opened: list[Float[torch.Tensor, "positions keys"]],
    places: Bool[torch.Tensor, "edges tail prefix_and_tail"],
) -> None:
    """Inside a trace of the first joined rows' positions: gives each layer its rows and their mask.

    Args:
        layers: the decoder layers.
        rows: the chunk.
        clean: for each layer what it was handed in the clean run at the tail's positions.
        opened: for each layer, from `open_mask`.
        places: from `edge_places`.
    """
    present = 0
    for layer in range(len(clean)):
        present = enter_layer(layers, layer, rows, clean, opened, places, present)


def enter_layer(
    layers: Envoy,
    layer: int,
    rows: Rows,
    clean: list[LayerInput],
    opened: list[Float[torch.Tensor, "positions keys"]],
    places: Bool[torch.Tensor, "edges tail prefix_and_tail"],
    present: int,
) -> int:
    """One layer of `run_rows`: `present` rows come in, and as many are in it as the result says."""
    tail, count, was = rows.tail, rows.joined(layer), clean[layer]
    arguments, named = layers[layer].inputs
    hidden = arguments[0]
    joining = was.hidden.to(hidden).repeat(1, count - present, 1)
    if present:
        staying = hidden[:, : present * tail]
        if was.entered is not None:
            staying = staying + was.entered.to(hidden).repeat(1, present, 1)
        joining = torch.cat([staying, joining], 1)
    cosine, sine = was.position_embeddings
    changed = {
        "attention_mask": mask_of_layer(rows, layer, opened[layer], places).to(hidden),
        "position_embeddings": (torch.cat([cosine] * count, -2), torch.cat([sine] * count, -2)),
    }
    if was.position_ids is not None:
        changed["position_ids"] = torch.cat([was.position_ids] * count, -1)
    layers[layer].inputs = ((joining, *arguments[1:]), {**named, **changed})
    return count


def tail_start(position: int, blocks: tuple[tuple[int, int], ...]) -> int:
    """Where a tail starts that begins with a position: at it, or where the stretch begins that reads all of itself."""
    return min([first for first, end in blocks if first <= position < end], default=position)


def check_prefix(inputs: list[LayerInput], tail: int) -> None:
    """Refuses a tail that positions before it read, since they are computed once and shared.

    Args:
        inputs: what each layer was handed.
        tail: where the tail starts, counted from where the inputs do.

    Raises:
        MMFlowError: a layer in which an earlier position reads a later one.
    """
    for layer, was in enumerate(inputs):
        before = was.mask[:tail, was.mask.shape[1] - was.mask.shape[0] + tail :]
        if not was.sealed or bool((before > torch.finfo(was.mask.dtype).min / 2).any()):
            raise MMFlowError(
                f"positions before the tail read it in layer {layer}, so they are no prefix that rows can share: the"
                " adapter's `bidirectional` does not name this stretch. Use engine='forward'."
            )


def prepared(
    inputs: list[LayerInput], first: int, rows: Rows
) -> tuple[list[LayerInput], torch.Tensor, list[torch.Tensor]]:
    """What `run_rows` takes beside the rows: each layer's input, where the edges are, and each layer's open mask.

    Args:
        inputs: what each layer was handed in the clean run.
        first: where the rows' tail starts, counted from where the inputs do.
        rows: the chunk.
    """
    check_prefix(inputs, first)
    cut = [was.cut(first) for was in inputs]
    masks = {id(was.mask): open_mask(rows, now.mask) for was, now in zip(inputs, cut, strict=True)}
    return cut, edge_places(rows, cut[0].mask.device), [masks[id(was.mask)] for was in inputs]


def crop_cache(cache: Cache, length: int) -> None:
    """Cuts every layer of the cache back to its first `length` positions."""
    for layer in cache.layers:
        if layer.get_seq_length() > length:
            layer.crop(-(layer.get_seq_length() - length))


def clean_inputs(layers: Envoy, n_layers: int, start: int, enters_after: int, causal: bool) -> list[LayerInput]:
    """Inside a trace: what each layer is handed from position `start` on.

    Args:
        layers: the decoder layers.
        n_layers: how many there are.
        start: the first position that is kept.
        enters_after: after how many first layers something is added to the residual stream from outside.
        causal: what a layer does that is handed no mask.
    """
    kept: list[LayerInput] = []
    masks: list[tuple[torch.Tensor | None, tuple[torch.Tensor, bool]]] = []
    before = None
    for layer in range(n_layers):
        arguments, named = layers[layer].inputs
        hidden, mask = arguments[0], named.get("attention_mask")
        known = [built for seen, built in masks if seen is mask]
        if not known:
            whole = layer_mask(mask, hidden, 0, causal)[0, 0]
            sealed = not bool((whole[:start, start:] > torch.finfo(whole.dtype).min / 2).any())
            known = [(whole[start:].clone(), sealed)]
            masks.append((mask, known[0]))
        places = named.get("position_ids")
        cosine, sine = named["position_embeddings"]
        kept.append(
            LayerInput(
                hidden[:, start:].clone(),
                known[0][0],
                (cosine[..., start:, :], sine[..., start:, :]),
                None if places is None else places[..., start:],
                None if before is None else hidden[:, start:] - before,
                known[0][1],
            )
        )
        before = layers[layer].output[:, start:].clone() if layer < enters_after else None
    return kept


def answer_numbers(
    logits: Float[torch.Tensor, "rows vocabulary"], token: Int[torch.Tensor, ""]
) -> Float[torch.Tensor, "rows 2"]:
    """(rows, 2) in double precision: log-probability of the token, and the id of the most likely one."""
    logits = logits.float().cpu().double()  # some devices have no double precision
    return torch.stack([logits.log_softmax(-1)[:, token.cpu()], logits.argmax(-1).double()], -1)
