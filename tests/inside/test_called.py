"""A module's matrix, found by calling it, is the one that it holds: in every number type, with a bias and without."""

import pytest
import torch

from nnsight_mmflow.inside import called
from nnsight_mmflow.inside.called import matrix_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("biased", [False, True])
def test_the_matrix_is_found_bit_by_bit(dtype, biased, monkeypatch):
    torch.manual_seed(0)
    module = torch.nn.Linear(96, 50, bias=biased).to(dtype)
    if biased:
        module.bias.data.mul_(50)
    monkeypatch.setattr(called, "NUMBERS_AT_ONCE", 50 * 7)  # in parts
    found, bias = matrix_of(module, 96, torch.zeros(1, dtype=dtype))
    rounded = 2.0**-11 if biased and dtype == torch.float16 else 0.0  # float16 has no numbers large enough
    assert (found - module.weight).abs().max() <= rounded
    assert torch.equal(bias, module.bias if biased else torch.zeros(50, dtype=dtype))
    row, one = matrix_of(module, 96, torch.zeros(1, dtype=dtype), slice(3, 4))
    assert torch.equal(row, found[3:4])
    assert torch.equal(one, bias[3:4])
