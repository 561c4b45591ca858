"""The update of one matrix that gives chosen keys chosen new outputs, in closed form, and what it does to other keys.

Source: arXiv 2406.04236, section 5. In an exact form: no covariance, and nothing inverted
that is larger than the number of facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # the tests check the shapes
    from jaxtyping import Float


@dataclass(frozen=True)
class Update:
    """A change of one matrix, (out, facts) @ (facts, in): `left` and `right`."""

    left: Float[torch.Tensor, "out facts"]
    right: Float[torch.Tensor, "facts in"]

    def matrix(self) -> Float[torch.Tensor, "out in"]:
        """The change itself."""
        return self.left @ self.right

    def added_to(self, weight: Float[torch.Tensor, "out in"]) -> Float[torch.Tensor, "out in"]:
        """A new matrix, of the weight's type: the weight with the update, added in float32 or finer."""
        wide = torch.promote_types(weight.dtype, torch.float32)
        return (weight.detach().to(wide) + self.matrix().to(weight.device, wide)).to(weight.dtype)

    def change(self, keys: Float[torch.Tensor, "keys in"]) -> Float[torch.Tensor, "keys out"]:
        """What the update adds to the outputs at these keys: its bleed, where they are not those of the facts."""
        return keys.to(self.right) @ self.right.T @ self.left.T


def solve(
    keys: Float[torch.Tensor, "facts in"],
    changes: Float[torch.Tensor, "facts out"],
    regulariser: float,
) -> Update:
    """The Update D that minimises the sum of |D k - change|^2 over facts, plus regulariser * |D|^2.

    With one fact it is change k^T / (regulariser + k.k): the share k.k / (regulariser + k.k) of the change is reached.

    Args:
        keys: the matrix's inputs at the facts.
        changes: what should be added to its outputs there.
        regulariser: lambda, above 0.

    Example:
        >>> import torch
        >>> update = solve(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0]]), 0.5)
        >>> update.matrix()
        tensor([[2., 0.]])
    """
    right, wanted = keys.double(), changes.double()
    inner = right @ right.T + regulariser * torch.eye(len(right), dtype=right.dtype, device=right.device)
    left = torch.linalg.solve(inner, wanted).T
    return Update(left.to(changes.dtype), right.to(changes.dtype))
