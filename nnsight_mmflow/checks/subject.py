"""What the checks look at: a model, a few pictures that suit it, and ways to compare numbers."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import nnsight
import numpy as np
import torch

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from nnsight_mmflow.model.graph import Graph
    from nnsight_mmflow.prompts.prompt import Prompt

QUESTION = "what color is the circle ?"
OTHER = "is the circle red or blue ?"


class Failed(Exception):
    """A check that failed; the message holds the numbers."""


class NotApplicable(Exception):
    """A check that says nothing of this model; the message holds the reason."""


class Subject:
    """One model under check."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    @cached_property
    def side(self) -> int:
        """A picture side that suits the tower: what it reads at once, or eight patches."""
        vision = self.graph.adapter.config.vision_config
        size = getattr(vision, "image_size", None) or 8 * vision.patch_size
        side = size if isinstance(size, int) else size[0]
        return min(side, 512)

    def picture(self, seed: int, shape: tuple[float, float] = (1.25, 0.75)) -> Picture:
        """A picture of random blocks; its (width, height) are `shape` times the tower's side."""
        from PIL import Image

        width, height = (max(8, round(part * self.side)) for part in shape)
        block = max(4, self.side // 8)
        random = np.random.default_rng(seed)
        cells = random.integers(0, 256, (-(-height // block), -(-width // block), 3), dtype=np.uint8)
        return Image.fromarray(cells.repeat(block, 0).repeat(block, 1)[:height, :width])

    @cached_property
    def prompt(self) -> Prompt:
        """A question about a wide picture."""
        return self.graph.prompt(self.picture(0), QUESTION)

    @cached_property
    def other(self) -> Prompt:
        """A longer question about a tall picture."""
        return self.graph.prompt(self.picture(1, (0.75, 1.25)), OTHER)

    def logits(self, prompt: Prompt) -> torch.Tensor:
        """(vocabulary,): the clean logits after the prompt's last position."""
        with torch.no_grad():
            model = self.graph.adapter.model
            return model(**self.graph.checked(prompt), use_cache=False).logits[0, -1].float().cpu()

    def merged(self, prompt: Prompt) -> torch.Tensor:
        """(positions, width): what enters the first layer, image features merged."""
        layers = self.graph.layers
        with torch.no_grad(), self.graph.trace(prompt, use_cache=False, logits_to_keep=1):
            hidden = layers[0].inputs[0][0][0].float().cpu().save()
        return hidden

    def agree(self, what: str, tensor: torch.Tensor, other: torch.Tensor) -> str:
        """The difference in words.

        Raises:
            Failed: it is larger than the number type explains.
        """
        difference, allowed = float((tensor - other).abs().max()), self.allowed(other)
        said = f"{what} differ by {difference:.1e} (largest {float(other.abs().max()):.3g})"
        if not difference <= allowed:
            raise Failed(f"{said}; {allowed:.1e} is allowed for {self.dtype}")
        return said

    def allowed(self, numbers: torch.Tensor) -> float:
        """How much two ways to the same numbers may differ: float32 rounds in its sixth digit, halves in the second."""
        return (2e-4 if self.dtype == "float32" else 0.05) * max(1.0, float(numbers.abs().max()))

    @cached_property
    def dtype(self) -> str:
        """The model's number type; a server's is asked for, since it need not be what the configuration says."""
        graph, layers = self.graph, self.graph.layers
        if not graph.remote:
            return str(next(graph.adapter.model.parameters()).dtype).removeprefix("torch.")
        with torch.no_grad(), graph.trace(self.prompt, use_cache=False, logits_to_keep=1):
            dtype = nnsight.save(str(layers[0].inputs[0][0].dtype))
        return dtype.removeprefix("torch.")
