"""An update that is refused leaves weights, moments and step counts alone."""

import math

import pytest
import torch

from colossal_llama.model.kernels.adamw import adamw


@pytest.mark.parametrize("factor", [1.0, math.nan])
def test_adamw_changes_nothing_where_the_factor_is_not_finite(factor):
    torch.manual_seed(0)
    master, first, second = torch.randn(20), torch.randn(20), torch.rand(20)
    working = master.bfloat16()
    before = [tensor.clone() for tensor in (master, first, second, working)]
    gradient = torch.full((20,), math.inf if math.isnan(factor) else 0.5)
    adamw(master, gradient, first, second, working, torch.tensor([1e-2, 0.1, 0.05, factor]), 0.9, 0.95, 1e-8, 0.1)
    same = [torch.equal(tensor, old) for tensor, old in zip((master, first, second, working), before, strict=True)]
    assert same == [math.isnan(factor)] * 4
