"""What pruning saves, counted: the paper's floating-point operations, and those of the real decoder; cache bytes.

Source: Lifting the Veil on Visual Information Flow (arXiv 2503.13108), equation 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnsight_mmflow.inside.pruning import Stage
    from nnsight_mmflow.model.graph import Graph


@dataclass(frozen=True)
class DecoderSize:
    """Sizes of a decoder: layers, width, MLP width, width of keys (and of values) per position."""

    n_layers: int
    width: int
    mlp_width: int
    key_width: int

    @classmethod
    def of(cls, graph: Graph) -> DecoderSize:
        """The sizes of a graph's decoder."""
        config = graph.text_config
        heads = getattr(config, "num_key_value_heads", None) or graph.n_heads
        width = getattr(config, "head_dim", None) or graph.head_width
        return cls(graph.n_layers, graph.d_model, int(config.intermediate_size), int(heads * width))


def tokens_per_layer(stages: Sequence[Stage], image_tokens: int, n_layers: int) -> list[int]:
    """How many image tokens each layer sees."""
    present, by_layer, counts = image_tokens, {stage.layer: stage for stage in stages}, []
    for layer in range(n_layers):
        if layer in by_layer:
            present = by_layer[layer].count(present)
        counts.append(present)
    return counts


def paper_flops(tokens: Sequence[int], size: DecoderSize) -> int:
    """Sum over layers of 4nd^2 + 2n^2d + 2ndm: the paper's count, which takes image tokens alone.

    Args:
        tokens: how many each layer sees; with the text's added, the count with text.
        size: of the decoder.

    Example:
        >>> paper_flops([576] * 32, DecoderSize(32, 4096, 11008, 4096)) / 1e12
        2.986076012544
    """
    d, m = size.width, size.mlp_width
    return sum(4 * n * d * d + 2 * n * n * d + 2 * n * d * m for n in tokens)


def real_flops(positions: Sequence[int], size: DecoderSize) -> int:
    """Two per multiplication and addition: projections, scores and sums over all pairs, the three MLP matrices."""
    d, m, kv = size.width, size.mlp_width, size.key_width
    return sum(2 * n * (2 * d * d + 2 * d * kv + 3 * d * m) + 4 * n * n * d for n in positions)


def cache_bytes(positions: Sequence[int], size: DecoderSize, bytes_per_number: int = 2) -> int:
    """Keys and values of a prompt, with so many positions in each layer."""
    return sum(2 * n * size.key_width * bytes_per_number for n in positions)
