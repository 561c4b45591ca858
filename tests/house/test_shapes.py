"""The shape annotations are really checked under pytest."""

import jaxtyping
import pytest
import torch

from nnsight_mmflow.inside.masks import add_to_edges, layer_mask
from nnsight_mmflow.inside.rows import answer_numbers


def test_a_mask_of_too_few_axes_is_refused():
    with pytest.raises(jaxtyping.TypeCheckError):
        layer_mask(torch.zeros(4, 4), torch.zeros(1, 4, 8), 0)


def test_an_integer_mask_is_refused():
    with pytest.raises(jaxtyping.TypeCheckError):
        add_to_edges(torch.zeros(1, 1, 4, 4, dtype=torch.long), [([3], [0])], None, 2)


def test_logits_need_rows():
    with pytest.raises(jaxtyping.TypeCheckError):
        answer_numbers(torch.zeros(8), torch.tensor(0))
