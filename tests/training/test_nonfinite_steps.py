"""An update that is refused leaves weights, moments and step counts alone: AdamW on the device, and any plugin's inner optimizer."""

import math
from types import SimpleNamespace

import pytest
import torch

from colossal_llama.model.kernels.adamw import adamw
from colossal_llama.training.nonfinite_steps import refuse_bad_updates


@pytest.mark.parametrize("factor", [1.0, math.nan])
def test_lean_adamw_heeds_a_factor_that_is_no_number(factor):
    torch.manual_seed(0)
    master, first, second = torch.randn(20), torch.randn(20), torch.rand(20)
    working = master.bfloat16()
    before = [tensor.clone() for tensor in (master, first, second, working)]
    gradient = torch.full((20,), math.inf if math.isnan(factor) else 0.5)
    adamw(master, gradient, first, second, working, torch.tensor([1e-2, 0.1, 0.05, factor]), 0.9, 0.95, 1e-8, 0.1)
    same = [torch.equal(tensor, old) for tensor, old in zip((master, first, second, working), before, strict=True)]
    assert same == [math.isnan(factor)] * 4


@pytest.mark.parametrize(("norm", "changes"), [(1.0, True), (None, True), (math.nan, False), (math.inf, False)])
def test_the_inner_optimizer_is_not_called_when_the_norm_is_no_number(norm, changes):
    weight = torch.nn.Parameter(torch.ones(3))
    inner = torch.optim.AdamW([weight], lr=0.1)
    refuse_bad_updates(SimpleNamespace(optim=inner, get_grad_norm=lambda: norm))
    weight.grad = torch.ones(3)
    inner.step()
    assert torch.equal(weight.detach(), torch.ones(3)) is not changes
    assert bool(inner.state[weight]) is changes
